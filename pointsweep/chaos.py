"""The command `python -m pointsweep.chaos`."""

import sys

from pointsweep.testing.chaos import main
from pointsweep.utils.cli_exit import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main, outlives=True))
