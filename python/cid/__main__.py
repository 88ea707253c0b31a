"""`python -m cid` is `cid`: for launchers, as torchrun."""

import sys

from cid.cli import main

if __name__ == "__main__":
    sys.exit(main())
