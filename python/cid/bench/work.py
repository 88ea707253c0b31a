"""The rows of a table, one after the other, in this process or, for a forced tier, in a child.

The native kernels read the environment variable `CID_SIMD` once, so each tier needs a process of its own. The child
is `python -m cid.bench.work`: `Measurements` as JSON on its standard input, a row as JSON on each line of its output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from dataclasses import asdict, dataclass

from cid._errors import ConfigError, RunError
from cid.bench.accuracy import FACTORS, accuracy, fits
from cid.bench.measure import Row, measure
from cid.bench.plan import Case


@dataclass(frozen=True)
class Measurements:
    """What to measure of each case, and how.

    Attributes:
        cases: one or more rows each.
        errors: measure errors, not time.
        seconds: time for a row.
        against: one of `cid.bench.plan.AGAINST`.
        memory: whether to count peak memory.
    """

    cases: tuple[Case, ...]
    errors: bool = False
    seconds: float = 5.0
    against: str = "all"
    memory: bool = True

    def rows(self) -> Generator[Row, None, None]:
        """Measures in this process; yields each row as soon as it is known."""
        for case in self.cases:
            if not self.errors:
                yield measure(case, seconds=self.seconds, against=self.against, count_memory=self.memory)
                continue
            for factor in FACTORS:
                if fits(case.dtype, factor):
                    row = accuracy(case, factor)
                    yield row
                    if "skipped" in row:  # so would the other factors be
                        break

    def rows_at(self, tier: str) -> Generator[Row, None, None]:
        """Measures in a child with this tier forced.

        Raises:
            RunError: the child failed; what it wrote to its standard error has been shown.
        """
        request = {**asdict(self), "cases": [case.to_json() for case in self.cases]}
        command = [sys.executable, "-m", "cid.bench.work"]
        with subprocess.Popen(
            command, env=_forced(tier), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(json.dumps(request))
                child.stdin.close()
                for line in child.stdout:
                    yield json.loads(line)
            except BaseException:  # also where nobody asks for more rows
                child.kill()
                raise
        if child.returncode:
            raise RunError(f"the measurement with CID_SIMD={tier} failed: exit code {child.returncode}")


def _forced(tier: str) -> dict[str, str]:
    return {**os.environ, "CID_SIMD": tier}


def check_tier(tier: str) -> None:
    """Asks whether this CPU has a tier.

    Raises:
        ConfigError: it has not.
    """
    command = [sys.executable, "-c", "import cid._native as rust; rust.build_info()"]
    done = subprocess.run(command, env=_forced(tier), capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise ConfigError(f"--simd: got {tier}, accepted: a tier of this CPU ({reason})")


def _main() -> None:
    request = json.load(sys.stdin)
    cases = tuple(map(Case.from_json, request.pop("cases")))
    for row in Measurements(cases, **request).rows():
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    _main()
