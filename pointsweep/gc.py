"""The command `python -m pointsweep.gc`."""

import sys

from pointsweep.cli.gc import main
from pointsweep.utils.cli_exit import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
