"""Errors and texts that all rooms share: checks of settings, nearest names."""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import operator
import os
import traceback
import types
import typing
from collections.abc import Callable, Mapping, Sequence, Set

from atm import DISTRIBUTION

MOST_INT32 = 2**31 - 1  # programs count in int32
# Have elements, but are no lists of a user's.
NO_LISTS = (str, bytes, bytearray, memoryview, Mapping, Set)
ATM = os.path.dirname(os.path.abspath(__file__))


class CrashNote(str):
  """A note that atm adds to an error; libraries add others."""


def list_frames(error: BaseException) -> list[str]:
  """Returns atm's lines that an error went through, the innermost first."""
  return [
    f'in {frame.name}, atm/{os.path.relpath(frame.filename, ATM)}'
    f':{frame.lineno}'
    for frame in reversed(traceback.extract_tb(error.__traceback__))
    if frame.filename.startswith(ATM + os.sep)
  ]


def one_line(error: BaseException | str, width: int = 300) -> str:
  """Returns head and tail of an error's text; TensorStore's are pages long."""
  text = ' '.join(str(error).split()) or type(error).__name__
  text = text.partition(' [tensorstore_spec')[0]
  if len(text) <= width:
    return text
  return f'{text[: width // 3]} ... {text[-2 * width // 3 :]}'


def clock_text(seconds: float) -> str:
  """Formats seconds as m:ss, or as h:mm:ss."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{f"{hours}:{minutes:02d}" if hours else minutes}:{seconds:02d}'


def missing_extra(what: str, extra: str) -> str:
  """Returns 'WHAT: pip install ...', with the extra of setup.py that has it."""
  return f"{what}: pip install '{DISTRIBUTION}[{extra}]'"


class MissingExtraError(ModuleNotFoundError):
  """An optional package is not installed; one line names the extra."""


def find_nearest(name: str, known) -> str | None:
  """Returns the nearest of some names, capitals or not, or None."""
  folded = {k.lower(): k for k in sorted(known, reverse=True)}
  lower = name[:200].lower()
  close = difflib.get_close_matches(lower, sorted(folded), n=1, cutoff=0.6)
  return folded[close[0]] if close else None


def did_you_mean(name: str, known, every: bool = False) -> str:
  """Returns ' Did you mean X?' for the nearest; else, or if `every`, names."""
  known = sorted(known)
  near = find_nearest(name, known)
  hint = f' Did you mean {quote(near)}?' if near else ''
  if hint and not every:
    return hint
  names, most = ', '.join(known), 300
  if len(names) > most:  # such as of all tensors of a model
    names = f'{names[:most].rpartition(", ")[0]} ... ({len(known):,} names)'
  return f'{hint} Known: {names}.'


def quote(value, width: int = 80) -> str:
  """Returns the `repr` of a value on one line, its middle left out if long."""
  try:
    text = ' '.join(repr(value).splitlines())  # an array's has several
  except Exception as e:  # a whole number of 5,000 digits has none
    text = f'<{type(value).__name__}: {one_line(e, 60)}>'
  # ASCII escapes, so that half a surrogate pair can be printed, too.
  text = text.encode('utf-8', 'backslashreplace').decode()
  if len(text) <= width:
    return text
  return f'{text[: width * 2 // 3]}...{text[-width // 3 :]}'


def check_choice(name: str, value, known, optional: bool = False):
  """Returns `value`; raises ValueError unless it is one of `known`.

  Args:
    name: of the setting or argument, as a user writes it.
    value: what was given.
    known: texts.
    optional: take None, too.
  """
  if optional and value is None:
    return None
  if not isinstance(value, str) or value not in known:
    near = did_you_mean(value if isinstance(value, str) else '', known)
    raise ValueError(f'{name} = {quote(value)}.' + near)
  return str(value)


def check_flag(name: str, value) -> bool:
  """Returns True or False; raises ValueError for anything else."""
  if type(value).__name__ not in ('bool', 'bool_'):  # numpy's, too
    raise ValueError(f'{name} = {quote(value)}: expected True or False')
  return bool(value)


def check_text(
  name: str, value, optional: bool = False, empty: bool = True
) -> str | None:
  """Returns a text that UTF-8 can hold, without NUL; numpy's as Python's.

  Args:
    name: of the setting or argument, as a user writes it.
    value: what was given.
    optional: take None, too.
    empty: take ''.

  Raises:
    ValueError: it is no text, has NUL or half of a surrogate pair, or is ''.
  """
  if optional and value is None:
    return None
  also = ', or None' if optional else ''
  if not isinstance(value, str):
    raise ValueError(f'{name} = {quote(value)}: expected a text{also}')
  try:
    value.encode()
  except UnicodeEncodeError as e:
    raise ValueError(
      f'{name} = {quote(value)}: character {e.start} is half of a surrogate '
      'pair, which is no text'
    ) from None
  if '\0' in value:
    raise ValueError(
      f'{name} = {quote(value)}: character {value.index(chr(0))} is NUL, '
      'which is no text'
    )
  if not value and not empty:
    raise ValueError(f"{name} = '': expected a text that is not empty{also}")
  return str(value)


def check_path(name: str, value, optional: bool = False) -> str | None:
  """Returns a path, a leading `~` as the home folder, see `check_text`.

  Raises:
    ValueError: it is no text and no PathLike, or is ''.
  """
  if isinstance(value, os.PathLike) and isinstance(os.fspath(value), str):
    value = os.fspath(value)
  path = check_text(name, value, optional, empty=False)
  # The shell leaves ~ as it is inside quotes, which gin's texts need.
  return path if path is None else os.path.expanduser(path)


def check_texts(
  name: str, value, empty: bool = True, optional: bool = False,
  single: bool = False,
) -> tuple[str, ...] | None:  # fmt: skip
  """Returns a list or tuple of texts as a tuple, see `check_text`.

  Args:
    name: of the setting or argument, as a user writes it.
    value: what was given.
    empty: take '' among them.
    optional: take None, too.
    single: take a text for a tuple of it.

  Raises:
    ValueError: it is a single text, or neither a list nor a tuple, or an
      element is no text.
  """
  if optional and value is None:
    return None
  if isinstance(value, str) and single:
    value = (value,)
  if isinstance(value, str):
    raise ValueError(
      f'{name} = {quote(value)}: expected a tuple of texts. Did you mean '
      f'({quote(value)},)?'
    )
  if not isinstance(value, list | tuple):
    raise ValueError(f'{name} = {quote(value)}: expected a tuple of texts')
  return tuple(
    check_text(f'{name}[{i}]', text, empty=empty)
    for i, text in enumerate(value)
  )


def check_list(name: str, values) -> list:
  """Returns the elements of a list, an array or an iterator, read once.

  Raises:
    ValueError: it is one text, bytes, a dict or a set, or has no elements.
  """
  if not isinstance(values, NO_LISTS):
    with contextlib.suppress(TypeError):  # of an array without axes, too
      return list(values)
  hint = f'. Did you mean [{quote(values)}]?' * isinstance(values, str)
  raise ValueError(f'{name} = {quote(values)}: expected a list{hint}')


def check_paths(name: str, value) -> tuple[str, ...]:
  """Returns a list or tuple of paths as a tuple, see `check_path`."""
  paths = check_texts(name, value, empty=False)
  return tuple(check_path(f'{name}[{i}]', x) for i, x in enumerate(paths))


def check_number(
  name: str, value, least=None, most=None, whole: bool = True, optional=False,
  above=None, below=None,
) -> int | float | None:  # fmt: skip
  """Returns a number of a range, numpy's as Python's.

  The caller uses what is returned, so that what is checked is what is used.
  Where a whole number is expected and another number given, the error names
  the nearest that fits.

  Args:
    name: of the setting, as a user writes it.
    value: what was given; a bool is no number, numpy's numbers are.
    least, most: the bounds, both included; None: unbounded.
    whole: take whole numbers only, 8.0 as 8.
    optional: take None, too.
    above, below: bounds that are not included, of numbers that are not whole.

  Raises:
    ValueError: it is no such number.
  """
  if optional and value is None:
    return None
  number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  finite = number and _is_finite(value, whole)
  if most == MOST_INT32 and not (finite and value > most):
    most = None  # goes without saying
  bounds = (
    ('of at least', least, operator.ge), ('above', above, operator.gt),
    ('of at most', most, operator.le), ('below', below, operator.lt),
  )  # fmt: skip
  bounds = [bound for bound in bounds if bound[1] is not None]
  if (
    finite
    and (not whole or value == int(value))
    and all(is_inside(value, end) for _, end, is_inside in bounds)
  ):
    return int(value) if whole else _as_python(value)
  span = ' and '.join(f'{what} {end}' for what, end, _ in bounds)
  span = f' {span}' if span else ''
  if least is not None and most is not None:
    span = f' from {least} to {most}'
  also = ', or None' if optional else ''
  what = 'whole number' if whole else 'number'
  hint = ''
  if whole and finite:
    nearest = round(value) if least is None else max(least, round(value))
    nearest = nearest if most is None else min(most, nearest)
    hint = f'. Did you mean {quote(nearest, 40)}?'
  raise ValueError(
    f'{name} = {quote(value)}: expected a {what}{span}{also}{hint}'
  )


def check_count(name: str, value, optional: bool = False) -> int | None:
  """Returns a whole number of at least 1 that programs can count to."""
  return check_number(name, value, 1, MOST_INT32, optional=optional)


def check_index(name: str, value, optional: bool = False) -> int | None:
  """Returns a whole number of at least 0 that programs can count to."""
  return check_number(name, value, 0, MOST_INT32, optional=optional)


def check_seed(name: str, value) -> int:
  """Returns a whole number that 64 bits hold, negative ones, too."""
  return check_number(name, value, -(2**63), 2**63 - 1)


def check_callable(name: str, value, optional: bool = False):
  """Returns what can be called; raises ValueError for anything else."""
  if not callable(value) and not (optional and value is None):
    raise ValueError(
      f'{name} = {quote(value)}: expected a function; gin writes @NAME'
    )
  return value


def check_instance(name: str, value, kind: type, optional: bool = False):
  """Returns an object of a class; raises ValueError for anything else."""
  if not isinstance(value, kind) and not (optional and value is None):
    raise ValueError(f'{name} = {quote(value)}: expected a {kind.__name__}')
  return value


# --- Settings: the fields of a dataclass, the arguments of a function


def check_fields(settings) -> None:
  """Sets fields of a dataclass, frozen or not, to what their checks return.

  Call it in `__post_init__`. The class has `checks`: field -> a check of the
  value, its name bound, `partial(check_number, 'BATCH_SIZE', least=1)`.

  Raises:
    ValueError: see the checks.
  """
  for field, check in list_checks(type(settings)).items():
    # What was checked is what is used.
    object.__setattr__(settings, field, check(getattr(settings, field)))


def check_arguments(**checks: Callable) -> Callable:
  """Decorates a function, which gets what its arguments' checks return.

  Args:
    checks: by parameter, as of `check_fields`; None for no check.
  """

  def decorate(function):
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args, **named):
      _check_names(function.__name__, signature.parameters.values(), named)
      given = signature.bind(*args, **named)
      given.apply_defaults()
      for parameter, check in list_checks(checked).items():
        given.arguments[parameter] = check(given.arguments[parameter])
      return function(*given.args, **given.kwargs)

    checked.__signature__ = signature  # gin does not look behind a wrapper
    checked.checks = checks
    return checked

  return decorate


def _check_names(function: str, parameters, given: dict) -> None:
  """Raises TypeError for a named argument that a function has not."""
  known = {p.name for p in parameters if p.name != 'self'}
  if any(p.kind is p.VAR_KEYWORD for p in parameters):
    return
  for name in given.keys() - known:
    hint = did_you_mean(name, known, every=True)
    for p in parameters:  # whose default carries such a setting
      if name in getattr(type(p.default), '__dataclass_fields__', ()):
        kind = type(p.default).__name__
        hint = f' Did you mean {p.name}={kind}({name}=...)?{hint}'
    raise TypeError(f'{function} has no argument {quote(name)}.{hint}')


@functools.cache
def list_checks(owner) -> dict[str, Callable]:
  """Returns parameter -> check of what `check_fields` or a decorator checks.

  What `owner.checks` does not name is checked by its type, if it can be.
  """
  if isinstance(owner, type) and not dataclasses.is_dataclass(owner):
    owner = owner.__init__
  names = inspect.signature(owner).parameters
  hints = typing.get_type_hints(owner)
  found = {name: derive_check(name, hints.get(name)) for name in names}
  found |= getattr(owner, 'checks', {})
  return {name: found[name] for name in names if found[name]}


def derive_check(field: str, hint) -> Callable | None:
  """Returns the check of a type: of numbers, flags, texts, functions, objects.

  Numbers, flags and texts are settings, called by `field` in capitals.

  Args:
    field: a field or parameter.
    hint: its type, `int | None` say.

  Returns:
    A function of the value, or None for a type that has no check.
  """
  union = isinstance(hint, types.UnionType)
  kinds = {*typing.get_args(hint)} if union else {hint}
  optional = dict(optional=True) if type(None) in kinds else {}
  kinds.discard(type(None))
  (kind, *others) = kinds
  if others or kind is None:
    return None
  if kind in _CHECKS_OF_TYPES:
    return functools.partial(_CHECKS_OF_TYPES[kind], field.upper(), **optional)
  origin = typing.get_origin(kind) or kind
  if origin in (tuple, Sequence) and typing.get_args(kind)[:1] == (str,):
    return functools.partial(check_texts, field.upper(), **optional)
  if origin is Callable:
    return functools.partial(check_callable, field, **optional)
  if dataclasses.is_dataclass(kind):
    return functools.partial(check_instance, field, kind=kind, **optional)
  return None


_CHECKS_OF_TYPES = {
  bool: check_flag,
  float: functools.partial(check_number, whole=False),
  int: check_number,
  str: check_text,
}


def _is_finite(value, whole: bool) -> bool:
  """Tells whether a real number is finite; as whole ones all integers are."""
  try:
    return whole and isinstance(value, numbers.Integral) or math.isfinite(value)
  except OverflowError:  # an integer that no float can hold
    return False


def _as_python(value) -> int | float:
  """Returns a real number as an int or a float of Python."""
  return int(value) if isinstance(value, numbers.Integral) else float(value)


_work: list[Callable[[], str]] = []


@contextlib.contextmanager
def note_work(text: Callable[[], str]):
  """Says by text(), while open, what a signal leaves and how to go on."""
  _work.append(text)
  try:
    yield
  finally:
    _work.remove(text)


def describe_work() -> str:
  """Returns the innermost text of `note_work`, or ''."""
  with contextlib.suppress(Exception):
    return _work[-1]()
  return ''
