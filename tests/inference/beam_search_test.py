"""Beam search; its choices are compared in generate_test."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.inference import beam_search, sampling
from atm.parallel import mesh as mesh_lib


def test_beams_on_any_mesh(model):
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  texts = ['Everyone has', 'Jeder', 'सभी', 'よって']
  config = sampling.Config(max_tokens=8, beams=3, results=2)
  other = dataclasses.replace(model, mesh=mesh)
  for got, want in zip(
    other.complete(texts, config=config), model.complete(texts, config=config)
  ):
    assert [x.ids for x in got] == [x.ids for x in want]


def test_beams_are_gathered_by_input():
  """Fault seen: beams of another input."""
  ids = jnp.arange(12).reshape(2, 3, 2)
  index = jnp.array([[2, 0], [1, 1]])
  got = beam_search.gather_beams({'ids': ids}, index)['ids']
  assert got.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
  flat = beam_search.flatten_beams(ids)
  assert flat.shape == (6, 2)
  assert (beam_search.unflatten_beams(flat, 3) == ids).all()


V, END, T = 6, 5, 5
# Of each input, by the tokens written and the last of them.
LOGITS = np.random.default_rng(0).normal(size=(2, T, V, V)) * 2


def search(k, monkeypatch, **settings) -> list[dict]:
  """Beams over tables of logits by the last token, one table an input."""
  config = sampling.Config(max_tokens=T, beams=k, **settings)
  sampler = sampling.Sampler.from_config(config)
  sizes = types.SimpleNamespace(vocab_size=V, end_id=END, pad_id=0)
  model = types.SimpleNamespace(config=sizes)
  first = jnp.asarray(LOGITS[:, 0, 1], jnp.float32)
  monkeypatch.setattr(beam_search, 'prefill', lambda *_: (first, []))
  prefix, lengths = jnp.ones((2, 1), jnp.int32), jnp.ones(2, jnp.int32)
  segments = jnp.ones((2, 3), jnp.int32)

  def run():
    beams = beam_search.start_beams(
      model, None, sampler, None, segments, prefix, lengths, T, k
    )
    rules = beam_search.BeamRules(sampler, END, k)
    extend = lambda beams: beam_search.extend_beams(
      rules, beams,
      jnp.asarray(LOGITS, jnp.float32)[
        jnp.arange(2)[:, None], beams.history.count[0], beams.token
      ],
    )  # fmt: skip
    return jax.lax.while_loop(lambda x: x.open.any(), extend, beams).finished

  made = jax.device_get(jax.jit(run)())
  return [jax.tree.map(lambda x: x[i], made) for i in range(2)]  # noqa: B023


def expected(logits, k, penalty, early) -> list[tuple]:
  """(score, ids, log-probabilities, tokens) as Hugging Face's would be."""
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  running, finished = [(0.0, [1], [])], []
  for count in range(1, T + 1):
    shut = early is True and len(finished) == k
    candidates = sorted(
      (
        (score + p, [*ids, token], [*each, p])
        for score, ids, each in running
        for token, p in enumerate(log_p[count - 1, ids[-1]])
      ),
      reverse=True,
    )[: 2 * k]  # fmt: skip
    hits = [ids[-1] == END or count == T for _, ids, _ in candidates]
    for rank, (score, ids, each) in enumerate(candidates):
      if hits[rank] and rank < k and not shut:
        written = [i for i in ids[1:] if i != END]
        finished.append((score / count**penalty, written, each, count))
    finished = sorted(finished, reverse=True)[:k]
    running = [x for x, hit in zip(candidates, hits) if not hit][:k]
    full = len(finished) == k
    if not running or full and early is True:
      break
    reach = T if early == 'never' and penalty > 0 else count
    if full and running[0][0] / reach**penalty <= finished[-1][0]:
      break
  return finished


@pytest.mark.parametrize('k', [1, 3])
@pytest.mark.parametrize(
  'penalty, early',
  [(1.0, False), (1.0, True), (2.0, 'never'), (-1.0, 'never'), (0.0, False)],
)
def test_beams_are_those_of_the_definition(monkeypatch, k, penalty, early):
  """Over tables of logits, where a model's would hide a fault of a beam."""
  made = search(k, monkeypatch, length_penalty=penalty, early_stopping=early)
  for logits, found in zip(LOGITS, made, strict=True):
    want = expected(logits, k, penalty, early)
    for rank, (score, ids, each, count) in enumerate(want):
      assert found['length'][rank] == len(ids)
      assert found['count'][rank] == count
      assert found['ids'][rank].tolist() == ids + [0] * (T - len(ids))
      np.testing.assert_allclose(found['score'][rank], score, rtol=1e-5)
      log_p = found['log_probabilities'][rank]
      np.testing.assert_allclose(log_p[:count], each, rtol=1e-5)
      assert not log_p[count:].any()
    assert (found['score'][len(want) :] <= beam_search.NO_SCORE).all()


def test_an_input_of_nothing_is_not_searched(monkeypatch):
  """Rows that pad a batch: they would keep the others waiting."""
  sizes = types.SimpleNamespace(vocab_size=V, end_id=END, pad_id=0)
  first = jnp.asarray(LOGITS[:, 0, 1], jnp.float32)
  monkeypatch.setattr(beam_search, 'prefill', lambda *_: (first, []))
  start = lambda segments: beam_search.start_beams(
    types.SimpleNamespace(config=sizes), None,
    sampling.Sampler.from_config(sampling.Config(beams=2)), None, segments,
    jnp.ones((2, 1), jnp.int32), jnp.ones(2, jnp.int32), T, 2,
  )  # fmt: skip
  beams = jax.jit(start)(jnp.array([[1, 1], [0, 0]]))
  assert beams.open.tolist() == [True, False]
  assert not beams.full[1].any()
