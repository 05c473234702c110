"""The command `python -m pointsweep.tables`."""

import sys

from pointsweep.reporting.build import main
from pointsweep.utils.cli_exit import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
