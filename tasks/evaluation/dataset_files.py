"""Finds and reads evaluation sets; `datasets` lists them.

A set is looked for in DATA_DIR first, as the files of its release, then as a
TFDS data set that is already prepared. Nothing is downloaded. A part of a set
is a language, or a direction such as 'en_de'; splits are called train,
validation and test, whatever the release calls them.
"""

import dataclasses
import functools
import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from atm import storage
from atm.evals.task import MissingData
from atm_tasks.evaluation.readers import RawExample
from atm_tasks.pretraining import sources

Paths = Sequence[str]
# Which files a part's split has: alternatives, each of paths or globs.
Files = Callable[[str, str], Sequence[Paths]]


@dataclasses.dataclass(frozen=True)
class DataSet:
  """One evaluation set.

  Attributes:
    name: 'xnli'.
    folder: in DATA_DIR, or of the package.
    url, licence: where to get it, and what its release says.
    splits: our split -> the release's name of it.
    files: (part, release's split) -> alternatives, the first the usual one.
    read: (paths, part, release's split) -> examples.
    tfds: part -> the name of the TFDS data set, '' where there is none.
    convert: (TFDS example, part) -> examples as `read` gives them.
  """

  name: str
  folder: str
  url: str
  licence: str
  splits: Mapping[str, str]
  files: Files
  read: Callable[[Paths, str, str], Iterator[RawExample]]
  tfds: Callable[[str], str] = lambda part: ''
  convert: Callable[[Mapping, str], Sequence[RawExample]] = lambda e, part: [e]


@dataclasses.dataclass(frozen=True)
class FoundSplit:
  """A split that is there.

  Attributes:
    paths: its files, or its one TFDS folder.
    examples: reads it anew.
  """

  paths: Paths
  examples: Callable[[], Iterator[RawExample]]

  @property
  def places(self) -> Paths:
    """The paths, or the folder of many."""
    if len(self.paths) <= 3:
      return self.paths
    return [os.path.join(os.path.commonpath(self.paths), '...')]


class MissingSplit(MissingData):
  """A split that is nowhere.

  Attributes:
    why, where: what is missing; where to get it and where to put it.
    files: the files that are missing, of the usual layout.
  """

  def __init__(self, why: str, where: str, files: Paths):
    super().__init__(f'{why}\n{where}')
    self.why, self.where, self.files = why, where, files


def find_split(
  data: DataSet, part: str, split: str, data_dir: str, tfds_dir: str | None
) -> FoundSplit:
  """Finds a split; reads none of it.

  Raises:
    Missing: it is neither in `data_dir` nor prepared in `tfds_dir`.
  """
  named = data.splits[split]
  root = os.path.join(data_dir, data.folder)
  here = _fetch_folder(root) if storage.is_remote(root) else root
  layouts = data.files(part, named)
  for patterns in layouts:
    found = [glob_paths(here, pattern) for pattern in patterns]
    if all(found):
      paths = sum(found, [])
      read = functools.partial(data.read, paths, part, named)
      return FoundSplit(paths, read)
  where = f'Get it from {data.url} ({data.licence}) and put it in {root}/.'
  if name := data.tfds(part):
    folder, hint = sources.find_prepared(name, tfds_dir)
    if folder:
      read = functools.partial(_read_tfds, data, folder, part, split)
      return FoundSplit([folder], read)
    where += f' Or as TFDS {name!r}: {hint}.'
  files = [os.path.join(root, p) for p in layouts[0] if not glob_paths(here, p)]
  named = ', '.join(path + _find_nearest(path) for path in files)
  why = f'{data.name} ({part}, {split}): not there: {named}'
  raise MissingSplit(why, where, files)


@functools.cache  # many tasks read parts of one set
def _fetch_folder(path: str) -> str:
  """Returns a local copy of a set's folder; the path itself without one."""
  return storage.fetch(path) if storage.is_folder(path) else path


def _find_nearest(path: str) -> str:
  """Returns a hint at a file whose name differs in capitals or its end."""
  folder, name = os.path.split(path)
  names = storage.list_names(folder) if storage.is_folder(folder) else []
  near = [n for n in names if n.lower().startswith(name.lower())]
  return f' (is {min(near)!r} meant?)' if near else ''


def glob_paths(root: str, pattern: str) -> list[str]:
  """Returns the paths of a file, folder or glob, sorted."""
  return sorted(glob.glob(os.path.join(glob.escape(root), pattern)))


def _read_tfds(data: DataSet, folder: str, part: str, split: str):
  """Yields the examples of a prepared TFDS data set, in its own order."""
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(storage.fetch(folder))
  if split not in builder.info.splits:
    raise ValueError(
      f'TFDS {folder}: no split {split!r}. Known: '
      f'{", ".join(builder.info.splits)}.'
    )
  rows = builder.as_dataset(split=split, shuffle_files=False)
  for number, row in enumerate(rows.as_numpy_iterator()):
    row = _to_python(row, builder.info.features)
    yield from data.convert({'id': str(number), **row}, part)


def _to_python(value, feature):
  """Converts a TFDS value: bytes to str, arrays to lists, labels to names."""
  if isinstance(value, dict):
    inner = dict(feature.items()) if hasattr(feature, 'items') else {}
    return {k: _to_python(v, inner.get(k)) for k, v in value.items()}
  if hasattr(feature, 'int2str'):
    return feature.int2str(value) if value >= 0 else None
  if isinstance(value, np.ndarray):
    return [_to_python(v, None) for v in value.tolist()]
  if isinstance(value, bytes):
    return value.decode('utf-8')
  return value.item() if isinstance(value, np.generic) else value
