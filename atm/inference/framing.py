"""Builds what the encoder and the decoder read from texts or lists of ids."""

import contextlib
import functools
import logging
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from atm.data.token_ids import check_ids
from atm.inference import stop_strings
from atm.inference.model_frame import ModelFrame
from atm.messages import (
  check_choice,
  check_list,
  check_number,
  check_text,
  check_texts,
  quote,
)
from atm.model.config import ModelConfig

logger = logging.getLogger(__name__)

# What becomes of a text with more tokens than the model has positions: it is an
# error, or the first or last tokens are cut.
TRUNCATIONS = ('refuse', 'start', 'end')
MOST_STOP_BYTES = 1000  # tables of stop strings have a row for each, of [V]


def list_some(texts: Sequence[str], most: int = 3) -> str:
  """Joins the first few texts, and says how many more there are."""
  more = f' and {len(texts) - most:,} more' if len(texts) > most else ''
  return ', '.join(texts[:most]) + more


def cut_ids(ids: Sequence[int], room: int, truncate: str) -> Sequence[int]:
  """Returns `room` ids at most, without the first or the last of them."""
  excess = max(0, len(ids) - room)
  return ids[excess:] if truncate == 'start' else ids[: len(ids) - excess]


def check_id_table(name: str, ids, config: ModelConfig) -> np.ndarray:
  """Returns ids [B, S] as int32; raises ValueError for any other shape."""
  rows = [
    check_ids(f'{name}[{i}]', row, config.vocab_size)
    for i, row in enumerate(check_list(name, ids))
  ]
  lengths = {len(row) for row in rows}
  if len(lengths) != 1 or not 1 <= max(lengths) <= config.positions:
    raise ValueError(
      f'{name} has rows of {quote(sorted(lengths))} ids: expected [B, S], S '
      f'from 1 to Config.positions = {config.positions}'
    )
  return np.array(rows, np.int32)


def check_mask(name: str, mask, shape: tuple[int, int]) -> np.ndarray:
  """Returns bool [B, S], where numbers are above 0; None is True everywhere."""
  if mask is None:
    return np.ones(shape, bool)
  array = None
  with contextlib.suppress(ValueError, TypeError):  # ragged, or no array
    array = np.asarray(mask)
  plain = array is not None and array.shape == shape
  if not plain or array.dtype.kind not in 'biuf' or np.isnan(array).any():
    raise ValueError(
      f'{name} = {quote(mask)}: expected numbers of the shape {shape}'
    )
  return array > 0


def check_tables(
  encoder_ids, decoder_ids, encoder_mask, config: ModelConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns ids [B, S] and [B, T] and a mask [B, S] of both, int32."""
  encoder_ids = check_id_table('encoder_ids', encoder_ids, config)
  decoder_ids = check_id_table('decoder_ids', decoder_ids, config)
  if len(encoder_ids) != len(decoder_ids):
    raise ValueError(
      f'{len(encoder_ids)} rows of encoder_ids, but {len(decoder_ids)} of '
      'decoder_ids'
    )
  mask = check_mask('encoder_mask', encoder_mask, encoder_ids.shape)
  T, longest = decoder_ids.shape[1], mask.sum(1).max()
  if not config.has_encoder and longest + T > config.positions:
    raise ValueError(
      f'encoder_ids and decoder_ids have rows of {longest} and {T} ids: '
      f'expected at most {config.room_name}'
    )
  return encoder_ids, decoder_ids, mask.astype(np.int32)


def check_numbers(name: str, numbers, count: int) -> list[int] | None:
  """Returns `count` whole numbers as a list, or None."""
  if numbers is None:
    return None
  numbers = [
    check_number(f'{name}[{i}]', n, -(2**63), 2**63 - 1)
    for i, n in enumerate(check_list(name, numbers))
  ]
  if len(numbers) != count:
    raise ValueError(f'{name} has {len(numbers)} numbers: expected {count}')
  return numbers


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


class Framing(ModelFrame):
  """Turns a user's texts and ids into checked ids of one model.

  Without a vocabulary everything must be given as ids. Modes and languages are
  those of `ModelFrame`; a sequence of languages has one or None for each row.
  """

  # --- Inputs and targets

  def encode(
    self, text: str, mode: str | None = None, source: str | None = None
  ) -> list[int]:
    """Returns a text's ids, framed; of any length."""
    return self.frame(self._plain_ids(text, 'text'), mode, source)

  def inputs(
    self, inputs, mode: str | None = None, truncate: str = 'refuse',
    languages: Sequence[str | None] | None = None,
  ) -> list[list[int]]:  # fmt: skip
    """Returns the ids that the encoder reads, see `api.Model.complete`."""
    return self.fit(self.frame_all(inputs, mode, languages), truncate)[0]

  def frame_all(
    self, inputs, mode: str | None = None,
    languages: Sequence[str | None] | None = None,
  ) -> list[list[int]]:  # fmt: skip
    """Returns the encoder's ids of `inputs`, of any length but none."""
    mode, rows = self.name_mode(mode, any(languages or ())), []
    for number, x in enumerate(check_list('inputs', inputs)):
      row = self._plain_ids(x, f'input {number}')
      if isinstance(x, str):
        row = self.frame(row, mode, languages[number] if languages else None)
      else:
        row = self._strip(row)
      rows.append(self._check_some(row, f'input {number}'))
    return rows

  def targets(
    self, targets, mode: str | None = None, truncate: str = 'refuse',
    languages: Sequence[str | None] | None = None,
  ) -> list[list[int]]:  # fmt: skip
    """Returns the ids that the decoder is to write, see `api.Model.score`."""
    rows = self.frame_targets(targets, mode, languages)
    return self.fit(rows, truncate, 'target')[0]

  def frame_targets(
    self, targets, mode: str | None = None,
    languages: Sequence[str | None] | None = None,
  ) -> list[list[int]]:  # fmt: skip
    """Returns the decoder's ids of `targets`, of any length but none.

    Texts are framed as the model is trained to write them; padding stays.
    """
    mode, rows = self.name_mode(mode, any(languages or ())), []
    for number, x in enumerate(check_list('targets', targets)):
      row = self._plain_ids(x, f'target {number}')
      if isinstance(x, str):
        row = self.label(row, mode, languages[number] if languages else None)
      rows.append(self._check_some(row, f'target {number}'))
    return rows

  def fit(
    self, rows: Sequence[list[int]], truncate: str, what: str = 'input',
    reserved: Sequence[int] | None = None,
  ) -> tuple[list[list[int]], list[int]]:  # fmt: skip
    """Cuts ids to Config.positions; the frames of inputs stay.

    Args:
      rows: of `frame_all`, or of `frame_targets`.
      truncate: one of TRUNCATIONS.
      what: 'input'; or 'target', of which the first or last ids go, an end
        token, too, but not the language in front.
      reserved: how many positions each row leaves to others; None: none.

    Returns:
      (rows, how many ids each has lost).

    Raises:
      ValueError: 'refuse', and one is too long; names the first of them.
    """
    check_choice('truncate', truncate, TRUNCATIONS)
    long = self.find_long(rows, reserved)
    if long and truncate == 'refuse':
      named = [f'{what} {i} has {len(rows[i]):,} tokens' for i in long]
      raise ValueError(
        f'{list_some(named)}: expected 1 to {self.config.room_name}. '
        f"truncate='start' or 'end' cuts {what}s"
      )
    fitted = list(rows)
    for i in long:
      row = rows[i]
      head, tail = self.count_target_frame(row), 0
      if what == 'input':
        head, tail = self.count_frame(row)
      most = self.config.positions - (reserved[i] if reserved else 0)
      room = max(0, most - head - tail)
      body = cut_ids(row[head : len(row) - tail], room, truncate)
      fitted[i] = [*row[:head], *body, *row[len(row) - tail :]]
    return fitted, [len(a) - len(b) for a, b in zip(rows, fitted)]

  def find_long(
    self, rows: Sequence[Sequence[int]], reserved: Sequence[int] | None = None
  ) -> list[int]:
    """Returns the numbers of rows with more ids than Config.positions.

    `reserved` is as of `fit`.
    """
    most, taken = self.config.positions, reserved or [0] * len(rows)
    return [i for i, row in enumerate(rows) if len(row) + taken[i] > most]

  def _check_some(self, row: list[int], what: str) -> list[int]:
    """Returns a row; raises ValueError where it has no ids."""
    if not row:
      raise ValueError(
        f'{what} has 0 tokens: expected 1 to Config.positions = '
        f'{self.config.positions}'
      )
    return row

  # --- What outputs begin with, end at, and do not have

  def list_forced(
    self, prefixes: Sequence[list[int]], mode: str | None, languages
  ) -> list[int]:
    """Returns how many ids of each of `prefixes` count as written.

    In transformers, those of a language that begins an output, but not in front
    of a prefix that a user gives: there, that is no output.
    """
    mode = self.name_mode(mode, any(languages))
    return [
      self.count_forced(mode, code) * (row == self.start(mode, code))
      for row, code in zip(prefixes, languages)
    ]

  def prefixes(
    self, prefixes: Sequence | None, count: int, mode: str | None = None,
    languages: Sequence[str | None] | None = None,
  ) -> list[list[int]]:  # fmt: skip
    """Returns the decoder's ids of `count` inputs, from the start token on."""
    languages = languages or [None] * count
    mode = self.name_mode(mode, any(languages))
    starts = [self.start(mode, language) for language in languages]
    if prefixes is None:
      return starts
    prefixes = check_list('prefixes', prefixes)
    if len(prefixes) != count:
      raise ValueError(f'{count} inputs, but {len(prefixes)} prefixes')
    # As in transformers, where a prefix takes the place of the forced token.
    known = [x or self.default_languages[1] for x in languages]
    starts = [x if code else x[:1] for x, code in zip(starts, known)]
    plain = self._plain_ids
    return [
      [*start, *plain(x, f'prefix {i}')]
      for i, (start, x) in enumerate(zip(starts, prefixes))
    ]

  def banned(self, banned: Sequence) -> list[list[int]]:
    """Returns the id sequences that no output may have."""
    rows = []
    for i, x in enumerate(check_list('banned', banned)):
      rows.append(self._plain_ids(x, f'banned[{i}]'))
      if isinstance(x, str):  # the tokenizer puts a space before a text
        rows.append(self.vocabulary.inside(x))
    return [row for row in rows if row and row != [self.config.end_id]]

  def stops(self, stop: Sequence[str]) -> tuple[str, ...]:
    """Returns stop strings as outputs may hold them.

    As they are, and as the tokenizer normalises text: '…' is '...' in outputs.
    A warning names a string that no output can hold.

    Raises:
      ValueError: they are not a list of strings, one is empty, all together
        are too long, or the model has no tokenizer.
    """
    stop = check_texts('stop', stop, empty=False)
    if (size := sum(len(text.encode()) for text in stop)) > MOST_STOP_BYTES:
      raise ValueError(
        f'stop = {quote(stop)} has {size:,} bytes: expected at most '
        f'{MOST_STOP_BYTES:,} in all'
      )
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
    # A table row may have no token, and a token behind the last no table row.
    pieces, openings = words.spelling()[:size], words.openings()[:size]
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
      return self.vocabulary.encode(check_text(what, x))
    if isinstance(x, bytes | bytearray) or not isinstance(x, Iterable):
      raise ValueError(
        f'{what} = {quote(x)}: expected a text, or a list of token ids'
      )
    return check_ids(what, x, self.config.vocab_size)

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
