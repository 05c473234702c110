"""The command `python -m pointsweep.published`."""

import sys

from pointsweep.cli.published import main
from pointsweep.utils.cli_exit import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
