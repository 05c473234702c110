"""The command `python -m pointsweep.replay`."""

import sys

from pointsweep.cli.replay import main
from pointsweep.utils.cli_exit import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main, outlives=True))
