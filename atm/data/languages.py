"""The 12 languages of the paper and their names."""

from __future__ import annotations

from atm.messages import check_choice

LANGUAGES = {
  'ar': 'Arabic', 'de': 'German', 'en': 'English', 'es': 'Spanish',
  'fr': 'French', 'hi': 'Hindi', 'it': 'Italian', 'ja': 'Japanese',
  'mr': 'Marathi', 'pt': 'Portuguese', 'ta': 'Tamil', 'te': 'Telugu',
}  # fmt: skip


def language(code_or_name: str) -> str:
  """The English name of one of the 12 languages, as prompts write it.

  Raises:
    ValueError: it is none of them; says the nearest.
  """
  check_choice('language', code_or_name, (*LANGUAGES, *LANGUAGES.values()))
  return LANGUAGES.get(code_or_name, code_or_name)


def name_of(language: str) -> str:
  return LANGUAGES.get(language, language)
