"""Starts the command line as `python -m atm`."""

import sys

from atm.cli.main import main

if __name__ == '__main__':
  sys.exit(main())
