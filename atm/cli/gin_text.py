"""Parses gin text into statements, with gin's own parser and within bounds.

Nothing is opened, imported or bound here. The statements that `parse_text`
returns are what `gin_config` checks and what it applies: gin never gets text.
"""

import dataclasses
import math
import tokenize
import warnings

from atm.messages import one_line, quote
from gin import config_parser

# A configuration's own text is some 10 kB, in 2,000 tokens; gin's parser takes
# 10 us a token.
MOST_CHARACTERS = 128 * 1024
MOST_TOKENS = 20_000
# Brackets, and macros within macros: gin copies values recursively.
MOST_NESTED = 32
MOST_DIGITS = 64
MOST_TEXT = 4096
# gin's parser evaluates texts side by side anew with each: 20 ns a character.
MOST_JOINED = 16_000_000
JOIN_COST = 25  # characters

ARGUMENT = '--gin.'  # begins a binding of the command line
REQUIRED = ('gin.REQUIRED', 'REQUIRED')  # the one constant, as gin finds it


class UserError(Exception):
  """A mistake in what the user gave; printed as one line, no traceback."""

  def __init__(self, message: str):
    # A name in a stranger's file may hold what a terminal would obey.
    super().__init__(
      ''.join(
        c if c.isprintable() else c.encode('unicode_escape').decode()
        for c in one_line(message, 420)
      )
    )


@dataclasses.dataclass(frozen=True, repr=False)
class Reference:
  """Stands for `%name`, `@name` or `@name()` in a value.

  Attributes:
    name: with its scopes: 'scope/name'.
    is_macro: a `%name`, also `%gin.REQUIRED`.
    evaluate: a `@name()`, which gin calls when the value is used.
  """

  name: str
  is_macro: bool = False
  evaluate: bool = False

  def __repr__(self):
    """Returns the reference as gin writes it."""
    if self.is_macro:
      return f'%{self.name}'
    return f'@{self.name}' + '()' * self.evaluate

  @property
  def is_required(self) -> bool:
    return self.is_macro and self.name in REQUIRED

  @property
  def selector(self) -> str:
    """The name without its scopes."""
    return self.name.rpartition('/')[2]

  @property
  def scope(self) -> str:
    return self.name.rpartition('/')[0]


@dataclasses.dataclass(frozen=True)
class Binding:
  """A statement `scope/selector.parameter = value`, or `NAME = value`.

  Attributes:
    scope, selector: as written; of a macro, its scope and name.
    parameter: '' for a macro.
    value: literals, with a `Reference` for each reference.
    where: begins an error: 'FILE, line 3'.
    is_trusted: given on the command line, or in a file that comes with atm.
  """

  scope: str
  selector: str
  parameter: str
  value: object
  where: str
  is_trusted: bool

  @property
  def name(self) -> str:
    scope = f'{self.scope}/' if self.scope else ''
    end = f'.{self.parameter}' if self.parameter else ''
    return f'{scope}{self.selector}{end}'

  @property
  def file(self) -> str | None:
    """The path of the file that has the statement; None: no file has."""
    file, line, _ = self.where.rpartition(', line ')
    is_argument = self.where.startswith(ARGUMENT)
    return file if line and not is_argument else None

  @property
  def line(self) -> str:
    """The number of the statement's line in its file."""
    return self.where.rpartition(', line ')[2]


@dataclasses.dataclass
class Budget:
  """Counts down what may still be read of a configuration."""

  characters: int = MOST_CHARACTERS
  tokens: int = MOST_TOKENS
  joined: int = MOST_JOINED


class _References(config_parser.ParserDelegate):
  """Builds a `Reference` where gin's own delegate would look a name up."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return Reference(scoped_configurable_name, evaluate=evaluate)

  def macro(self, macro_name):
    return Reference(macro_name, is_macro=True)


class _BoundedParser(config_parser.ConfigParser):
  """Parses as gin does; raises SyntaxError where a bound is passed."""

  def __init__(self, text: str, budget: Budget, where: str):
    self._budget, self._where = budget, where
    self._keys = []  # of the innermost dict
    self._nested = self._joined = self._pieces = 0
    super().__init__(text, _References())

  def _advance_one_token(self):
    # gin's parser takes every token from here before it acts on it.
    try:
      super()._advance_one_token()
    except StopIteration:
      raise SyntaxError('unexpected end') from None
    kind, string = self.current_token[:2]
    self._budget.tokens -= 1
    if self._budget.tokens < 0:
      self._raise_syntax_error(f'over {MOST_TOKENS:,} words and signs')
    if kind == tokenize.OP:
      self._nested += (string in '([{') - (string in ')]}')
      if self._nested > MOST_NESTED:
        self._raise_syntax_error(f'brackets nested over {MOST_NESTED} deep')
    elif kind == tokenize.NUMBER and len(string) > MOST_DIGITS:
      self._raise_syntax_error(f'a number of over {MOST_DIGITS} digits')
    self._count_joined(kind, string)

  def _maybe_parse_container(self):
    outer, self._keys = self._keys, []
    found = super()._maybe_parse_container()
    self._keys = outer
    return found

  def _parse_dict_item(self):
    # gin would keep the last of equal keys, and say nothing.
    key, value = super()._parse_dict_item()
    if key in self._keys:
      raise UserError(f'{self._where}: key {quote(key)} is there twice')
    self._keys.append(key)
    return key, value

  def _count_joined(self, kind: int, string: str) -> None:
    """Bounds the work for texts side by side."""
    if kind == tokenize.STRING:
      self._joined += len(string)
      self._pieces += 1
      self._budget.joined -= self._joined + JOIN_COST * self._pieces
      if self._budget.joined < 0:
        self._raise_syntax_error('too many or too long texts side by side')
    elif kind not in (tokenize.NL, tokenize.COMMENT):
      self._joined = self._pieces = 0


def parse_text(
  text: str, where: str, budget: Budget | None = None, is_trusted: bool = True
) -> list:
  """Returns the statements of a gin text: `Binding`s, gin's imports, includes.

  Args:
    text: newlines of any kind.
    where: begins errors: a file's path or '--gin.NAME=...'.
    budget: of all texts of the configuration.
    is_trusted: see `Binding`.

  Raises:
    UserError: it is not gin, passes a bound, or has a value of another kind
      than settings have.
  """
  budget = budget or Budget()
  text = text.replace('\r\n', '\n').replace('\r', '\n')
  budget.characters -= len(text)
  if budget.characters < 0:
    raise UserError(
      f'{where}: over {MOST_CHARACTERS:,} characters of gin in all'
    )
  _check_characters(text, where)
  is_file = not where.startswith(ARGUMENT)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # of '\d' in a text
      parsed = list(_BoundedParser(text, budget, where))
  except (SyntaxError, tokenize.TokenError, TypeError, ValueError) as e:
    what = one_line(getattr(e, 'msg', None) or str(e.args[0]), 200).rstrip('.')
    line = f', line {e.lineno}' if getattr(e, 'lineno', None) else ''
    if not is_file:
      line, what = '', f'{what}. A string needs quotes: --gin.NAME="\'text\'"'
    raise UserError(f'{where}{line}: not gin: {what}') from None
  statements = []
  for statement in parsed:
    place = where
    if is_file:
      place = f'{where}, line {statement.location.line_num}'
    if isinstance(statement, config_parser.BindingStatement):
      statement = Binding(*statement[:4], place, is_trusted)
      _check_value(statement.value, place)
    if not isinstance(statement, config_parser.BlockDeclaration):
      statements.append((statement, place))
  return statements


def _check_characters(text: str, where: str) -> None:
  """Raises UserError for characters that no text file has."""
  if '\0' in text:
    raise UserError(f'{where}: a NUL character: not gin')
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise UserError(
      f'{where}: character {e.start} is half of a surrogate pair, or a byte '
      'that is not UTF-8'
    ) from None


def _check_value(value, where: str) -> None:
  """Raises UserError for a value of a kind that no setting has."""
  if isinstance(value, list | tuple):
    for item in value:
      _check_value(item, where)
  elif isinstance(value, dict):
    for key, item in value.items():
      if not isinstance(key, str | int | float | None):
        raise UserError(
          f'{where}: key {quote(key)}: expected a text or a number'
        )
      _check_value(key, where)
      _check_value(item, where)
  elif isinstance(value, str):
    if len(value) > MOST_TEXT:
      raise UserError(f'{where}: a text of over {MOST_TEXT:,} characters')
  elif isinstance(value, float):
    if math.isinf(value):
      raise UserError(f'{where}: a number too large for a float')
  elif not isinstance(value, Reference | int | None):
    raise UserError(
      f'{where}: {quote(value)}: expected a text, number, True, False, None, '
      'list, tuple, dict or reference'
    )


def find_references(value) -> list[Reference]:
  """Lists the references in a value."""
  if isinstance(value, dict):
    value = list(value.values())
  if isinstance(value, list | tuple):
    return [r for item in value for r in find_references(item)]
  return [value] if isinstance(value, Reference) else []


def nesting(value) -> int:
  """Returns how many lists, tuples and dicts are within each other."""
  if isinstance(value, dict):
    value = list(value.values())
  if isinstance(value, list | tuple):
    return 1 + max(map(nesting, value), default=0)
  return 0


def count_items(value) -> int:
  """Returns the number of literals, containers and references in a value."""
  if isinstance(value, dict):
    value = [*value, *value.values()]
  if isinstance(value, list | tuple):
    return 1 + sum(map(count_items, value))
  return 1


def replace_references(value, replace):
  """Returns a value with `replace(reference)` for each reference."""
  if isinstance(value, Reference):
    return replace(value)
  if isinstance(value, dict):
    return {k: replace_references(v, replace) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return type(value)(replace_references(v, replace) for v in value)
  return value
