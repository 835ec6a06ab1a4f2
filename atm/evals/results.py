"""Reads results.json."""

from __future__ import annotations

import json
import os
from typing import Any

RESULTS = 'results.json'


def read(folder: str) -> dict[str, Any]:
  """results.json of a folder.

  Raises:
    FileNotFoundError: there is none.
  """
  path = os.path.join(folder, RESULTS)
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'folder = {folder!r}: expected a folder with {RESULTS}, which '
      '`atm eval` writes'
    )
  with open(path, encoding='utf-8') as f:
    return json.load(f)
