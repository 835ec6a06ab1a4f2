"""Finds a model's own code of a language by ISO code, BCP-47 tag or name.

Models write languages differently: German is `de_DE` in mBART, `de` in M2M-100
and `deu_Latn` in NLLB-200.
"""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Iterable

from atm.data.language_table import (
  MISNAMED,
  REGION_SCRIPTS,
  SAME_SCRIPTS,
  SCRIPT_NAMES,
  TABLE,
)
from atm.messages import check_text, find_nearest, quote

MOST_LISTED = 250  # characters of a list of codes in a message


@dataclasses.dataclass(frozen=True)
class LanguageTag:
  """A language code in parts.

  Attributes:
    language: the first code of its line in `language_table.TABLE`, or the code
      itself where the table lacks it.
    script: of ISO 15924, given or by the region; None: not said.
    region: of ISO 3166; None: not said, or mBART's 'XX'.
  """

  language: str
  script: str | None = None
  region: str | None = None


def find_language(name: str, value, known: Iterable[str]) -> str:
  """Returns the one of a model's own codes that a code or a name means.

  The model's own code comes first, then ISO 639-1 ('de'), ISO 639-3 ('deu'),
  either with a script ('deu_Latn', 'zh-Hans') or a region ('pt-BR'), and
  English names ('German', 'Traditional Chinese'), capitals or not. Where only
  a script tells several codes apart and none is named, the one that the table
  has first is taken: 'zh' is zho_Hans of zho_Hans and zho_Hant.

  Args:
    name: of the setting or argument, as a user writes it.
    value: what was given.
    known: the model's own codes.

  Raises:
    ValueError: it is no text, no language, none of the model's, or several of
      them; names the nearest, or all.
  """
  known = tuple(known)
  text = check_text(name, value, empty=False)
  if text in known:
    return text
  own = {_fold_code(code): code for code in reversed(known)}
  if (code := own.get(_fold_code(text))) is not None:
    return code
  tag = _parse_own(text)
  same = _by_language(known).get(tag.language, ()) if tag else ()
  fitting = [code for code in same if _fits(_parse_own(code), tag)]
  if not fitting:
    raise ValueError(
      f'{name} = {quote(text)}: {_explain(text, tag, same, known)}'
    )
  chosen = _choose(fitting, tag)
  if len(chosen) > 1:
    raise ValueError(
      f'{name} = {quote(text)}: this model has {" and ".join(chosen)}: '
      'expected one of them'
    )
  return chosen[0]


def describe_language(code: str) -> str:
  """Returns a code's English name, 'Chinese (Simplified)'; unknown: itself."""
  tag = _parse_own(code)
  row = _rows().get(tag.language) if tag else None
  if row is None:
    return code
  _, scripts, names = row
  if len(scripts) > 1 and tag.script in scripts:
    return f'{names[0]} ({SCRIPT_NAMES[tag.script]})'
  return names[0]


def join_codes(codes: Iterable[str], most: int = MOST_LISTED) -> str:
  """Lists codes for a message, as many as have room, and says how many."""
  codes = sorted(codes)
  text = ', '.join(codes)
  if len(text) <= most:
    return text
  return f'{text[:most].rpartition(", ")[0]}, ... ({len(codes)} languages)'


@functools.lru_cache(maxsize=1024)
def parse_language(text: str) -> LanguageTag | None:
  """Parses a code or an English name; None where it is neither."""
  if (tag := _parse_name(text)) is not None:
    return tag
  head, *parts = re.split('[-_]', re.sub('^__(.*)__$', r'\1', text.strip()))
  if not re.fullmatch('[A-Za-z]{2,3}', head):
    return None
  if parts and re.fullmatch('[A-Za-z]{3}', parts[0]):  # zh-yue is yue
    head = parts.pop(0)
  script = region = None
  for part in parts:
    if re.fullmatch('[A-Za-z]{4}', part) and script is region is None:
      script = SAME_SCRIPTS.get(part.title(), part.title())
    elif re.fullmatch('[A-Za-z]{2}|[0-9]{3}', part) and region is None:
      region = part.upper()
    else:
      return None
  language = _codes().get(head.lower(), head.lower())
  script = script or REGION_SCRIPTS.get((language, region))
  return LanguageTag(language, script, None if region == 'XX' else region)


def _parse_own(code: str) -> LanguageTag | None:
  """Parses a code, as NLLB has it, or a name."""
  return parse_language(MISNAMED.get(code, code))


def _parse_name(text: str) -> LanguageTag | None:
  """Parses an English name, with a script's beside it or not."""
  folded = _fold_name(text)
  if (language := _names().get(folded)) is not None:
    return LanguageTag(language)
  for script, title in SCRIPT_NAMES.items():
    title = title.lower()
    for form in (rf'(.+) \({title}(?: script)?\)', rf'{title} (.+)'):
      found = re.fullmatch(form, folded)
      if found and (language := _names().get(found[1])) is not None:
        return LanguageTag(language, script)
  return None


@functools.lru_cache(maxsize=16)
def _by_language(known: tuple[str, ...]) -> dict[str, list[str]]:
  """Returns the model's codes of each language."""
  found = {}
  for code in known:
    if (tag := _parse_own(code)) is not None:
      found.setdefault(tag.language, []).append(code)
  return found


def _fits(own: LanguageTag, wanted: LanguageTag) -> bool:
  """Tells whether a model's code has the script that is asked for, if any."""
  if wanted.script is None:
    return True
  if own.script is not None:
    return own.script == wanted.script
  row = _rows().get(own.language)  # a code without a script may mean any
  return row is None or wanted.script in row[1]


def _choose(codes: list[str], wanted: LanguageTag) -> list[str]:
  """Returns the best of a language's codes: by region, script, or no region."""
  tags = {code: _parse_own(code) for code in codes}
  scripts = wanted.script, *_rows().get(wanted.language, ((), (), ()))[1]
  preferences = [
    lambda tag: wanted.region is not None and tag.region == wanted.region,
    *(lambda tag, script=script: tag.script == script for script in scripts),
    lambda tag: tag.region is None,
  ]
  for is_better in preferences:
    codes = [code for code in codes if is_better(tags[code])] or codes
  return codes


def _explain(text: str, tag: LanguageTag | None, same, known) -> str:
  """Says why no code of a model fits, and which would."""
  row = _rows().get(tag.language) if tag else None
  if same:
    language = row[2][0] if row else tag.language
    return (
      f'this model has {language} in another script only: expected '
      f'{" or ".join(map(repr, same))}'
    )
  why = 'no language of this model'
  if row is not None:
    return f'{row[2][0]} is {why}. Known: {join_codes(known)}'
  forms = {describe_language(code): code for code in known}
  near = find_nearest(text, {*forms, *known})
  code = forms.get(near, near)
  if near is None:
    return f'{why}. Known: {join_codes(known)}'
  return f'{why}. Did you mean {code!r} ({describe_language(code)})?'


@functools.cache
def _rows() -> dict[str, tuple[tuple[str, ...], ...]]:
  """Returns language -> (codes, scripts, names)."""
  rows = {}
  for line in TABLE.strip().splitlines():
    codes, scripts, names = line.split(maxsplit=2)
    codes = tuple(codes.split(','))
    rows[codes[0]] = codes, tuple(scripts.split(',')), tuple(names.split('/'))
  return rows


@functools.cache
def _codes() -> dict[str, str]:
  """Returns any ISO code -> the language's first."""
  return {code: key for key, row in _rows().items() for code in row[0]}


@functools.cache
def _names() -> dict[str, str]:
  """Returns a folded English name -> the language's first code."""
  return {
    _fold_name(name): key for key, row in _rows().items() for name in row[2]
  }


def _fold_code(code: str) -> str:
  return re.sub('^__(.*)__$', r'\1', code.strip()).replace('-', '_').lower()


def _fold_name(name: str) -> str:
  """Returns a name in small letters, without accents and doubled spaces."""
  plain = unicodedata.normalize('NFKD', ' '.join(name.split())).casefold()
  return ''.join(c for c in plain if not unicodedata.combining(c))
