"""Groups of beams of different settings, against `beam_search` of each alone.

Logits are tables by the tokens written and the last of them, where a model's
would hide a fault of a beam; engine_test has a model.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np

from atm.inference import beam_search
from atm.inference.sampling import Config, Sampler
from atm.serve import beam_slots, row_sampling, slots
from atm.serve.engine_sizes import EngineSizes
from atm.serve.generation_request import GenerationRequest
from atm.serve.stop_pool import StopStates

V, S, T, G, K, START, END = 12, 6, 12, 3, 4, 1, 2
SIZES = EngineSizes(
  beam_groups=G, beams=K, max_input=S, max_output=T, banned=(2, 3), top=4
)
LOGITS = np.random.default_rng(0).normal(size=(T, V, V)).astype(np.float32) * 2
MODEL = types.SimpleNamespace(
  config=types.SimpleNamespace(vocab_size=V, end_id=END, start_id=1, pad_id=0)
)


class Tables:
  """A model whose logits are LOGITS, at positions and of tokens."""

  config = MODEL.config

  def __hash__(self):
    return 0

  def apply(self, params, tokens, positions, caches, source, **_):
    """Reads tokens as `AlexaTM.decode_cached` does."""
    return jnp.asarray(LOGITS)[positions, tokens], caches


def stop_table() -> np.ndarray:
  """Returns a table that stops behind 7 and then 8 or 9."""
  table = np.ones((4, V), np.int32)
  table[:, 7] = 2
  table[2, 8:10] = table[3] = 3
  return table


# What `beam_search` compiles a program for; requests of each differ otherwise.
KINDS = (
  dict(beams=2, repetition_penalty=1.5, no_repeat_ngram_size=2),
  dict(beams=3, early_stopping=True, forced_eos=True),
  dict(beams=4, early_stopping='never', encoder_no_repeat_ngram_size=2),
)


def draw_request(rng, kind: dict) -> GenerationRequest:
  """Returns a request of one of KINDS."""
  ids = lambda n: tuple(rng.integers(3, V, n).tolist())
  config = Config(
    max_tokens=int(rng.integers(3, 10)),
    min_tokens=int(rng.choice([0, 3])),
    results=int(rng.integers(1, kind['beams'] + 1)),
    length_penalty=float(rng.choice([1.0, 0.0, 2.0, -1.0])),
    **kind,
  )
  prefix = (START, *ids(rng.integers(0, 3)))
  return GenerationRequest(
    ids(rng.integers(1, S + 1)),
    prefix,
    config,
    forced=int(rng.integers(len(prefix))),
    stop_table=None if config.forced_eos else stop_table(),
    banned=(ids(1), ids(rng.integers(1, 4))),
    top=int(rng.choice([0, 3])),
  )


@functools.partial(jax.jit, static_argnames='k')
def search_alone(sampler, ids, segments, prefix, length, k, forced) -> dict:
  """Returns the finished beams of `beam_search`."""
  beams = beam_search.start_beams(
    MODEL, None, sampler, ids, segments, prefix, length, T, k, forced
  )
  rules = beam_search.BeamRules(sampler, END, k)

  def extend(beams):
    position = length[0] - 1 + beams.history.count[0]
    logits = jnp.asarray(LOGITS)[position, beams.token]
    return beam_search.extend_beams(rules, beams, logits)

  return jax.lax.while_loop(lambda x: x.open[0], extend, beams).finished


def expect(request: GenerationRequest, monkeypatch) -> dict:
  """Returns the finished beams of a request, by `beam_search`."""
  sampler = Sampler.from_config(
    request.config, request.banned, request.stop_table
  )
  room = np.int32(row_sampling.limit_tokens(request, T))
  ids, prefix = np.zeros((1, S), np.int32), np.zeros((1, 4), np.int32)
  ids[0, : len(request.ids)] = request.ids
  prefix[0, : len(request.prefix)] = request.prefix
  read = lambda model, params, ids, segments, prefix, length, room: (
    jnp.asarray(LOGITS)[length - 1, prefix[0, length - 1]], []
  )  # fmt: skip
  monkeypatch.setattr(beam_search, 'prefill', read)
  segments = (np.arange(S) < len(request.ids)).astype(np.int32)[None]
  finished = search_alone(
    sampler.replace(max_tokens=room), ids, segments, prefix,
    np.array([len(request.prefix)]), request.config.beams,
    np.array([request.forced]),
  )  # fmt: skip
  return jax.tree.map(lambda x: np.asarray(x[0]), finished)


class Groups:
  """Groups with programs of their own, as the engine has them."""

  def __init__(self, monkeypatch):
    monkeypatch.setattr(slots, 'empty_caches', lambda *_: [])
    monkeypatch.setattr(
      slots, 'read_sources', lambda model, params, *kept: kept[:2]
    )
    model = Tables()
    stops = jnp.concatenate([jnp.zeros((1, V), jnp.int32), 1 + stop_table()])
    make = lambda: beam_slots.empty_groups(model, None, SIZES)
    self.state = jax.jit(make)()
    self.admit_groups = jax.jit(
      lambda *args: beam_slots.admit_groups(model, None, *args)
    )
    self.take_steps = jax.jit(
      lambda *args: beam_slots.take_group_steps(
        model, None, args[0], stops, *args[1:], SIZES, (G, T, S)
      )
    )

  def admit(self, group: int, request: GenerationRequest) -> None:
    """Fills a group."""
    table = request.stop_table
    stops = None if table is None else StopStates(table, 1, 4)
    row = beam_slots.make_group_row(request, SIZES, 0, stops)
    rows = row_sampling.stack_rows([row] * G)
    groups = np.array([group] + [G] * (G - 1), np.int32)
    self.state = self.admit_groups(
      self.state, np.zeros((1, S), np.int32), np.ones(1, np.int32), 1,
      np.zeros(G, np.int32), groups, rows,
    )  # fmt: skip

  def read(self, group: int) -> dict:
    """Returns what `collect_beams` reads of a group."""
    search = self.state.search
    parts = {x: getattr(search, x) for x in ('finished', 'full', 'running')}
    parts |= dict(top_ids=self.state.top_ids, top_logs=self.state.top_logs)
    return jax.tree.map(lambda x: np.asarray(x[group]), parts)


def check_top(request: GenerationRequest, output) -> None:
  """Checks the likeliest tokens by the tables of logits."""
  if not request.top:
    assert not output.top
    return
  assert len(output.top) == len(output.log_probabilities)
  read = [*request.prefix, *output.ids][len(request.prefix) - 1 :]
  for i, (token, pairs) in enumerate(zip(read, output.top)):
    logits = LOGITS[len(request.prefix) - 1 + i, token]
    logs = logits - np.log(np.exp(logits).sum())
    ids, values = zip(*pairs)
    assert list(ids) == np.argsort(-logs)[: request.top].tolist()
    np.testing.assert_allclose(values, logs[list(ids)], rtol=1e-5)


def test_groups_search_as_each_request_alone(monkeypatch):
  """One program, whatever requests are side by side, begun at any time."""
  rng, groups, taken = np.random.default_rng(0), Groups(monkeypatch), {}
  waiting = [draw_request(rng, KINDS[i % 3]) for i in range(18)]
  while waiting or taken:
    free = [g for g in range(G) if g not in taken]
    if waiting and free and rng.random() < 0.6:
      taken[free[0]] = waiting.pop()
      groups.admit(free[0], taken[free[0]])
    is_open = np.isin(np.arange(G), list(taken))
    limit = int(rng.integers(1, 5))
    groups.state, steps = groups.take_steps(groups.state, is_open, limit)
    assert steps.count <= limit
    for g in np.flatnonzero(is_open & ~np.asarray(steps.is_open)).tolist():
      request = taken.pop(g)
      outputs = beam_slots.collect_beams(request, groups.read(g))
      assert len(outputs) == request.config.results
      want = expect(request, monkeypatch)
      for j, output in enumerate(outputs):
        alone = {name: x[j] for name, x in want.items()}
        assert output.ids == alone['ids'][: alone['length']].tolist()
        np.testing.assert_allclose(output.score, alone['score'], rtol=1e-5)
        np.testing.assert_allclose(
          output.log_probabilities,
          alone['log_probabilities'][: alone['count']],
          rtol=1e-5,
        )
        check_top(request, output)
  assert groups.take_steps._cache_size() == 1
