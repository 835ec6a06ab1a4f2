"""Builds what the encoder and the decoder read from texts or lists of ids."""

import dataclasses
import functools
from collections.abc import Sequence

from atm.data.vocabulary import Vocabulary
from atm.inference import prompts, stop_strings
from atm.messages import check_choice
from atm.model.config import ModelConfig


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

  def stop_table(self, stop: Sequence[str]):
    """Returns `stop_strings.build_table` of stop strings; None without any."""
    if not stop:
      return None
    if isinstance(stop, str):
      raise ValueError(f'stop = {stop!r}: expected a list of strings')
    if self.vocabulary is None:
      raise ValueError('this model has no tokenizer: stop strings need one')
    return self._cached_table(tuple(stop))

  @functools.cached_property
  def _cached_table(self):
    pieces = self.vocabulary.spelling()
    pieces += [''] * (self.config.vocab_size - len(pieces))
    build = functools.partial(stop_strings.build_table, pieces)
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
