"""Drops sentences which share a 13-gram with evaluation texts (section 2).

The paper does not say what a word is, nor where a 13-gram may begin and end.
Here:

  words      of the spoken form, split at spaces, with case folded (so that ß is
             ss); in scripts written without spaces (Han, Kana, Thai, Lao,
             Khmer, Myanmar) each character is a word. Texts are compared as
             they are encoded: é as one character is not e and a mark.
  13-grams   of a training text within each of its sentences; of an evaluation
             text within all of it. A text or a sentence of fewer than 13 words
             has none.

So neither capitals, punctuation nor spaces change what is met. The index is
meant for the written text: it has the sentences, which its spoken form lost.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from atm import storage
from atm.data import text_lines, text_reader
from atm.data.sentences import split_sentences
from atm.messages import check_number
from atm_tasks.pretraining.text_forms import without_punctuation

ENDINGS = ('.txt', '.jsonl', '.tsv')  # and others of `text_lines`
# First and last code points of scripts written without spaces.
_UNSPACED = (
  (0x0E00, 0x0EFF),  # Thai, Lao
  (0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F),  # Myanmar
  (0x1780, 0x17FF),  # Khmer
  (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3038, 0x303B),
  (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
  (0x3031, 0x3035), (0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F),
  (0x1AFF0, 0x1B16F),  # Kana, from 0x3031 on
)  # fmt: skip
_ALONE = np.zeros(sys.maxunicode + 1, bool)
for _first, _last in _UNSPACED:
  _ALONE[_first : _last + 1] = True


def _space_characters(text: str) -> str:
  """Sets a space before and after each character that is a word."""
  codes = np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), '<u4')
  if codes.max(initial=0) < _UNSPACED[0][0]:
    return text
  alone = _ALONE[codes].astype(np.int64)
  ends = np.cumsum(1 + 2 * alone)
  spread = np.full(ends[-1], 32, '<u4')
  spread[ends - 1 - alone] = codes
  return spread.tobytes().decode('utf-32-le', 'surrogatepass')


def split_words(text: str) -> list[str]:
  """Splits into the words that are compared, see the head of this file."""
  plain = without_punctuation(text.casefold())
  return (plain if plain.isascii() else _space_characters(plain)).split()


def _ngrams(words: list[str], n: int, step: int = 1) -> Iterator[bytes]:
  """Yields each n words in a row, from every `step`-th word."""
  for i in range(0, len(words) - n + 1, step):
    yield ' '.join(words[i : i + n]).encode('utf-8', 'surrogatepass')


def _hash_ngrams(words: list[str], n: int) -> np.ndarray:
  """Hashes each n-gram: the first 64 bits of BLAKE2b."""
  blake2b = hashlib.blake2b
  digests = [blake2b(g, digest_size=8).digest() for g in _ngrams(words, n)]
  return np.frombuffer(b''.join(digests), '<u8')


def _set_bits(places: np.ndarray, size: int) -> bytes:
  """Makes a field of `size` bits (at least 8) with those at `places` set."""
  field = np.zeros(size // 8, np.uint8)
  np.bitwise_or.at(field, places >> 3, (1 << (places & 7)).astype(np.uint8))
  return field.tobytes()


def _inner_gram(n: int) -> tuple[int, int]:
  """Returns (k, step): each n-gram holds a k-gram at a multiple of step."""
  k = n // 2 + 1
  return k, n - k + 1


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
  """The n-grams of evaluation sets; made by `build` or `read`.

  Memory: 10 bytes an n-gram and set (a hash and the set's number), and 8 to 16
  bytes more for the field of bits that spares most texts the hashing.

  N-grams are compared by 64 bits of BLAKE2b: one of a training text that is not
  in the index is taken for one with probability len(index) / 2**64.

  Attributes:
    n: words in a row.
    names: the evaluation sets, sorted.
    sha256: of n, the names and the n-grams of each set, in whatever order they
      came.
  """

  n: int
  names: tuple[str, ...]
  sha256: str
  _hash: np.ndarray  # sorted; as often as there are sets with that n-gram
  _set: np.ndarray  # the number of the set
  _seen: bytes  # the bits of k-grams, see `_candidates`
  _distinct: int

  @classmethod
  def build(cls, sets: dict[str, Iterable[str]], n: int = 13) -> Index:
    """Indexes texts by the name of their evaluation set.

    Raises:
      ValueError: n is not a positive integer; a set is a string, not texts.
    """
    n = check_number('n', n, least=1)
    names = tuple(sorted(sets))
    hashes, owners = [np.zeros(0, '<u8')], [np.zeros(0, '<u2')]
    short = [np.zeros(0, np.int64)]
    for number, name in enumerate(names):
      if isinstance(sets[name], str):
        raise ValueError(f'sets[{name!r}] is a string: expected texts')
      found, places = _hash_texts(sets[name], n)
      hashes.append(found)
      owners.append(np.full(len(found), number, '<u2'))
      short.append(places)
    hashes, owners, short = map(np.concatenate, (hashes, owners, short))
    order = np.argsort(hashes, kind='stable')
    hashes, owners = hashes[order], owners[order]
    sha256 = hashlib.sha256(repr((n, names)).encode('utf-8', 'surrogatepass'))
    sha256.update(hashes.tobytes())
    sha256.update(owners.tobytes())
    distinct = len(np.unique(hashes))
    size = min(1 << 32, max(64, 1 << (64 * distinct - 1).bit_length()))
    seen = _set_bits(short & (size - 1), size)
    return cls(n, names, sha256.hexdigest(), hashes, owners, seen, distinct)

  @classmethod
  def read(cls, paths: dict[str, str], n: int = 13) -> Index:
    """Builds an index from files: each path is a file, a glob or a folder.

    A text is a line of a .txt, a cell of a .tsv, a string anywhere in the JSON
    of a line of a .jsonl or .json; each may be compressed.

    Raises:
      ValueError: no such files, or no text in them; a line that is not UTF-8
        or not JSON.
    """
    return cls.build({k: iterate_texts(k, v) for k, v in paths.items()}, n)

  def __len__(self) -> int:
    return self._distinct

  @property
  def nbytes(self) -> int:
    return self._hash.nbytes + self._set.nbytes + len(self._seen)

  def clean(self, text: str) -> tuple[str, dict[str, int]]:
    """Drops the sentences which share an n-gram with an evaluation set.

    Returns:
      (the other sentences as they stood, set -> how many sentences share an
      n-gram with it); the very same text and {} where none does. A sentence
      counts for each such set.
    """
    if not self._matching_sets(split_words(text)):
      return text, {}
    kept, dropped = [], Counter()
    for sentence in split_sentences(text):
      matching = self._matching_sets(split_words(sentence))
      dropped.update(self.names[i] for i in matching)
      if not matching:
        kept.append(sentence)
    return (''.join(kept), dict(dropped)) if dropped else (text, {})

  def _matching_sets(self, words: list[str]) -> set[int]:
    """Returns the numbers of the sets with which words share an n-gram."""
    k, n = _inner_gram(self.n)[0], self.n
    near = [
      _hash_ngrams(words[max(0, p + k - n) : p + n], n)
      for p in self._candidates(words)
    ]
    if not near:
      return set()
    hashes = np.concatenate(near)
    first = np.searchsorted(self._hash, hashes, 'left')
    last = np.searchsorted(self._hash, hashes, 'right')
    hit = np.flatnonzero(last > first)
    sets = (self._set[first[i] : last[i]].tolist() for i in hit)
    return set().union(*sets)

  def _candidates(self, words: list[str]) -> list[int]:
    """Finds multiples of `step` at which a k-gram may be one of the index.

    Each n-gram of the text holds just one such k-gram whole, so an n-gram near
    none of them is not in the index.
    """
    if len(words) < self.n:
      return []
    k, step = _inner_gram(self.n)
    seen, mask = self._seen, 8 * len(self._seen) - 1
    places = [zlib.crc32(g) & mask for g in _ngrams(words, k, step)]
    return [
      i * step for i, p in enumerate(places) if seen[p >> 3] >> (p & 7) & 1
    ]


def _hash_texts(texts: Iterable[str], n: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns (distinct hashes of n-grams, distinct CRC-32 of their k-grams)."""
  hashes, short = [np.zeros(0, '<u8')], [np.zeros(0, np.int64)]
  k, _ = _inner_gram(n)
  for text in texts:
    found = split_words(text)
    if len(found) >= n:
      hashes.append(_hash_ngrams(found, n))
      short.append(np.array([zlib.crc32(g) for g in _ngrams(found, k)]))
  return np.unique(np.concatenate(hashes)), np.unique(np.concatenate(short))


def iterate_texts(name: str, path: str) -> Iterator[str]:
  """Yields the texts of an evaluation set, see `Index.read`.

  The files are looked for when the first text is asked for.
  """
  pattern = glob.escape(path) if storage.exists(path) else path
  if storage.is_folder(path):
    pattern = os.path.join(pattern, '*')
  found = storage.find_paths(pattern)
  # Beside data sets often lies a .json that tells of them; named, it is read.
  files = sorted(
    file
    for file in found
    if storage.is_file(file)
    and text_lines.detect_text_format(file)[0]
    and (file == path or not re.search(r'\.json(\.|$)', file.lower()))
  )
  if not files:
    raise ValueError(
      f'evaluation set {name!r}: no {", ".join(ENDINGS)} file in {path!r}'
    )
  empty = True
  for file in files:
    for text in read_file_texts(file):
      empty = False
      yield text
  if empty:
    raise ValueError(f'evaluation set {name!r}: no text in {path!r}')


def read_file_texts(path: str) -> Iterator[str]:
  """Yields the texts of one file but blank ones, see `Index.read`."""
  kind, _ = text_lines.detect_text_format(path)
  if kind == 'jsonl':
    found = (x for _, x in text_reader.read_values(path, _parse_strings))
  else:
    lines = text_reader.read_text_lines(path)
    found = (x.split('\t') if kind == 'tsv' else (x,) for _, x in lines)
  for texts in found:
    yield from (text for text in texts if text.strip())


def _parse_strings(text: str) -> list[str]:
  """Returns the strings in a line of JSON; raises BadRecord for no text."""
  found = list(_find_strings(text_reader.parse_value(text)))
  for string in found:
    text_reader.check_strings('a string', string)
  return found


def _find_strings(value) -> Iterator[str]:
  """Yields the strings in a JSON value, not the keys of objects."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, (list, dict)):
    for inner in value.values() if isinstance(value, dict) else value:
      yield from _find_strings(inner)
