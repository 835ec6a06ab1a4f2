"""Chooses tokens of rows whose settings differ, in one program.

The rules are those of `atm.inference.sampling`, whose `Config` is one for all
rows of a program. Here each row has its own, as arrays: no combination of
settings compiles a program. What is dear is computed where a row asks for it.

R rows, V vocabulary; N banned sequences of M ids, T decoder ids, S encoder ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from atm.data.token_ids import check_ids
from atm.inference import bucketing, sampling
from atm.inference import logits_processors as processors
from atm.inference.sampling import Config, History
from atm.messages import MOST_INT32
from atm.parallel import sharding
from atm.serve.generation_request import GenerationRequest

NUMBERS = ('max_tokens', 'min_tokens', 'top_k', *sampling.LATER)
FACTORS = (
  'temperature', 'top_p', 'min_p', 'repetition_penalty', 'length_penalty'
)  # fmt: skip
EARLY_STOPPING = {False: 0, True: 1, 'never': 2}


@flax.struct.dataclass
class RowSettings:
  """Settings of R rows, or without the leading axis of one.

  Names are those of `sampling.Config` and `sampling.Sampler`, whose functions
  read both.

  Attributes:
    early_stopping: one of EARLY_STOPPING.
    banned: [R, N, M], -1 in front of sequences that are shorter than M.
    stop_end: state of a `StopPool` that has read a stop string; -1: none.
    seed, number, result: what a row's random numbers are of.
    top: how many likeliest tokens to tell.
  """

  max_tokens: jax.Array
  min_tokens: jax.Array
  length_penalty: jax.Array
  temperature: jax.Array
  top_k: jax.Array
  top_p: jax.Array
  min_p: jax.Array
  repetition_penalty: jax.Array
  no_repeat_ngram_size: jax.Array
  encoder_no_repeat_ngram_size: jax.Array
  forced_eos: jax.Array
  early_stopping: jax.Array
  banned: jax.Array
  stop_end: jax.Array
  seed: jax.Array
  number: jax.Array
  result: jax.Array
  top: jax.Array


# --- What a request asks for, as arrays of the host


def check_ids_of(request: GenerationRequest, vocab_size: int) -> None:
  """Raises ValueError for ids that the model does not have, or no prefix."""
  rows = {'ids': request.ids, 'prefix': request.prefix}
  rows |= {f'banned[{i}]': row for i, row in enumerate(request.banned)}
  for name, row in rows.items():
    if not check_ids(name, row, vocab_size):
      raise ValueError(f'{name} has 0 tokens: expected 1 or more')
  check_ids('targets', request.targets or (), vocab_size)


def check_limits(
  request: GenerationRequest, banned: tuple[int, int], top: int
) -> None:
  """Raises ValueError for what rows have no room for.

  Args:
    request: what is asked.
    banned: N and M.
    top: the most likeliest tokens that are told.
  """
  most, longest = banned
  if (count := len(request.banned)) > most:
    raise ValueError(
      f'banned has {count:,} sequences of ids: expected at most {most} (a text '
      'has two, behind a space and without one)'
    )
  if (size := max(map(len, request.banned), default=0)) > longest:
    raise ValueError(
      f'banned has a sequence of {size:,} ids: expected at most {longest}'
    )
  if not 0 <= request.top <= top:
    raise ValueError(
      f'top = {request.top:,}: expected 0 to {top} likeliest tokens'
    )


def limit_tokens(request: GenerationRequest, positions: int) -> int:
  """Returns how many tokens an output may have, `forced` ids included.

  Raises ValueError where `positions` have no room for one, as
  `bucketing.pad_batch` does.
  """
  most, prefix = request.config.max_tokens, len(request.prefix)
  bucketing.check_forced(most, request.forced)
  bucketing.count_room(positions, prefix, 'MAX_OUTPUT')
  return min(most, positions - prefix + request.forced)


def make_settings(
  request: GenerationRequest, result: int, max_tokens: int,
  banned: tuple[int, int], stop_end: int = -1,
) -> RowSettings:  # fmt: skip
  """Returns the settings of one of a request's rows.

  Args:
    request: what is asked, see `check_limits`.
    result: which of its outputs.
    max_tokens: of `limit_tokens`.
    banned: N and M.
    stop_end: see RowSettings.
  """
  config, table = request.config, np.full(banned, -1, np.int32)
  for out, row in zip(table, request.banned):
    out[-len(row) :] = row
  fields = dict.fromkeys(NUMBERS, np.int32) | dict.fromkeys(FACTORS, np.float32)
  array = {name: kind(getattr(config, name)) for name, kind in fields.items()}
  array |= dict(
    max_tokens=np.int32(max_tokens),
    forced_eos=np.bool_(config.forced_eos),
    early_stopping=np.int32(EARLY_STOPPING[config.early_stopping]),
  )
  return RowSettings(
    **array,
    banned=table,
    stop_end=np.int32(stop_end),
    seed=np.int32(config.program_seed),
    number=np.int32(request.number % 2**31),
    result=np.int32(result),
    top=np.int32(request.top),
  )


def make_history(
  request: GenerationRequest, T: int, S: int, stop_start: int
) -> History:
  """Returns one row's history, but for `written`, see `begin_rows`.

  Args:
    request: what is asked; `forced` ids of its prefix count as written.
    T, S: decoder and encoder ids that there is room for.
    stop_start: the state of a `StopPool` where a text begins.
  """
  tail, read = np.full(T, -1, np.int32), np.full(S, -1, np.int32)
  tail[T - len(request.prefix) :] = request.prefix
  read[: len(request.ids)] = request.ids
  state = stop_start
  if request.stop_table is not None:
    begun = request.stop_table[0, list(request.prefix)] > 0
    state += int(begun.any())
  count, forced = np.int32(0), np.int32(request.forced)
  return History(count, tail, None, np.int32(state), forced, read)


def stack_rows(rows: Sequence):
  """Returns rows' settings or histories with a leading axis."""
  return jax.tree.map(lambda *x: np.stack(x), *rows)


def empty_settings(R: int, banned: tuple[int, int]) -> RowSettings:
  """Returns the settings of R rows that ask for nothing."""
  request = GenerationRequest((0,), (0,), Config())
  return stack_rows([make_settings(request, 0, 1, banned)] * R)


# --- On the device


def begin_rows(history: History, vocab_size: int) -> History:
  """Returns R rows of `make_history` with what they have written [R, V]."""
  rows = jnp.arange(len(history.tail))[:, None]
  blank = jnp.zeros((len(history.tail), vocab_size), bool)
  return history.replace(
    written=blank.at[rows, history.tail].max(history.tail >= 0)
  )


def append_row_token(stops, history: History, token, is_open) -> History:
  """Returns the history with token [R] written in rows that are open.

  Args:
    stops: int32 [states, V], the table of a `StopPool`.
    history: of R rows.
    token: [R].
    is_open: bool [R].
  """
  tail = jnp.concatenate([history.tail[:, 1:], token[:, None]], axis=1)
  return history.replace(
    count=history.count + is_open,
    tail=jnp.where(is_open[:, None], tail, history.tail),
    written=history.written.at[jnp.arange(len(token)), token].max(is_open),
    state=jnp.where(is_open, stops[history.state, token], history.state),
  )


def _apply_where(asked, function, logits):
  """Returns `function` of logits where a row asks for it, else logits."""
  return jax.lax.cond(asked.any(), function, lambda x: x, logits)


def process_row_logits(settings: RowSettings, history: History, logits, end_id):
  """Applies each row's penalties, bans and lengths; see `sampling`."""
  penalty = settings.repetition_penalty
  logits = _apply_where(
    penalty != 1,
    lambda x: processors.penalize_written(x, history.written, penalty[:, None]),
    logits,
  )
  ngrams = (
    (settings.no_repeat_ngram_size, history.tail),
    (settings.encoder_no_repeat_ngram_size, history.read),
  )
  for n, ids in ngrams:
    ban = lambda x, n=n, ids=ids: processors.ban_ngrams(x, ids, history.tail, n)
    logits = _apply_where(n > 0, ban, logits)
  ban_row = lambda *row: processors.ban_sequences(row[0][None], *row[1:])[0]
  logits = _apply_where(
    settings.banned >= 0,
    lambda x: jax.vmap(ban_row)(x, history.tail[:, None], settings.banned),
    logits,
  )
  count, force = history.counted, settings.forced_eos
  logits = processors.ban_early_end(logits, count, settings.min_tokens, end_id)
  # Where no end is forced, there is room without bound.
  last = jnp.where(force, settings.max_tokens, MOST_INT32)
  force_end = lambda x: processors.force_end(x, count, last, end_id)
  return _apply_where(force, force_end, logits)


def choose_row_tokens(
  settings: RowSettings, history: History, logits, end_id: int, given=None
):
  """Returns a token [R] a row, and log-probabilities by the model.

  Args:
    settings, history: of R rows.
    logits: [R, V].
    end_id: the end token.
    given: [R], tokens that are not chosen, and -1 of rows that choose.

  Returns:
    (tokens [R], their log-probabilities [R]).
  """
  token = jax.lax.cond(
    _asks_for_any(settings),
    lambda x: _choose_processed(settings, history, x, end_id),
    lambda x: _choose_best(settings, history, x, end_id),
    logits,
  )
  if given is not None:
    token = jnp.where(given >= 0, given, token)
  return token, sampling.pick_log_probability(logits, token)


def _asks_for_any(settings: RowSettings):
  """Tells whether a row asks for more than the likeliest token."""
  asked = (settings.temperature > 0) | settings.forced_eos
  asked |= settings.repetition_penalty != 1
  asked |= settings.no_repeat_ngram_size > 0
  asked |= settings.encoder_no_repeat_ngram_size > 0
  return asked.any() | (settings.banned >= 0).any()


def _choose_best(settings: RowSettings, history: History, logits, end_id: int):
  """Returns the likeliest tokens [R], of rows that ask for no others."""
  best = sampling.find_best(logits)
  count, least = history.counted, settings.min_tokens
  ban = lambda x: processors.ban_early_end(x, count, least, end_id)
  # Few outputs would end too early: the others' logits are not written again.
  return jax.lax.cond(
    ((best == end_id) & (count < least)).any(),
    lambda x: sampling.find_best(ban(x)),
    lambda x: best,
    logits,
  )


def _choose_processed(
  settings: RowSettings, history: History, logits, end_id: int
):
  """Returns tokens [R], with all that rows may ask for."""
  logits = process_row_logits(settings, history, logits, end_id)
  return jax.lax.cond(
    (settings.temperature > 0).any(),
    lambda x: _sample(settings, history, x),
    sampling.find_best,
    logits,
  )


def _sample(settings: RowSettings, history: History, logits):
  """Returns sampled tokens [R], and of rows without temperature the best."""
  best = sampling.find_best(logits)

  def choose(row):
    sampled = row[0].temperature > 0
    return jax.lax.cond(sampled, _sample_row, lambda *row: row[-1], *row)

  rows = settings, history.count, logits, best
  # On a CPU row by row: sorting and random numbers are dear, and few may ask.
  if sharding.current_target()[0] == 'cpu':
    return jax.lax.map(choose, rows)
  return jax.vmap(choose)(rows)


def _sample_row(settings: RowSettings, count, logits, best):
  """Returns the token that one row samples from logits [V]."""
  del best
  logits = logits / settings.temperature
  cut = (settings.top_k > 0) | (settings.top_p < 1) | (settings.min_p > 0)
  truncate = lambda x: sampling.truncate_logits(settings, x[None])[0]
  logits = _apply_where(cut, truncate, logits)
  key = jax.random.key(settings.seed)
  for number in (settings.number, settings.result, count):
    key = jax.random.fold_in(key, number)
  return jax.random.categorical(key, logits).astype(jnp.int32)


def find_top(settings: RowSettings, logits, top: int):
  """Returns the likeliest ids [..., top] of logits [..., V], and how likely.

  Zeros where no row asks for any.
  """
  shape = *logits.shape[:-1], top
  none = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
  find = lambda x: tuple(jax.lax.top_k(jax.nn.log_softmax(x), top)[::-1])
  return jax.lax.cond((settings.top > 0).any(), find, lambda x: none, logits)
