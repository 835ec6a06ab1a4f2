"""Folders of text by language, and of pairs: which files are read.

A file that a user meant to be read, but would not be, is an error or is said.
"""

import collections
import functools
import glob
import multiprocessing
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

from atm import storage
from atm.data import text_lines
from atm_tasks.pretraining import records

_LANGUAGE = r'[a-z]{2,3}(?:_[A-Za-z]+)?'
_MOST_NAMES = 5  # in a line


def find_files(
  folder: str, language: str | None = None
) -> dict[str, list[str]]:
  """Finds language -> its files, sorted; hidden ones are left out.

  Args:
    folder: a folder, of an object store, too.
    language: the one to look for; None: all that are there.
  """
  found = collections.defaultdict(list)
  remote = storage.is_remote(folder)
  for name in (_list_objects if remote else _list_local)(folder, language):
    match = re.fullmatch(rf'({_LANGUAGE})(?:/.+|[.-][^/]+)', name)
    path = os.path.join(folder, name)
    if match and language in (None, match[1]) and records.detect_format(name):
      if remote or os.path.isfile(path):
        found[match[1]].append(path)
  return {k: sorted(found[k]) for k in sorted(found)}


def _list_local(folder: str, language: str | None) -> Iterator[str]:
  """Yields the paths in a folder that may be text of a language."""
  begin = '*' if language is None else glob.escape(language)
  for pattern in (f'{begin}[.-]*', f'{begin}/**'):
    yield from glob.glob(pattern, root_dir=folder, recursive=True)


def _list_objects(folder: str, language: str | None) -> Iterator[str]:
  """Yields the paths in a folder of an object store, as `_list_local` does."""
  for name in storage.list_names(folder):
    if not re.fullmatch(_LANGUAGE, name):
      yield name
    elif language in (None, name):
      for inner in storage.find_objects(os.path.join(folder, name)):
        if not any(part.startswith('.') for part in inner.split('/')):
          yield f'{name}/{inner}'


def list_languages(folder: str) -> list[str]:
  """Lists the languages a folder has text of, and says what is not read.

  Raises:
    ValueError: it has none, or text of a language in capitals.
  """
  found = find_files(folder)
  taken = {
    storage.relative(p, folder) for paths in found.values() for p in paths
  }
  taken |= {name.split(os.sep)[0] for name in taken}
  unread = list_unread(folder, taken)
  for name in unread:
    language = re.match(r'[A-Za-z]{2}(?=[.-]|$)', name)
    place = os.path.join(folder, name)
    if language and (records.detect_format(name) or storage.is_folder(place)):
      nearest = language[0].lower() + name[2:]
      if nearest != name:
        raise ValueError(
          f'TEXT_DIR = {folder!r}: {name} is not read: languages are written '
          f'in small letters. Did you mean {nearest!r}?'
        )
  if not found:
    raise ValueError(
      f'TEXT_DIR = {folder!r}: no LANG.txt, LANG.jsonl[.gz|.zst], '
      'LANG.parquet or LANG.tfrecord there' + _name_some(unread, '; there are ')
    )
  say_unread(f'TEXT_DIR = {folder!r}', tuple(unread))
  return list(found)


def list_unread(folder: str, taken: Iterable[str]) -> list[str]:
  """Lists names in a folder but hidden ones and those that are taken."""
  names = storage.list_names(folder) if storage.is_folder(folder) else []
  return sorted({n for n in names if not n.startswith('.')} - {*taken})


@functools.cache
def say_unread(setting: str, names: tuple[str, ...]) -> None:
  """Says once, on standard error, which files of a folder are not read."""
  if names and multiprocessing.parent_process() is None:
    text = _name_some(names, ' not read: ')
    print(f'atm: {setting}:{text}', file=sys.stderr)


def _name_some(names: Sequence[str], begin: str) -> str:
  """Returns some of the names behind `begin`, '' without any."""
  more = f' and {len(names) - _MOST_NAMES:,} more'
  some = ', '.join(name[:60] for name in names[:_MOST_NAMES])
  return begin + some + more * (len(names) > _MOST_NAMES) if names else ''


def check_copies(setting: str, paths: Iterable[str]) -> None:
  """Raises ValueError where two names of text differ in their ending alone."""
  # it.txt beside it.txt.gz is one text, which would be read twice.
  seen: dict[tuple[str, str], str] = {}
  for path in paths:
    kind, _ = text_lines.detect_text_format(path)
    key = text_lines.strip_endings(path), kind
    if kind and (other := seen.setdefault(key, path)) != path:
      names = ' and '.join(map(os.path.basename, (other, path)))
      raise ValueError(
        f'{setting}: {names} would be read twice, as one text: leave one there'
      )
