"""Finds stop strings: by a table of tokens in a program, by text outside."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np


def build_table(pieces: Sequence[str], stops: Sequence[str]) -> np.ndarray:
  """Builds transitions, int32 [states, V], that find stops in [V] pieces.

  The automaton of Aho and Corasick (1975) over characters, followed over whole
  pieces. State 0 has read nothing of a stop; the last state has read all of
  one, and is never left. Raises ValueError if a stop string is empty.
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
  # A power of two, so that few shapes compile; states between the automaton's
  # and the last are not reached.
  size = 1 << end.bit_length()
  out = np.zeros((size, len(pieces)), np.int32)
  out[:end], out[-1] = states[:end], end
  return np.where(out == end, size - 1, out).astype(np.int32)


def _automaton(stops, letters) -> np.ndarray:
  """Returns [states, letters + 1] transitions; the last letter is any other."""
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
  """Returns the text up to the first stop string in it."""
  starts = [at for stop in stops if (at := text.find(stop)) >= 0]
  return text[: min(starts)] if starts else text


def stream_text(
  tokens: Iterable[int], decode: Callable, stops: Sequence[str]
) -> Iterator[str]:
  """Yields the text of token ids in pieces as they come, up to a stop string.

  What may yet change is held back, see `hold_back`.
  """
  shown, ids = '', []
  for token in tokens:
    ids.append(token)
    text = decode(ids)
    if cut_at_stop(text, stops) != text:
      break
    sure = hold_back(text, stops)
    if sure.startswith(shown) and len(sure) > len(shown):
      yield sure[len(shown) :]
      shown = sure
  whole = cut_at_stop(decode(ids), stops)
  if len(whole) > len(shown):
    yield whole[len(shown) :]


def hold_back(text: str, stops: Sequence[str]) -> str:
  """Returns a text without an end that could begin a stop string."""
  text = text.rstrip('\ufffd')  # half a character
  longest = max(map(len, stops), default=1)
  for size in range(min(len(text), longest - 1), 0, -1):
    if any(stop.startswith(text[-size:]) for stop in stops):
      return text[:-size]
  return text
