"""Texts and log-probabilities of one output, told in pieces or at once."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from atm.data.vocabulary_base import BaseVocabulary
from atm.inference.stop_strings import TextStream
from atm.serve.generation_request import ChosenToken, RequestOutput


@dataclasses.dataclass
class TokenTexts:
  """Names of a vocabulary's tokens, for log-probabilities."""

  vocabulary: BaseVocabulary | None

  @functools.cached_property
  def _spelling(self) -> list[str]:
    return self.vocabulary.spelling() if self.vocabulary else []

  def name_token(self, i: int) -> str:
    """Returns what a token adds to a running text; a special one's name.

    A byte of a longer character is 'bytes:\\\\xe2', as OpenAI writes it.
    """
    if not i < len(self._spelling):
      return f'token:{i}'
    if self.vocabulary.is_special(i):
      return self.vocabulary.pieces([i])[0]
    return name_bytes(self._spelling[i])

  def list_bytes(self, i: int) -> list[int]:
    """Returns the bytes that a token adds to a running text."""
    if not i < len(self._spelling) or self.vocabulary.is_special(i):
      return []
    return list(self._spelling[i].encode('utf-8', 'surrogateescape'))


def name_bytes(text: str) -> str:
  """Returns a text, or the names of bytes where these are half a character."""
  raw = text.encode('utf-8', 'surrogateescape')
  try:
    return raw.decode()
  except UnicodeDecodeError:
    return 'bytes:' + ''.join(f'\\x{byte:02x}' for byte in raw)


@dataclasses.dataclass
class OutputPart:
  """What came of an output.

  Attributes:
    text: new text, of which nothing is taken back.
    tokens: chosen since the last part, the end token among them.
    offsets: where in the whole text each of them begins; () where not asked.
  """

  text: str
  tokens: list[ChosenToken]
  offsets: Sequence[int] = ()


class OutputText:
  """Puts one output together from its tokens.

  What parts say is the same however the tokens are divided among them. The
  text is that of `outputs.Generation`: prefix and ids decoded, up to a stop
  string.
  """

  def __init__(
    self, vocabulary: BaseVocabulary | None, prefix: Sequence[int], end_id: int,
    stop: Sequence[str] = (), begin: str = '', with_offsets: bool = False,
  ):  # fmt: skip
    """Begins an output.

    Args:
      vocabulary: None: the text stays empty.
      prefix: the decoder's first ids, from the start token on.
      end_id: of the end token, which has no text.
      stop: of `Framing.stops`.
      begin: a text in front of all.
      with_offsets: tell where tokens begin.
    """
    decode = _make_decode(vocabulary, list(prefix[1:]), begin)
    revised = vocabulary.revised if vocabulary else ()
    self.count = 0
    self._stream = TextStream(decode, stop, revised)
    self._stream.add([])
    self._end_id, self._with_offsets = end_id, with_offsets
    self._told = 0

  def add(self, tokens: Sequence[ChosenToken], is_last: bool) -> OutputPart:
    """Returns what more tokens bring; `is_last`: none follow."""
    stream, offsets = self._stream, []
    if self._with_offsets:  # one by one, so that all divisions say the same
      for token in tokens:
        offsets.append(len(stream.text.rstrip('\ufffd')))
        if token.id != self._end_id:
          stream.add([token.id])
    elif ids := [x.id for x in tokens if x.id != self._end_id]:
      stream.add(ids)
    if is_last:
      stream.finish()
    self.count += len(tokens)
    text, self._told = stream.shown[self._told :], len(stream.shown)
    return OutputPart(text, list(tokens), offsets)


def _make_decode(
  vocabulary: BaseVocabulary | None, prefix: list[int], begin: str
) -> Callable[[list[int]], tuple[str, str]]:
  """Returns a function of ids for TextStream, whose first text is `begin`'s."""
  if vocabulary is None:
    return lambda ids: (begin, '')
  size = vocabulary.size
  if all(i < size and vocabulary.is_special(i) for i in prefix):
    # The same text, without the parts of each token: a third of the time.
    return lambda ids: (begin, vocabulary.decode([i for i in ids if i < size]))

  def decode(ids: list[int]) -> tuple[str, str]:
    before, text = vocabulary.decode_parts(prefix, ids)
    return begin + before, text

  return decode


def list_tokens(output: RequestOutput, end_id: int) -> list[ChosenToken]:
  """Returns a whole output's tokens, as updates tell them one by one."""
  logs = output.log_probabilities
  ids = [*output.ids, end_id][: len(logs)]
  tops = output.top or [()] * len(logs)
  return [ChosenToken(0, *of) for of in zip(ids, logs, tops, strict=True)]
