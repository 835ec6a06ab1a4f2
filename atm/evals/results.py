"""Reads and writes results.json, all that an evaluation found."""

import json
import os
from typing import Any

from atm import fileio
from atm.parallel import distributed

RESULTS_FILE = 'results.json'


def read_results(folder: str) -> dict[str, Any]:
  """Reads results.json of a folder; raises FileNotFoundError without it."""
  path = os.path.join(folder, RESULTS_FILE)
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'folder = {folder!r}: expected a folder with {RESULTS_FILE}, which '
      '`atm eval` writes'
    )
  with open(path, encoding='utf-8') as f:
    return json.load(f)


def write_results(folder: str, results: dict[str, Any]) -> None:
  """Writes results.json; on process 0 only."""
  if distributed.is_main_process():
    os.makedirs(folder, exist_ok=True)
    text = json.dumps(results, ensure_ascii=False)
    fileio.write_atomically(os.path.join(folder, RESULTS_FILE), text)
