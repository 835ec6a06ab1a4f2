"""Writes docs/settings.md from the gin files and docstrings.

python docs/settings.py > docs/settings.md
"""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

if __name__ == '__main__':
  sys.path.insert(0, ROOT)
  from atm.cli import help_text

  print(help_text.format_document(), end='')
