"""Texts shared by all rooms: nearest names, one-line errors, clock times."""

from __future__ import annotations

import difflib


def one_line(error: BaseException | str, width: int = 300) -> str:
  """The head and the tail of an error's text; TensorStore's are pages long."""
  text = ' '.join(str(error).split()) or type(error).__name__
  text = text.partition(' [tensorstore_spec')[0]
  if len(text) <= width:
    return text
  return f'{text[: width // 3]} ... {text[-2 * width // 3 :]}'


def clock_text(seconds: float) -> str:
  """m:ss, or h:mm:ss."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minutes:02d}:{seconds:02d}'
  return f'{minutes}:{seconds:02d}'


def did_you_mean(name: str, known) -> str:
  """' Did you mean X?' for the nearest of `known`, else the whole choice."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
  if close:
    return f' Did you mean {close[0]!r}?'
  return f' Known: {", ".join(known)}.'


def check_choice(name: str, value, known) -> None:
  """Raises ValueError unless `value` is one of `known`."""
  if value not in known:
    raise ValueError(f'{name} = {value!r}.' + did_you_mean(str(value), known))
