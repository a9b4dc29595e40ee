"""`python -m mamba3_bench` is the command `mamba3-bench`."""

import sys

from .bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
