"""Stop strings as a table that a program steps through token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def build_table(pieces: Sequence[str], stops: Sequence[str]) -> np.ndarray:
  """Where each piece leads from each state of having read a part of a stop.

  The automaton of Aho and Corasick (1975) over characters, followed over whole
  pieces. State 0 has read nothing of a stop; the last state has read all of
  one, and is never left.

  Args:
    pieces: [V] texts of the vocabulary's ids.
    stops: strings.

  Returns:
    int32 [states, V]. As many rows as a power of two, so that few shapes
    compile; those between the automaton's and the last are not reached.

  Raises:
    ValueError: an empty stop string.
  """
  if not all(stops):
    raise ValueError(f'stop = {list(stops)!r}: expected no empty string')
  letters = {letter: i for i, letter in enumerate(sorted(set(''.join(stops))))}
  steps = _automaton(stops, letters)
  end = len(steps) - 1
  # Letters of all pieces, those of no stop as one more; -1 behind the end.
  longest = max(map(len, pieces), default=0)
  spelt = np.full((len(pieces), longest), -1, np.int32)
  for row, piece in zip(spelt, pieces, strict=True):
    row[: len(piece)] = [letters.get(letter, len(letters)) for letter in piece]
  states = np.repeat(np.arange(len(steps))[:, None], len(pieces), axis=1)
  for letter in spelt.T:
    states = np.where(letter >= 0, steps[states, letter], states)
  size = 1 << end.bit_length()
  out = np.zeros((size, len(pieces)), np.int32)
  out[:end], out[-1] = states[:end], end
  return np.where(out == end, size - 1, out).astype(np.int32)


def _automaton(stops, letters) -> np.ndarray:
  """[states, letters + 1] transitions; the last letter is any other."""
  prefixes = {stop[:n] for stop in stops for n in range(len(stop))}
  order = sorted(prefixes, key=lambda text: (len(text), text))
  number = {text: i for i, text in enumerate(order)}
  end = len(order)
  steps = np.zeros((end + 1, len(letters) + 1), np.int32)
  steps[end] = end
  for text, i in number.items():
    for letter, j in letters.items():
      read = text + letter
      # The longest end of what was read that begins a stop, or is one.
      for start in range(len(read) + 1):
        rest = read[start:]
        if rest in stops or rest in number:
          steps[i, j] = end if rest in stops else number[rest]
          break
  return steps


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
  """The text up to the first stop string in it."""
  found = [at for stop in stops if (at := text.find(stop)) >= 0]
  return text[: min(found)] if found else text


def hold_back(text: str, stops: Sequence[str]) -> str:
  """The part of an unfinished text that is sure to stay.

  Without an end that could begin a stop string or is half a character.
  """
  text = text.rstrip('\ufffd')
  longest = max(map(len, stops), default=1)
  for size in range(min(len(text), longest - 1), 0, -1):
    if any(stop.startswith(text[-size:]) for stop in stops):
      return text[:-size]
  return text
