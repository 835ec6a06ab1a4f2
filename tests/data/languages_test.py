"""The 12 languages."""

from atm.data import languages


def test_the_twelve_languages():
  codes = 'ar en fr de hi it ja mr pt es ta te'.split()
  assert set(languages.LANGUAGES) == set(codes)
  assert [languages.name_language(c) for c in ('ja', 'Telugu')] == [
    'Japanese',
    'Telugu',
  ]
