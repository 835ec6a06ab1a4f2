"""Finds stop strings: by a table of tokens in a program, by text outside."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np


def build_table(
  pieces: Sequence[str],
  stops: Sequence[str],
  openings: Sequence[str | None] | None = None,
) -> np.ndarray:
  """Builds transitions, int32 [states, V], that find stops in [V] pieces.

  The automaton of Aho and Corasick (1975) over bytes, followed over whole
  pieces: a character may be spelt in several. State 0 is the beginning of a
  text; state 1 has read nothing of a stop; the last state has read all of one,
  and is never left.

  Args:
    pieces: what each piece adds to a running text; a byte of a character is a
      surrogate escape (PEP 383).
    stops: strings to find, none of them empty.
    openings: what each piece is at the beginning of a text, None where the text
      has not begun behind it, either; by default `pieces`, None for ''.
  """
  if openings is None:
    openings = [piece or None for piece in pieces]
  encode = lambda text: (text or '').encode('utf-8', 'surrogateescape')
  steps, codes = _automaton(list(map(encode, stops)))
  end = len(steps) - 1
  # A power of two, so that few shapes compile; states between the automaton's
  # and the last are not reached.
  size = 1 << (end + 1).bit_length()
  out = np.zeros((size, len(pieces)), np.int32)
  follow = lambda texts, states: _follow(
    list(map(encode, texts)), steps[:, codes], states
  )
  begun = np.array([text is not None for text in openings])
  out[0] = np.where(begun, 1 + follow(openings, [0])[0], 0)
  out[1 : end + 1] = 1 + follow(pieces, range(end))
  out[out == end + 1] = out[-1] = size - 1
  return out


def count_states(stops: Sequence[str]) -> int:
  """Returns how many states of `build_table`'s are reached, before it is built.

  The beginning, one of each different beginning of a stop, and the end.
  """
  texts = [stop.encode() for stop in stops]
  return 2 + len({text[:n] for text in texts for n in range(len(text))})


def _automaton(stops: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
  """Returns ([states, letters] transitions, [256] the letter of each byte).

  The last letter is any byte of no stop; the last state has read a stop.
  """
  alphabet = sorted(set(b''.join(stops)))
  codes = np.full(256, len(alphabet))
  codes[alphabet] = np.arange(len(alphabet))
  prefixes = {stop[:n] for stop in stops for n in range(len(stop))}
  order = sorted(prefixes, key=lambda text: (len(text), text))
  number = {text: i for i, text in enumerate(order)}
  end = len(order)
  steps = np.zeros((end + 1, len(alphabet) + 1), np.int32)
  steps[end] = end
  rests = np.zeros(end, int)  # the longest end of each that is a prefix, too
  for text, i in number.items():
    for letter, byte in enumerate(alphabet):
      read = text + bytes([byte])
      # Where the longest end of `text` goes: it is shorter, so its row is done.
      rest = steps[rests[i], letter] if text else 0
      if read.endswith(tuple(stops)):
        steps[i, letter] = end
      elif read in number:
        steps[i, letter] = number[read]
        rests[number[read]] = rest
      else:
        steps[i, letter] = rest
  return steps, codes


def _follow(texts: Sequence[bytes], steps: np.ndarray, states) -> np.ndarray:
  """Returns the states [N, V] that texts lead to from states [N].

  `steps` are transitions [states, 256] of bytes.
  """
  out = np.repeat(np.array(states, np.int32)[:, None], len(texts), axis=1)
  sizes = np.array(list(map(len, texts)), int)
  starts = np.cumsum(sizes) - sizes
  letters = np.frombuffer(b''.join(texts), np.uint8)
  for at in range(sizes.max(initial=0)):
    (going,) = np.nonzero(sizes > at)
    out[:, going] = steps[out[:, going], letters[starts[going] + at]]
  return out


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
  """Returns the text up to the stop string in it that is complete first.

  Of several that end at one character, up to the longest: where the text is cut
  does not depend on the tokens that it came in.
  """
  found = [
    (at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0
  ]
  return text[: min(found)[1]] if found else text


class TextStream:
  """The text of token ids that come in pieces, up to a stop string.

  What may yet change is held back, see `hold_back`: the beginning of a stop
  string, or of one of the texts in `revised`, which `decode` replaces.

  Attributes:
    ids: those that came.
    text: what they are the text of, with what is held back.
    shown: the text that was told.
    is_stopped: whether a stop string is whole; nothing follows then.
  """

  def __init__(
    self, decode: Callable[[list[int]], tuple[str, str]], stops: Sequence[str],
    revised: Sequence[str] = (),
  ):  # fmt: skip
    """Begins a text.

    Args:
      decode: returns the text of a prefix, and that of ids behind it.
      stops: strings to look for behind the prefix.
      revised: see `BaseVocabulary`.
    """
    self.ids: list[int] = []
    self.text = self.shown = ''
    self.is_stopped = False
    self._decode, self._stops = decode, tuple(stops)
    self._held = *stops, *revised

  def add(self, tokens: Sequence[int]) -> str:
    """Returns what is sure of the text behind that told, with more ids."""
    if self.is_stopped:
      return ''
    self.ids += tokens
    self._read()
    if self.is_stopped:
      return self._show(self.text)
    return self._show(hold_back(self.text, self._held))

  def finish(self) -> str:
    """Returns the rest of the text, once the last id has come."""
    if not self.is_stopped:
      self._read()
    return self._show(self.text)

  def _read(self) -> None:
    prefix, text = self._decode(self.ids)
    whole = cut_at_stop(text, self._stops)
    self.is_stopped, self.text = whole != text, prefix + whole

  def _show(self, text: str) -> str:
    more = text[len(self.shown) :]
    self.shown += more
    return more


def stream_text(
  tokens: Iterable[int],
  decode: Callable,
  stops: Sequence[str],
  revised: Sequence[str] = (),
) -> Iterator[str]:
  """Yields the text of token ids in pieces as they come, see TextStream."""
  stream = TextStream(lambda ids: ('', decode(ids)), stops, revised)
  for token in tokens:
    if piece := stream.add([token]):
      yield piece
    if stream.is_stopped:
      return
  if piece := stream.finish():
    yield piece


def hold_back(text: str, stops: Sequence[str]) -> str:
  """Returns a text without an end that could begin a stop string."""
  text = text.rstrip('\ufffd')  # half a character
  longest = max(map(len, stops), default=1)
  for size in range(min(len(text), longest - 1), 0, -1):
    if any(stop.startswith(text[-size:]) for stop in stops):
      return text[:-size]
  return text
