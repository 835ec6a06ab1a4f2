"""Builds what the encoder and the decoder read from texts or lists of ids."""

import dataclasses
import functools
import logging
import unicodedata
from collections.abc import Sequence

from atm.data.vocabulary import Vocabulary
from atm.inference import prompts, stop_strings
from atm.messages import check_choice, check_text, check_texts, quote
from atm.model.config import ModelConfig

logger = logging.getLogger(__name__)


def check_banned(banned) -> tuple:
  """Returns BANNED: texts, or lists of ids, which the model checks."""
  if isinstance(banned, list | tuple) and any(
    isinstance(x, list | tuple) for x in banned
  ):
    return tuple(
      list(x) if isinstance(x, list | tuple) else check_text('BANNED', x)
      for x in banned
    )
  return check_texts('BANNED', banned, empty=False)


@dataclasses.dataclass(frozen=True)
class Framing:
  """Turns a user's texts and ids into checked ids of one model.

  Without a vocabulary everything must be given as ids.
  """

  config: ModelConfig
  vocabulary: Vocabulary | None

  def frame(self, ids: Sequence[int], mode: str) -> list[int]:
    """Returns `<s> [CLM] ids </s>`, or without `[CLM]` in 'denoise'."""
    v = self.vocabulary
    marker = [v.clm_id] if mode == 'clm' else []
    return [v.bos_id, *marker, *ids, v.eos_id]

  def inputs(self, inputs, mode: str | None) -> list[list[int]]:
    """Returns the ids that the model reads of each, see `api.Model.complete`.

    With mode None they are decoder targets: texts end in `</s>`, padding stays.
    """
    if mode is not None:
      check_choice('mode', mode, prompts.MODES)
    if isinstance(inputs, str):
      raise ValueError('inputs is one string: expected a list of strings')
    rows = []
    for number, x in enumerate(inputs):
      row = self._plain_ids(x, f'input {number}')
      if isinstance(x, str) and mode is None:
        row = [*row, self.config.end_id]
      elif isinstance(x, str):
        row = self.frame(row, mode)
      elif mode is not None:
        row = self._strip(row)
      if not 1 <= len(row) <= self.config.positions:
        raise ValueError(
          f'input {number} has {len(row)} tokens: expected 1 to '
          f'Config.positions = {self.config.positions}'
        )
      rows.append(row)
    return rows

  def prefixes(self, prefixes: Sequence | None, count: int) -> list[list[int]]:
    """Returns the decoder's ids of `count` inputs, from the start token on."""
    if prefixes is None:
      return [[self.config.start_id]] * count
    if len(prefixes) != count:
      raise ValueError(f'{count} inputs, but {len(prefixes)} prefixes')
    start = self.config.start_id
    return [[start, *self._plain_ids(x, 'prefix')] for x in prefixes]

  def banned(self, banned: Sequence) -> list[list[int]]:
    """Returns the id sequences that no output may have."""
    rows = []
    for x in banned:
      rows.append(self._plain_ids(x, 'banned'))
      if isinstance(x, str):  # the tokenizer puts a space before a text
        rows.append(self.vocabulary.inside(x))
    return [row for row in rows if row and row != [self.config.end_id]]

  def stops(self, stop: Sequence[str]) -> tuple[str, ...]:
    """Returns stop strings as outputs may hold them.

    As they are, and as the tokenizer normalises text: '…' is '...' in outputs.
    A warning names a string that no output can hold.

    Raises:
      ValueError: they are not a list of strings, one is empty, or the model has
        no tokenizer.
    """
    stop = check_texts('stop', stop, empty=False)
    if stop and self.vocabulary is None:
      raise ValueError('this model has no tokenizer: stop strings need one')
    forms = {}
    for text in stop:
      mine, normal = [text], self.vocabulary.normalize(text)
      # A newline would be a space, and end an output behind its first word.
      if normal.strip() and not _has_line_break(text):
        mine.append(normal)
      if not any(map(self.vocabulary.can_spell, mine)):
        _warn_of_stop(text)
      forms |= dict.fromkeys(mine)
    return tuple(forms)

  def stop_table(self, stop: tuple[str, ...]):
    """Returns `stop_strings.build_table` of `stops`; None without any."""
    return self._cached_table(stop) if stop else None

  @functools.cached_property
  def _cached_table(self):
    words, size = self.vocabulary, self.config.vocab_size
    pieces, openings = words.spelling(), words.openings()
    pieces += [''] * (size - len(pieces))
    openings += [None] * (size - len(openings))
    build = functools.partial(
      stop_strings.build_table, pieces, openings=openings
    )
    return functools.lru_cache(8)(build)

  def _plain_ids(self, x, what: str) -> list[int]:
    """Returns the ids of a text without special pieces, or ids, checked."""
    if isinstance(x, str):
      if self.vocabulary is None:
        raise ValueError(f'this model has no tokenizer: give {what} as ids')
      return self.vocabulary.encode(x)
    row, last = [int(i) for i in x], self.config.vocab_size - 1
    for i in row:
      if not 0 <= i <= last:
        raise ValueError(f'{what} has the id {i}: expected 0 to {last}')
    return row

  def _strip(self, row: list[int]) -> list[int]:
    """Drops padding on either side of ids; one id is left at least."""
    pad = self.config.pad_id
    while len(row) > 1 and pad in (row[0], row[-1]):
      row = row[1:] if row[0] == pad else row[:-1]
    return row


def _has_line_break(text: str) -> bool:
  """Tells whether a text has white space that is no space: newlines, tabs."""
  return any(c.isspace() and unicodedata.category(c) != 'Zs' for c in text)


@functools.lru_cache(maxsize=256)  # said once of each
def _warn_of_stop(text: str) -> None:
  why = ', which has spaces for line breaks' * _has_line_break(text)
  logger.warning(
    'stop = %s is in no output of this tokenizer%s', quote(text), why
  )
