"""How the kernels cut their rows in these tests."""

from dataclasses import replace

import pytest


@pytest.fixture(params=[False, True], ids=["whole", "pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether rows go in pieces; as if 37 columns were many, for the interpreter's sake."""
    from cid.backends.triton import tiles  # not everybody has triton

    if request.param:
        for name, choice in tiles.ROWS.items():
            monkeypatch.setitem(tiles.ROWS, name, replace(choice, whole=16, piece=32, piece_warps=4))
    return bool(request.param)
