"""Finds stop strings: by a table of tokens in a program, by text outside."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np


def build_table(pieces: Sequence[str], stops: Sequence[str]) -> np.ndarray:
  """Builds the transitions of an automaton that finds stops in pieces of text.

  That of Aho and Corasick (1975) over characters, followed over whole pieces.
  State 0 has read nothing of a stop; the last state has read all of one, and is
  never left.

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
  """Yields a text in pieces as its tokens come, up to a stop string.

  What may yet change is held back: an end that could begin a stop string, or
  is half a character.

  Args:
    tokens: ids of the text.
    decode: list of ids -> text.
    stops: strings.
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
  """Returns the part of an unfinished text that is sure to stay.

  Without an end that could begin a stop string, or half a character, which
  decodes as U+FFFD.
  """
  text = text.rstrip('\ufffd')
  longest = max(map(len, stops), default=1)
  for size in range(min(len(text), longest - 1), 0, -1):
    if any(stop.startswith(text[-size:]) for stop in stops):
      return text[:-size]
  return text
