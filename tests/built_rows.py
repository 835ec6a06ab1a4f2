"""Rows of a mixture that tests build and open, and texts to build them of."""

import numpy as np

from atm.data import batches, cache, task_registry

LENGTHS = task_registry.Lengths(64, 64)


def build_parts(name, split, words, folder, passes=1, lengths=LENGTHS):
  """Returns the parts of a mixture, their rows built in `folder` first."""
  sizes = {'inputs': lengths.inputs, 'targets': lengths.targets}
  cache.build(
    name, words.path, sizes, str(folder), (split,), passes,
    say=lambda text: None,
  )  # fmt: skip
  return batches.load_parts(name, split, words, lengths, str(folder), passes)


def write_texts(folder, **files):
  """Writes files into a folder, en_txt='...' as en.txt; returns its path."""
  for name, content in files.items():
    (folder / name.replace('_', '.')).write_text(content, encoding='utf-8')
  return str(folder)


def same_batches(a, b):
  """Tells whether two batches have equal arrays."""
  return a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)


def share_of_host(size, host, hosts):
  """Returns the rows of one of several hosts that hold a batch together."""
  return np.arange(size).reshape(hosts, -1)[host]
