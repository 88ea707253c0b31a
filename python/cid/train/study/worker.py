"""One part of a run in a process of its own: `python -m cid.train.study.worker FOLDER [METHOD SEED]`."""

from __future__ import annotations

import sys
from pathlib import Path

from cid._errors import RunError
from cid.train.folder import RunFolder, network_name
from cid.train.run.inputs import Inputs
from cid.train.run.progress import Lines
from cid.train.run.runner import distill_part


def main(arguments: list[str]) -> int:
    """Does what comes before the students of the run in a folder, and the student that is named; the exit code."""
    folder, *named = arguments
    student = (named[0], int(named[1])) if named else None
    run = RunFolder(Path(folder), network_name(*student) if student else None)
    try:
        distill_part(Inputs.load(run.config()), run, Lines(), student)
    except (RunError, OSError) as error:
        print(error, file=sys.stderr)
        return error.exit_code if isinstance(error, RunError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
