"""The command `python -m pointsweep.verify`."""

import sys

from pointsweep.cli.verify import main
from pointsweep.utils.cli_exit import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
