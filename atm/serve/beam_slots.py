"""Groups of rows that search beams together on the device.

As `slots`, but the rows of a group share one input's cross keys and values, and
each request has as many beams of a group's as it asks for. Choices are those of
`atm.inference.beam_search`, by rules that are arrays.

Letters as in `atm.model.transformer`; G groups of k beams.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from atm.inference import beam_search, sampling
from atm.inference.beam_search import BeamRules, BeamState
from atm.inference.sampling import History
from atm.model.transformer import AlexaTM
from atm.serve import row_sampling, slots
from atm.serve.generation_request import GenerationRequest, RequestOutput
from atm.serve.row_sampling import EARLY_STOPPING, RowSettings
from atm.serve.stop_pool import StopStates


@flax.struct.dataclass
class GroupRow:
  """What a request brings to its group; G groups, or without the axis of one.

  Attributes:
    ids: [G, T], the prefix, padding behind.
    length: [G], of the prefix.
    beams: [G], how many the request has.
    settings: of [G].
    history: of [G], as before the first token; None on the device, where
      each beam has its own.
  """

  ids: jax.Array
  length: jax.Array
  beams: jax.Array
  settings: RowSettings
  history: History | None


@flax.struct.dataclass
class GroupState:
  """All that groups have on the device.

  Attributes:
    search: caches and beams of G inputs. What beam j read at position t is in
      slot t x k + j; while a prefix is read, only beam 0's counts. Beams have
      an `origin` [G, k, T], too: of which beam each token was chosen.
    position: [G], of the id that is read next.
    row: see GroupRow.
    top_ids, top_logs: [G, T, k, TOP], the likeliest ids behind what each beam
      read at a position, where a request asks for them.
  """

  search: BeamState
  position: jax.Array
  row: GroupRow
  top_ids: jax.Array
  top_logs: jax.Array


@dataclasses.dataclass(frozen=True)
class GroupRules(BeamRules):
  """What decides over beams where each group has settings of its own.

  Attributes:
    sampler: RowSettings of [G].
    end_id, k: see BeamRules; k is the most beams that a request may have.
    beams: [G], how many it has.
    stops: the table of a `StopPool`.
  """

  beams: jax.Array
  stops: jax.Array

  @property
  def own(self):
    """Beams of each input, [G, 1]."""
    return self.beams[:, None]

  @property
  def length_penalty(self):
    """See BeamRules; [G, 1]."""
    return self.sampler.length_penalty[:, None]

  @property
  def ends_early(self):
    """See BeamRules; [G]."""
    return self.sampler.early_stopping == EARLY_STOPPING[True]

  def limit(self, x, fill, times: int = 1):
    """Returns x [G, times x k], `fill` past a request's own beams."""
    return jnp.where(jnp.arange(x.shape[1]) < times * self.own, x, fill)

  def _repeat_settings(self, rows: int) -> RowSettings:
    """Returns the settings of so many rows for each group."""
    return jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), self.sampler)

  def process(self, history: History, log_probabilities):
    """Applies penalties, bans and lengths to log-probabilities [G x k, V]."""
    return row_sampling.process_row_logits(
      self._repeat_settings(self.k), history, log_probabilities, self.end_id
    )

  def append(self, history: History, token) -> History:
    """Returns the history with token [R] written."""
    is_open = jnp.ones(len(token), bool)
    return row_sampling.append_row_token(self.stops, history, token, is_open)

  def has_stopped(self, history: History):
    """Returns [G x 2 k], see `sampling.has_stopped`."""
    return sampling.has_stopped(self._repeat_settings(2 * self.k), history)

  def count(self, history: History):
    """Returns how many tokens `branch`'s rows have written, [G, 1, 1]."""
    return self._of_first(history.count)[..., None]

  def counted(self, history: History, count):
    """Returns that with the forced tokens, [G, 1]."""
    del count
    return self._of_first(history.counted)

  def _of_first(self, x):
    """Returns [G, 1] of x [G x 2 k], which is one number for all of a group."""
    return beam_search.unflatten_beams(x, 2 * self.k)[:, :1]

  def note(self, candidates: dict, beam, at) -> dict:
    """Returns the beams that each token of candidates was chosen of."""
    return {'origin': jnp.where(at, beam[..., None], candidates['origin'])}

  def reach(self, count):
    """Returns the tokens at which a running beam's score is looked at."""
    never = self.sampler.early_stopping == EARLY_STOPPING['never']
    return jnp.where(never[:, None], self.sampler.max_tokens[:, None], count)

  def close_full(self, is_open, full):
    """Returns is_open [G] without those that end early, as they are `full`."""
    return is_open & ~(full.all(1) & self.ends_early)


# --- On the host


def make_group_row(
  request: GenerationRequest, sizes, pad_id: int, stops: StopStates | None
) -> GroupRow:
  """Returns what a request brings to its group; see `slots.make_row`."""
  T, S, length = sizes.max_output, sizes.max_input, len(request.prefix)
  ids = np.full(T, pad_id, np.int32)
  ids[:length] = request.prefix
  room = row_sampling.limit_tokens(request, T)
  start, end = (stops.start, stops.end) if stops else (0, -1)
  return GroupRow(
    ids,
    np.int32(length),
    np.int32(request.config.beams),
    row_sampling.make_settings(request, 0, room, sizes.banned, end),
    row_sampling.make_history(request, T, S, start),
  )


def empty_row(pad_id: int, sizes) -> GroupRow:
  """Returns the row of a group that nothing was admitted to."""
  request = GenerationRequest((0,), (0,))
  return make_group_row(request, sizes, pad_id, None)


def collect_beams(
  request: GenerationRequest, search: dict, reason: str | None = None
) -> list[RequestOutput]:
  """Returns a request's outputs, the best first.

  Args:
    request: what was asked.
    search: `finished`, `full`, `running`, `top_ids` and `top_logs` of its
      group, on the host.
    reason: why the search ends before its time: running beams are outputs, too,
      as they are.
  """
  config, outputs = request.config, []
  pick = lambda beams, j: {name: x[j] for name, x in beams.items()}
  for j in range(config.beams):
    beam = pick(search['finished'], j)
    if search['full'][j] or reason is None:
      outputs.append(_collect_beam(request, search, beam, None))
    beam = pick(search['running'], j)
    if reason is not None and beam['score'] > beam_search.NO_SCORE / 2:
      count = np.float32(max(1, beam['count'] + request.forced))
      beam['score'] = beam['score'] / count ** np.float32(config.length_penalty)
      outputs.append(_collect_beam(request, search, beam, reason))
  outputs.sort(key=lambda x: x.score, reverse=True)  # stable
  none = RequestOutput([], [], [], 0.0, reason or 'stop')
  outputs += [none] * (config.results - len(outputs))
  return outputs[: config.results]


def _collect_beam(request, search, beam, reason: str | None) -> RequestOutput:
  """Returns an output; without a reason it ended by itself."""
  ids = beam['ids'][: beam['length']].tolist()
  if reason is None:
    ended = beam['count'] > beam['length'] or _reads_stop(request, ids)
    reason = 'stop' if ended else 'length'
  logs = beam['log_probabilities'][: beam['count']].tolist()
  top = _collect_top(request, search, beam) if request.top else []
  return RequestOutput(ids, logs, top, float(beam['score']), reason)


def _collect_top(request, search, beam) -> list[tuple]:
  """Returns the likeliest ids at each of a beam's tokens."""
  top, first = request.top, len(request.prefix) - 1
  return [
    tuple(
      zip(
        search['top_ids'][first + i, j, :top].tolist(),
        search['top_logs'][first + i, j, :top].tolist(),
      )
    )
    for i, j in enumerate(beam['origin'][: beam['count']])
  ]


def _reads_stop(request: GenerationRequest, ids: list[int]) -> bool:
  """Tells whether the ids behind a prefix have a stop string."""
  table = request.stop_table
  if table is None:
    return False
  state = int((table[0, list(request.prefix)] > 0).any())
  for i in ids:
    state = table[state, i]
  return bool(state == len(table) - 1)


# --- On the device


def empty_groups(model: AlexaTM, params, sizes) -> GroupState:
  """Returns groups that nothing was admitted to."""
  G, k, pad_id = sizes.beam_groups, sizes.beams, model.config.pad_id
  S, T = sizes.max_input, sizes.max_output
  row = slots.fill_rows([empty_row(pad_id, sizes)], G)
  row = jax.tree.map(jnp.asarray, row)
  blank = {
    'ids': jnp.full((G, k, T), pad_id, jnp.int32),
    'log_probabilities': jnp.zeros((G, k, T), jnp.float32),
    'origin': jnp.zeros((G, k, T), jnp.int32),
    'length': jnp.zeros((G, k), jnp.int32),
    'count': jnp.zeros((G, k), jnp.int32),
    'score': jnp.full((G, k), beam_search.NO_SCORE, jnp.float32),
  }
  search = BeamState(
    caches=slots.empty_caches(model, params, G, S, T * k),
    source=jnp.zeros((G, S), jnp.int32),
    seen=jnp.zeros((G, k, T * k), bool),
    token=jnp.zeros((G, k), jnp.int32),
    history=_begin_beams(model, row.history, k),
    running=blank,
    finished=blank,
    full=jnp.zeros((G, k), bool),
    open=jnp.zeros(G, bool),
  )
  row = row.replace(history=None)
  top = jnp.zeros((G, T, k, sizes.top), jnp.int32)
  position = jnp.zeros(G, jnp.int32)
  return GroupState(search, position, row, top, top.astype(jnp.float32))


def _begin_beams(model: AlexaTM, history: History, k: int) -> History:
  """Returns the history of [G x k] beams that have written nothing."""
  history = jax.tree.map(lambda x: jnp.repeat(x, k, axis=0), history)
  return row_sampling.begin_rows(history, model.config.vocab_size)


def admit_groups(
  model, params, state: GroupState, tokens, lengths, count, inputs, groups,
  row: GroupRow,
) -> GroupState:  # fmt: skip
  """Reads encoder inputs once and fills groups with them; see `slots.admit`.

  `inputs` and `groups` are [G], and `row` is what is written to `groups`.
  """
  search = state.search
  caches, source = slots.read_sources(
    model, params, search.caches, search.source, tokens, lengths, count, inputs,
    groups,
  )  # fmt: skip
  G, k = search.token.shape
  put = lambda x, new: x.at[groups].set(new, mode='drop')
  # Beams that a request does not have are full, and never score.
  missing = jnp.arange(k) >= row.beams[:, None]
  limit = lambda x: jnp.where(missing, -jnp.inf, x)
  # All beams are one as yet: only the first has continuations that count.
  first = jnp.where(jnp.arange(k) == 0, 0.0, beam_search.NO_SCORE)
  blank = dict(length=0, count=0, log_probabilities=0.0, origin=0)
  blank |= dict(ids=model.config.pad_id)
  fill = lambda beams, score: {
    **{name: put(beams[name], value) for name, value in blank.items()},
    'score': put(beams['score'], limit(score)),
  }
  none = jnp.full((G, k), beam_search.NO_SCORE)
  beam_rows = (groups[:, None] * k + jnp.arange(k)).reshape(-1)
  search = search.replace(
    caches=caches,
    source=source,
    seen=put(search.seen, False),
    history=jax.tree.map(
      lambda x, new: x.at[beam_rows].set(new, mode='drop'),
      search.history,
      _begin_beams(model, row.history, k),
    ),
    running=fill(search.running, first),
    finished=fill(search.finished, none),
    full=put(search.full, missing),
    open=put(search.open, True),
  )
  row = jax.tree.map(put, state.row, row.replace(history=None))
  return state.replace(search=search, position=put(state.position, 0), row=row)


@flax.struct.dataclass
class GroupSteps:
  """What a call of `take_group_steps` tells.

  Attributes:
    count: how many steps were taken.
    is_open: bool [G], which groups have not ended.
  """

  count: jax.Array
  is_open: jax.Array


def take_group_steps(
  model, params, state: GroupState, stops, is_open, limit, sizes,
  window: tuple[int, int, int],
):  # fmt: skip
  """Takes up to `limit` steps of open groups; returns (state, GroupSteps).

  Args:
    model, params, state: see `admit_groups`.
    stops: the table of a `StopPool`.
    is_open: bool [G], groups that search.
    limit, sizes, window: see `slots.take_steps`.
  """
  caches, k = state.search.caches, state.search.token.shape[1]
  _, T, S = window
  part = state.replace(search=state.search.replace(
    caches=slots.cut_caches(caches, len(is_open), T * k, S),
    source=state.search.source[:, :S],
    seen=state.search.seen[..., : T * k],
  ))  # fmt: skip

  settings = slots.quiet_settings(state.row.settings, is_open, sizes.banned)
  rules = GroupRules(settings, model.config.end_id, k, state.row.beams, stops)

  def goes_on(carry):
    count, is_open, ended, _ = carry
    # A call without open groups takes all steps: so they are timed.
    return (count < limit) & ~(ended & ~is_open.any())

  def step(carry):
    count, is_open, ended, part = carry
    part = _step_groups(model, params, rules, part, is_open)
    still = is_open & part.search.open
    return count + 1, still, ended | (is_open & ~still).any(), part

  carry = jnp.int32(0), is_open, jnp.bool_(False), part
  count, is_open, _, part = jax.lax.while_loop(goes_on, step, carry)
  search = part.search.replace(
    caches=slots.paste_caches(caches, part.search.caches),
    source=state.search.source,
    seen=slots.paste(state.search.seen, part.search.seen),
  )
  return part.replace(search=search), GroupSteps(count, is_open)


def _step_groups(model, params, rules, state: GroupState, is_open):
  """Reads an id of every beam and, behind the prefix, writes one more."""
  search, row = state.search, state.row
  (G, k), room = search.token.shape, search.seen.shape[-1]
  at = jnp.minimum(state.position, room // k - 1)[:, None]
  in_prefix = at < row.length[:, None]
  token = jnp.take_along_axis(row.ids, at, axis=1)
  token = jnp.where(in_prefix, token, search.token)
  written = at * k + jnp.arange(k)
  # While the prefix is read, all beams are the first.
  own = jnp.where(in_prefix, at * k, written)
  seen = search.seen | (jnp.arange(room) == own[..., None])
  logits, caches = model.apply(
    {'params': params}, token, jnp.broadcast_to(at, (G, k)), search.caches,
    search.source, slots=written, seen=seen, method=AlexaTM.decode_cached,
  )  # fmt: skip
  search = search.replace(caches=caches, seen=seen)
  writes = is_open & (at[:, 0] + 1 >= row.length)
  extended = beam_search.extend_beams(rules, search, logits)

  def choose(new, old):
    """Returns groups or beams that write anew, and others as they are."""
    chosen = jnp.repeat(writes, len(new) // G)
    return jnp.where(chosen[(...,) + (None,) * (new.ndim - 1)], new, old)

  fields = 'seen', 'token', 'history', 'running', 'finished', 'full', 'open'
  search = search.replace(**{
    name: jax.tree.map(choose, getattr(extended, name), getattr(search, name))
    for name in fields
  })  # fmt: skip
  tops = row_sampling.find_top(rules.sampler, logits, state.top_ids.shape[-1])
  top_ids, top_logs = (
    x.at[jnp.arange(G), at[:, 0]].set(new)
    for x, new in zip((state.top_ids, state.top_logs), tops)
  )
  return state.replace(
    search=search, position=state.position + is_open, top_ids=top_ids,
    top_logs=top_logs,
  )  # fmt: skip
