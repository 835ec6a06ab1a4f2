"""Errors and texts that all rooms share: checks of settings, nearest names."""

import difflib
import math
import numbers


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
  if hours:
    return f'{hours}:{minutes:02d}:{seconds:02d}'
  return f'{minutes}:{seconds:02d}'


def did_you_mean(name: str, known) -> str:
  """Returns ' Did you mean X?' for the nearest of `known`, else all of them."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
  if close:
    return f' Did you mean {close[0]!r}?'
  return f' Known: {", ".join(known)}.'


def check_choice(name: str, value, known) -> None:
  """Raises ValueError unless `value` is one of `known`."""
  if value not in known:
    raise ValueError(f'{name} = {value!r}.' + did_you_mean(str(value), known))


def check_number(
  name: str, value, least=None, most=None, whole: bool = True, optional=False
) -> None:
  """Raises ValueError unless `value` is a number of a range.

  Where a whole number is expected and another number given, the error names
  the nearest that fits.

  Args:
    name: of the setting, as a user writes it.
    value: what was given; a bool is no number, numpy's numbers are.
    least, most: the bounds, both included; None: unbounded.
    whole: take whole numbers only.
    optional: take None, too.
  """
  if optional and value is None:
    return
  kind = numbers.Integral if whole else numbers.Real
  fits = isinstance(value, kind) and not isinstance(value, bool)
  if fits and least is not None:
    fits = value >= least
  if fits and most is not None:
    fits = value <= most
  if fits and math.isfinite(value):
    return
  span = '' if least is None else f' of at least {least}'
  if most is not None:
    span = (
      f' of at most {most}' if least is None else f' from {least} to {most}'
    )
  also = ', or None' if optional else ''
  what = 'whole number' if whole else 'number'
  hint = ''
  number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if whole and number and math.isfinite(value):
    nearest = round(value) if least is None else max(least, round(value))
    hint = f'. Did you mean {nearest if most is None else min(most, nearest)}?'
  raise ValueError(f'{name} = {value!r}: expected a {what}{span}{also}{hint}')
