"""The command `python -m pointsweep.sync`."""

import sys

from pointsweep.cli.sync import main
from pointsweep.utils.cli_exit import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main, outlives=True))
