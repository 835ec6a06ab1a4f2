"""Forms of text. The paper (section 2.1) trains on written and spoken form."""

from __future__ import annotations

import functools
import re
import sys
import unicodedata

import numpy as np

# Closing quotes and brackets stay with the sentence they close, the French ones
# after a space too: « Oui ! » Else a » after a space opens: »Ja«. None is given
# back (+), so that no sentence ends within « Oui ! », dit-il.
_CLOSING = r'["\'”’“‘«»‹›)\]}」』）】〉》〕］｝｣]*+'
_CLOSING += rf'(?:\s[»›](?![^\s.,;:)]){_CLOSING})?+'
# A search for one of a few characters is what makes the pattern fast; what may
# stand around the terminator is asked only once it is found.
_END = re.compile(
  r'[.!?…。！？｡।॥؟۔\n](?:'
  rf'(?:(?<=[!?…])|(?<=\.)(?<!\b[A-ZÀ-ÖØ-Þ]\.)){_CLOSING}\s+'
  rf'|(?<=[。！？｡।॥؟۔])[!?…。！？｡।॥؟۔]*{_CLOSING}\s*'
  r'|(?<=\n)\s*)'
)


@functools.cache
def _unpunctuated() -> np.ndarray:
  """Code point -> itself, or a space where Unicode calls it punctuation."""
  table = np.arange(sys.maxunicode + 1, dtype='<u4')
  category = unicodedata.category
  table[[category(chr(c)).startswith('P') for c in range(len(table))]] = 32
  return table


@functools.cache
def _unpunctuated_ascii() -> dict[int, str]:
  return {c: chr(v) for c, v in enumerate(_unpunctuated()[:128].tolist())}


def without_punctuation(text: str) -> str:
  """The text with a space for each character of the categories P*.

  Symbols (S*: $ + <) stay, and so do marks (M*), for Indic vowels are marks.
  """
  if text.isascii():
    return text.translate(_unpunctuated_ascii())
  codes = np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), '<u4')
  plain = _unpunctuated()[codes].tobytes()
  return plain.decode('utf-32-le', 'surrogatepass')


def spoken(text: str) -> str:
  """Spoken form: no capitals, no punctuation, single spaces.

  Punctuation is what Unicode says it is (categories P*), in any script, and
  becomes a space; marks stay, for Indic vowels are marks, and capitals that
  have no small letter (𝐀, ℝ). A text of punctuation alone becomes ''.
  """
  return ' '.join(without_punctuation(text.lower()).split())


def sentences(text: str) -> list[str]:
  """Splits a text into sentences; joined by '' they are the text again.

  A sentence ends
    after . ! ? … and the quotes and brackets that close there, if whitespace
      or the end of the text follows; not after the full stop of a single Latin
      capital (J. Smith, U.S. law), though that may end a sentence too;
    after 。 ！ ？ ｡ । ॥ ؟ ۔, more of these or ! ? …, and what closes there,
      whatever follows;
    after a line.
  There is no list of abbreviations: `Dr. Smith` and `3. Oktober` are split.
  White space belongs to the sentence before it, at the beginning of a text to
  the first one.
  """
  first_letter = len(text) - len(text.lstrip())
  ends = [m.end() for m in _END.finditer(text, first_letter)]
  if not ends or ends[-1] < len(text):
    ends.append(len(text))
  return [text[a:b] for a, b in zip([0, *ends], ends) if b > a]


def count_sentences(text: str) -> int:
  """How many `sentences` a text has; 0 if it is blank."""
  pieces = _END.split(text.lstrip())
  return len(pieces) - (not pieces[-1])
