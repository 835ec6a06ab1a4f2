"""Forms of text. The paper (section 2.1) trains on written and spoken form."""

import unicodedata


def spoken(text: str) -> str:
  """Spoken form: no capitals, no punctuation, single spaces.

  Punctuation is what Unicode says it is (categories P*), in any script, and
  becomes a space; marks stay, for Indic vowels are marks. A text of
  punctuation alone becomes ''.
  """
  letters = (
    ' ' if unicodedata.category(c).startswith('P') else c for c in text.lower()
  )
  return ' '.join(''.join(letters).split())
