"""The files of a data set as its authors publish them, gzipped or not."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

from cid._errors import DataError
from cid.train.sections import DataConfig


@dataclass(frozen=True)
class Published:
    """Where a data set's files are to be: for finding them, and for telling what is missing.

    Attributes:
        title: the data set's name.
        home: its address.
        layouts: the versions in which it is published, the preferred one first: a folder and the files in it.
    """

    title: str
    home: str
    layouts: tuple[tuple[str, tuple[str, ...]], ...]

    def find(self, config: DataConfig) -> list[Path]:
        """The files of the first layout that is there as a whole, under `--data-dir` or in that folder itself.

        Raises:
            DataError: none of them; names the folder, the files and the data set's home.
        """
        if config.dir is None:
            raise DataError(f"--data-dir: not given, accepted: the folder that holds {self._expected()}")
        base = Path(config.dir)
        for name, files in self.layouts:
            for folder in (base / name, base):
                if all(_exists(folder / file) for file in files):
                    return [folder / file for file in files]
        raise DataError(f"--data-dir: {base} has no {self.title}; expected {self._expected()}")

    def _expected(self) -> str:
        layouts = " or ".join(f"{name}/ with {', '.join(files)}" for name, files in self.layouts)
        return f"{layouts} (published at {self.home})"


def _exists(path: Path) -> bool:
    """Whether the file is there, gzipped or not."""
    return path.is_file() or path.with_name(path.name + ".gz").is_file()


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked where only the gzipped one is there.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if path.is_file():
            return path.read_bytes()
        return gzip.decompress(path.with_name(path.name + ".gz").read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
