"""Rows that decode together on the device: their state, and what changes it.

Pure functions of arrays. A slot is a row of every array of `SlotState`, which
is allocated once, donated to each program and written in place. `admit` fills
slots, `take_steps` takes steps of all of them.

There is no prefill of decoder prefixes: a row's `ids` begin with its prefix,
and for scoring with its targets, too. Each step reads the id at the row's
position and, where no next id is given, chooses one.

Letters as in `atm.model.transformer`; R slots.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from atm.inference import sampling
from atm.inference.generate import encode
from atm.inference.sampling import History
from atm.model import cache_blocks
from atm.model.transformer import AlexaTM
from atm.parallel.sharding import constrain
from atm.serve import row_sampling
from atm.serve.generation_request import GenerationRequest
from atm.serve.row_sampling import RowSettings
from atm.serve.stop_pool import StopStates

# Why a row ended; REASONS[code] as in `RequestOutput.reason`.
OPEN, STOP, LENGTH = 0, 1, 2
REASONS = ('', 'stop', 'length')


@flax.struct.dataclass
class Row:
  """What a request brings to its slot; R rows.

  Attributes:
    ids: [R, T + 1], given ids, then those that were written, padding behind.
    length: [R], how many these are.
    told: [R], ids before this one are a prefix, of which nothing is told.
    is_scored: [R] bool, ends with its given ids.
    settings, history: see `row_sampling`.
  """

  ids: jax.Array
  length: jax.Array
  told: jax.Array
  is_scored: jax.Array
  settings: RowSettings
  history: History


def make_row(
  request: GenerationRequest, result: int, sizes, pad_id: int,
  stops: StopStates | None,
) -> Row:  # fmt: skip
  """Returns the row of one of a request's results, on the host.

  Args:
    request, result: what is asked, and which of its outputs.
    sizes: of an engine.
    pad_id: behind the given ids.
    stops: where the request's stop strings are in the table.
  """
  given = [*request.prefix, *(request.targets or ())]
  ids = np.full(sizes.max_output + 1, pad_id, np.int32)
  ids[: len(given)] = given
  room = 1
  if request.targets is None:
    room = row_sampling.limit_tokens(request, sizes.max_output)
  start, end = (stops.start, stops.end) if stops else (0, -1)
  return Row(
    ids,
    np.int32(len(given)),
    np.int32(len(request.prefix)),
    np.bool_(request.targets is not None),
    row_sampling.make_settings(request, result, room, sizes.banned, end),
    row_sampling.make_history(
      request, sizes.max_output, sizes.max_input, start
    ),
  )


def fill_rows(rows: list[Row], R: int) -> Row:
  """Returns R rows, with the last of `rows` again behind them."""
  rows = rows + rows[-1:] * (R - len(rows))
  return row_sampling.stack_rows(rows)


@flax.struct.dataclass
class SlotState:
  """All that slots have on the device.

  Attributes:
    caches: a `layers.KVCache` of R rows for each layer.
    source: [R, S] int32, 1 where the encoder read an id.
    position: [R], of the id that is read next.
    row: see Row.
  """

  caches: list
  source: jax.Array
  position: jax.Array
  row: Row


@flax.struct.dataclass
class Steps:
  """What a call of `take_steps` tells; K steps, R rows.

  Attributes:
    count: how many of the K steps were taken.
    token: int32 [K, R]; -1 where a step told nothing of a row.
    log_probability: float32 [K, R], by the model.
    top_ids, top_logs: [K, R, TOP], the likeliest ids.
    ended: int32 [K, R], OPEN, STOP or LENGTH.
  """

  count: jax.Array
  token: jax.Array
  log_probability: jax.Array
  top_ids: jax.Array
  top_logs: jax.Array
  ended: jax.Array


def compute_cross(model: AlexaTM, params, tokens, segments) -> list:
  """Returns each layer's cross keys [B, H, K, S] and values [B, H, S, K]."""
  encoded = encode(model, params, tokens, segments)
  caches = model.apply(
    {'params': params}, encoded, 1, method=AlexaTM.empty_cache
  )
  return [(x.cross_keys, x.cross_values) for x in caches]


def empty_caches(
  model: AlexaTM, params, R: int, S: int, T: int, in_blocks: bool = False
) -> list:
  """Returns a `layers.KVCache` of R rows for each layer, all of zeros."""
  c = model.config
  encoded = jnp.zeros((R, S, c.d_model), c.dtype)
  caches = model.apply(
    {'params': params}, encoded, T, method=AlexaTM.empty_cache
  )
  # Of the right shapes and shardings; no product of zeros by parameters.
  caches = jax.tree.map(
    lambda x: constrain(
      jnp.zeros(x.shape, x.dtype), 'batch', 'heads', None, None
    ),
    caches,
  )
  return [split_caches(x) for x in caches] if in_blocks else caches


def split_caches(cache):
  """Returns a `layers.KVCache` in blocks."""
  split = cache_blocks.split_cache
  return cache.replace(
    self_keys=split(cache.self_keys, 3),
    self_values=split(cache.self_values, 2),
    cross_keys=split(cache.cross_keys, 3),
    cross_values=split(cache.cross_values, 2),
  )


def empty_state(
  model: AlexaTM, params, sizes, in_blocks: bool = False
) -> SlotState:
  """Returns slots that nothing was admitted to."""
  R, S, T = sizes.slots, sizes.max_input, sizes.max_output
  request = GenerationRequest((0,), (0,))
  row = fill_rows([make_row(request, 0, sizes, model.config.pad_id, None)], R)
  return SlotState(
    empty_caches(model, params, R, S, T, in_blocks),
    jnp.zeros((R, S), jnp.int32),
    jnp.zeros(R, jnp.int32),
    jax.tree.map(jnp.asarray, _begin_rows(model, row)),
  )


def _begin_rows(model: AlexaTM, row: Row) -> Row:
  begin = row_sampling.begin_rows(row.history, model.config.vocab_size)
  return row.replace(history=begin)


def admit(
  model, params, state: SlotState, tokens, lengths, count, inputs, slots,
  row: Row,
) -> SlotState:  # fmt: skip
  """Reads encoder inputs once and fills slots with them.

  Args:
    model, params: what reads.
    state: of the slots.
    tokens, lengths: [B, S] encoder ids, padding behind, and [B] how many.
    count: how many slots are filled, at most R.
    inputs, slots: [R], which of B goes to which slot; those behind `count`
      count for nothing, their slot is R.
    row: what is written to `slots`, in order, of `fill_rows`.
  """
  caches, source = read_sources(
    model, params, state.caches, state.source, tokens, lengths, count, inputs,
    slots,
  )  # fmt: skip
  # Which of `row` each slot takes, -1 of none: a TPU scatters rows one by one,
  # with a copy of all for each.
  R = len(state.position)
  taken = jnp.full(R, -1).at[slots].set(jnp.arange(R), mode='drop')
  write = lambda x, new: jnp.where(
    (taken >= 0)[(...,) + (None,) * (x.ndim - 1)], new[taken], x
  )
  return state.replace(
    caches=caches,
    source=source,
    position=jnp.where(taken >= 0, 0, state.position),
    row=jax.tree.map(write, state.row, _begin_rows(model, row)),
  )


def read_sources(
  model, params, caches, source, tokens, lengths, count, inputs, slots
):
  """Reads encoder inputs once; returns caches and `source` with them.

  See `admit`; caches and source are those of its state.
  """
  S = tokens.shape[1]
  segments = (jnp.arange(S) < lengths[:, None]).astype(jnp.int32)
  cross = compute_cross(model, params, tokens, segments)
  place = functools.partial(_place, cross, segments, inputs, slots)
  held = [(x.cross_keys, x.cross_values) for x in caches]
  held, source = jax.lax.fori_loop(0, count, place, (held, source))
  caches = [
    x.replace(cross_keys=keys, cross_values=values)
    for x, (keys, values) in zip(caches, held)
  ]
  return caches, source


def _place(cross, segments, inputs, slots, i, held):
  """Copies the keys and values of input inputs[i] to slot slots[i]."""
  layers, source = held
  number, slot = inputs[i], slots[i]

  def put(x, new, axis):
    new = jax.lax.dynamic_slice_in_dim(new, number, 1)
    if isinstance(x, tuple):
      return cache_blocks.place_row(x, new, slot, axis)
    return jax.lax.dynamic_update_slice(x, new, (slot, *(0,) * (x.ndim - 1)))

  layers = [
    (put(keys, new[0], 3), put(values, new[1], 2))
    for (keys, values), new in zip(layers, cross, strict=True)
  ]
  # A longer input may have been here before.
  new = jnp.pad(segments, ((0, 0), (0, source.shape[1] - segments.shape[1])))
  return layers, put(source, new, 1)


def take_steps(
  model, params, state: SlotState, stops, is_open, limit, sizes,
  window: tuple[int, int, int],
):  # fmt: skip
  """Takes up to `limit` steps of the open rows; returns (state, Steps).

  Args:
    model, params, state: see `admit`.
    stops: [states, V], the table of a `StopPool`.
    is_open: bool [R], rows that decode.
    limit: steps to take, at most K = sizes.most_steps. It ends before when all
      rows have ended.
    sizes: of an engine.
    window: (rows, T, S): open rows are among the first, and so is what they
      read and write; nothing else is computed. Caches in blocks are not cut.
  """
  R, T, S = window
  K, top = sizes.most_steps, sizes.top
  part = _cut(state, R, T, S)
  first = jnp.arange(S) == 0
  part = part.replace(source=jnp.where(is_open[:R, None], part.source, first))
  settings = quiet_settings(part.row.settings, is_open[:R], sizes.banned)
  steps = Steps(
    jnp.int32(0),
    jnp.full((K, R), -1, jnp.int32),
    jnp.zeros((K, R)),
    jnp.zeros((K, R, top), jnp.int32),
    jnp.zeros((K, R, top)),
    jnp.zeros((K, R), jnp.int32),
  )

  def goes_on(carry):
    _, is_open, ended, steps = carry
    # A call without open rows takes all steps: so they are timed.
    return (steps.count < limit) & ~(ended & ~is_open.any())

  carry = part, is_open[:R], jnp.bool_(False), steps
  step = functools.partial(_step, model, params, stops, settings, top)
  part, _, _, steps = jax.lax.while_loop(goes_on, step, carry)
  return _paste(state, part), steps


def quiet_settings(settings: RowSettings, is_open, banned) -> RowSettings:
  """Returns settings with rows that are not open asking for nothing dear."""
  none = row_sampling.empty_settings(1, banned)
  shape = lambda x: (-1, *(1,) * (x.ndim - 1))
  return jax.tree.map(
    lambda x, y: jnp.where(is_open.reshape(shape(x)), x, y), settings, none
  )


def cut_caches(caches: list, R: int, T: int, S: int) -> list:
  """Returns the first R rows, T decoder and S encoder positions of caches.

  Of caches in blocks, which are read as far as they are filled, all.
  """

  def cut(x, axis: int, length: int):
    if isinstance(x, tuple):
      return x
    return jax.lax.slice_in_dim(x[:R], 0, length, axis=axis)

  return [
    x.replace(
      self_keys=cut(x.self_keys, 3, T),
      self_values=cut(x.self_values, 2, T),
      cross_keys=cut(x.cross_keys, 3, S),
      cross_values=cut(x.cross_values, 2, S),
    )
    for x in caches
  ]


def paste_caches(caches: list, part: list) -> list:
  """Returns caches with what decoding wrote to a part of them."""
  return [
    x.replace(
      self_keys=paste(x.self_keys, new.self_keys),
      self_values=paste(x.self_values, new.self_values),
    )
    for x, new in zip(caches, part)
  ]


def paste(x, new):
  """Returns x with its first rows and positions those of `new`."""
  if isinstance(x, tuple):
    return new
  return jax.lax.dynamic_update_slice(x, new, (0,) * x.ndim)


def _cut(state: SlotState, R: int, T: int, S: int) -> SlotState:
  """Returns the first R rows, T decoder and S encoder positions of a state."""
  caches = cut_caches(state.caches, R, T, S)
  row = jax.tree.map(lambda x: x[:R], state.row)
  return SlotState(caches, state.source[:R, :S], state.position[:R], row)


def _paste(state: SlotState, part: SlotState) -> SlotState:
  """Returns a state with what `take_steps` may have changed in a part of it."""
  return state.replace(
    caches=paste_caches(state.caches, part.caches),
    position=paste(state.position, part.position),
    row=jax.tree.map(paste, state.row, part.row),
  )


def _step(model, params, stops, settings, top: int, carry):
  """Reads one id of each row, and writes the next where none is given."""
  state, is_open, ended, steps = carry
  row, number, end_id = state.row, jnp.arange(len(is_open)), model.config.end_id
  room = cache_blocks.count_positions(state.caches[0].self_values)
  # A row without a request reads and writes at its beginning alone.
  at = jnp.where(is_open, jnp.minimum(state.position, room - 1), 0)
  logits, caches = model.apply(
    {'params': params}, row.ids[number, at][:, None], at[:, None],
    state.caches, state.source, jnp.zeros_like(at),
    method=AlexaTM.decode_cached,
  )  # fmt: skip
  given, chooses = row.ids[number, at + 1], at + 1 >= row.length
  token, picked = row_sampling.choose_row_tokens(
    settings, row.history, logits, end_id, jnp.where(chooses, -1, given)
  )
  chooses &= is_open
  history = row_sampling.append_row_token(stops, row.history, token, chooses)
  writes = chooses & (token != end_id)
  row = row.replace(
    ids=row.ids.at[number, at + 1].set(jnp.where(writes, token, given)),
    length=row.length + writes,
    history=history,
  )
  code = _find_ends(settings, row, chooses, chooses & ~writes)
  is_read = is_open & row.is_scored & (at + 2 >= row.length)
  code = jnp.where(is_read, STOP, code)
  steps = _note_step(
    steps,
    jnp.where(is_open & (at + 1 >= row.told), token, -1),
    picked,
    *row_sampling.find_top(settings, logits, top),
    code,
  )
  state = state.replace(
    caches=caches, position=state.position + is_open, row=row
  )
  return state, is_open & (code == OPEN), ended | (code != OPEN).any(), steps


def _find_ends(settings, row: Row, chooses, ends):
  """Returns codes [R] of rows that chose a token, `ends` where the end's."""
  stopped = sampling.has_stopped(settings, row.history)
  by_string = row.history.state == settings.stop_end
  code = jnp.where(by_string, STOP, jnp.where(stopped, LENGTH, OPEN))
  return jnp.where(ends, STOP, jnp.where(chooses, code, OPEN))


def _note_step(steps: Steps, *columns) -> Steps:
  """Returns `steps` with those of one more."""
  fields = 'token', 'log_probability', 'top_ids', 'top_logs', 'ended'
  put = lambda x, new: jax.lax.dynamic_update_index_in_dim(
    x, new, steps.count, 0
  )
  new = {k: put(getattr(steps, k), x) for k, x in zip(fields, columns)}
  return steps.replace(count=steps.count + 1, **new)
