"""The 12 languages of the paper and their names."""

from atm import messages

LANGUAGES = {
  'ar': 'Arabic', 'de': 'German', 'en': 'English', 'es': 'Spanish',
  'fr': 'French', 'hi': 'Hindi', 'it': 'Italian', 'ja': 'Japanese',
  'mr': 'Marathi', 'pt': 'Portuguese', 'ta': 'Tamil', 'te': 'Telugu',
}  # fmt: skip
LANGUAGE_CODES = tuple(LANGUAGES)


def name_language(code: str) -> str:
  """Returns the English name that belongs to a code; other text unchanged."""
  return LANGUAGES.get(code, code)


def check_language(code_or_name: str) -> None:
  """Raises ValueError unless given a code or a name of the 12 languages."""
  known = (*LANGUAGES, *LANGUAGES.values())
  messages.check_choice('language', code_or_name, known)
