"""``python -m rbnorm``: the command line."""

import sys

from rbnorm_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
