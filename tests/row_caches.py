"""Caches of rows that tests build of a few texts, and what they hold."""

import hashlib
import json
import os

from atm.data import cache, task_registry

LENGTHS = {'inputs': 64, 'targets': 64}
SIZES = task_registry.Lengths(64, 64)


def write_shipped_texts(folder):
  """Writes texts of three languages in several files and formats."""
  import atm_tasks

  udhr = os.path.join(os.path.dirname(atm_tasks.__file__), 'udhr')
  for language in ('en', 'ja', 'te'):
    with open(f'{udhr}/{language}.tsv', encoding='utf-8') as f:
      texts = [line.rstrip('\n').partition('\t')[2] for line in f]
    for part in range(3):
      if part == 2:
        lines = [json.dumps({'text': t}) for t in texts[part::3]]
        path = folder / f'{language}-{part}.jsonl'
      else:
        lines, path = texts[part::3], folder / f'{language}-{part}.txt'
      path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
  return folder


def build(directory, words, configure, text_dir, name='text', **changes):
  """Builds the rows of a folder of text; returns whether all are there."""
  settings = dict(
    mixture=name, vocabulary=words.path, lengths=LENGTHS,
    directory=str(directory), say=lambda text: None,
    configure_tasks=lambda vocabulary: configure(text_dir=str(text_dir)),
  )  # fmt: skip
  return cache.build(**{**settings, **changes})


def contents(directory) -> dict[str, str]:
  """Returns every file below a folder -> a hash of it."""
  hashes = {}
  for where, _, names in os.walk(directory):
    for name in names:
      path = os.path.join(where, name)
      with open(path, 'rb') as f:
        digest = hashlib.sha256(f.read()).hexdigest()
      hashes[os.path.relpath(path, directory)] = digest
  return hashes
