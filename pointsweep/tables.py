"""The command `python -m pointsweep.tables`."""

import sys

from pointsweep.cli.tables import main
from pointsweep.utils.cli_exit import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
