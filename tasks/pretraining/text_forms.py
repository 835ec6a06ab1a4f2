"""Written and spoken form of text, on which the paper trains (section 2.1)."""

import functools
import sys
import unicodedata

import numpy as np

from atm.messages import quote


@functools.cache
def _unpunctuated() -> np.ndarray:
  """Maps code points to themselves, punctuation of Unicode to a space."""
  table = np.arange(sys.maxunicode + 1, dtype='<u4')
  category = unicodedata.category
  table[[category(chr(c)).startswith('P') for c in range(len(table))]] = 32
  return table


@functools.cache
def _unpunctuated_ascii() -> dict[int, str]:
  return {c: chr(v) for c, v in enumerate(_unpunctuated()[:128].tolist())}


def without_punctuation(text: str) -> str:
  """Replaces each character of the categories P* by a space.

  Symbols (S*: $ + <) stay, and so do marks (M*), for Indic vowels are marks.
  """
  if text.isascii():
    return text.translate(_unpunctuated_ascii())
  codes = np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), '<u4')
  plain = _unpunctuated()[codes].tobytes()
  return plain.decode('utf-32-le', 'surrogatepass')


def spoken(text: str) -> str:
  """Returns the spoken form: no capitals, no punctuation, single spaces.

  Punctuation is what Unicode says it is (categories P*), in any script, and
  becomes a space; marks stay, for Indic vowels are marks, and capitals that
  have no small letter (𝐀, ℝ). A text of punctuation alone becomes ''.
  """
  if not isinstance(text, str):
    raise TypeError(f'text = {quote(text)}: expected a text')
  return ' '.join(without_punctuation(text.lower()).split())
