"""Sentences of texts in the paper's languages."""

import re

# Closing quotes and brackets stay with the sentence they close, the French ones
# after a space too: « Oui ! » Else a » after a space opens: »Ja«. None is given
# back (+), so that no sentence ends within « Oui ! », dit-il.
_CLOSING = r'["\'”’“‘«»‹›)\]}」』）】〉》〕］｝｣]*+'
_CLOSING += rf'(?:\s[»›](?![^\s.,;:)]){_CLOSING})?+'


def _compile_end(spaced: str, unspaced: str) -> re.Pattern[str]:
  """Compiles where a sentence ends, with the whitespace behind it."""
  # Besides the full stop, `spaced` characters end one before whitespace,
  # `unspaced` ones whatever follows.
  # A search for one of a few characters is what makes the pattern fast; what
  # may stand around the terminator is asked only once it is found.
  return re.compile(
    rf'[.{spaced}{unspaced}\n](?:'
    rf'(?:(?<=[{spaced}])|(?<=\.)(?<!\b[A-ZÀ-ÖØ-Þ]\.)){_CLOSING}\s+'
    rf'|(?<=[{unspaced}])[!?…{unspaced}]*{_CLOSING}\s*'
    r'|(?<=\n)\s*)'
  )


_END = _compile_end('!?…', '。！？｡।॥؟۔')
# The tokenizer's NFKC makes a full-width ！ or ？ an ASCII one, so in texts
# that it decodes these need no space behind them. A full stop does, else 3.14
# would end a sentence.
_DECODED_END = _compile_end('…', '!?。！？｡।॥؟۔')


def split_sentences(text: str) -> list[str]:
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
  """Counts the sentences of a text; 0 if it is blank."""
  pieces = _END.split(text.lstrip())
  return len(pieces) - (not pieces[-1])


def drop_partial_sentence(text: str) -> str:
  """Cuts a decoded text to its last whole sentence, if any ends."""
  ends = [m.end() for m in _DECODED_END.finditer(f'{text} ')]
  return text[: ends[-1]].rstrip() if ends else text
