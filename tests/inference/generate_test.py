"""Decoding equals transformers' `generate`; see golden/README.md."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import atm
from atm.inference import sampling
from atm.inference.sampling import Config, Sampler

from api_test import model  # noqa: F401 (a fixture)
from goldens import HERE

with open(os.path.join(HERE, 'generate.json'), encoding='utf-8') as f:
  SETTINGS = json.load(f)
NAMES = {
  'max_new_tokens': 'max_tokens',
  'min_new_tokens': 'min_tokens',
  'num_beams': 'beams',
  'num_return_sequences': 'results',
}
OURS = {field for field in Config.__dataclass_fields__}


@pytest.fixture(scope='module')
def theirs():
  with np.load(os.path.join(HERE, 'generate.npz')) as f:
    return dict(f)


@pytest.fixture(scope='module')
def twin():
  """The model of the goldens, on one device."""
  from atm.parallel import mesh as mesh_lib

  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  return atm.load(os.path.join(HERE, 'blenderbot_generate'), mesh=mesh)


def options(settings: dict) -> dict:
  """Keyword arguments of transformers' generate as `Model.complete`'s."""
  settings = dict(settings)
  banned = settings.pop('bad_words_ids', ())
  settings.pop('prefix', None)
  settings.pop('do_sample', None)
  named = {NAMES.get(k, k): v for k, v in settings.items()}
  assert set(named) <= OURS, set(named) - OURS
  return dict(config=Config(**named), banned=banned)


def bare(row, fill: int) -> list[int]:
  return [int(i) for i in row if i != fill]


@pytest.mark.parametrize('name', SETTINGS)
def test_ids_are_those_of_transformers(twin, theirs, name):
  """200 prompts in each setting, in one batch.

  Faults seen: banned sequences matched without the prefix, or by their last id
  alone; the end banned one token too long; repetition counted without the start
  token; the penalty of lengths of a token less; an end counted where it is not
  among the k best; the running beams' hope at their length where it is 'never';
  what a beam descends from not moved with it; padding of prefixes seen by
  beams; beams read at the prefix's length in place of the row's.
  """
  prefixes = None
  if SETTINGS[name].get('prefix'):
    prefixes = [bare(row, -1) for row in theirs['prefix_ids']]
  made = twin.complete(
    [bare(row, 0) for row in theirs['input_ids']],
    prefixes=prefixes,
    batch_size=200,
    **options(SETTINGS[name]),
  )
  want = theirs[f'{name}_ids'].reshape(200, -1, 20)
  end = twin.config.end_id
  for row, expected in zip(made, want, strict=True):
    for one, ids in zip(row, expected, strict=True):
      ids = bare(ids, -1)
      ended = len(one.log_probabilities) > len(one.ids)
      assert one.ids + [end] * ended == ids
  if f'{name}_scores' in theirs:
    scores = [[one.score for one in row] for row in made]
    np.testing.assert_allclose(
      scores, theirs[f'{name}_scores'].reshape(200, -1), rtol=2e-5
    )


def test_log_probabilities_are_those_of_transformers(twin, theirs):
  made = twin.complete(
    [bare(row, 0) for row in theirs['input_ids'][:20]],
    config=Config(max_tokens=20),
  )
  for (one,), want in zip(made, theirs['greedy_logprobs'], strict=True):
    n = len(one.log_probabilities)
    np.testing.assert_allclose(one.log_probabilities, want[:n], atol=2e-5)
    assert (want[n:] == 0).all()
    assert one.score == pytest.approx(want.sum(), abs=1e-4)


@pytest.fixture(scope='module')
def processors():
  with np.load(os.path.join(HERE, 'processors.npz')) as f:
    return dict(f)


PROCESSORS = {
  'repetition_penalty': dict(repetition_penalty=1.3),
  'temperature': dict(temperature=0.7),
  'top_k': dict(temperature=1.0, top_k=5),
  'top_p': dict(temperature=1.0, top_p=0.8),
  'min_p': dict(temperature=1.0, min_p=0.1),
}
PROCESSORS['all'] = dict(
  pair for one in (*PROCESSORS.values(), dict(temperature=0.7))
  for pair in one.items()
)  # fmt: skip


def as_sampled(config, logits, previous):
  """Logits as `decode.choose` samples from them."""
  V = logits.shape[1]
  choice = Sampler.from_config(config)
  written = jnp.zeros(logits.shape, bool)
  written = written.at[jnp.arange(len(logits))[:, None], previous].set(True)
  none = jnp.zeros(len(logits), jnp.int32)
  past = sampling.History(
    none, jnp.zeros((len(logits), 0), jnp.int32), written, None
  )
  return sampling.adjust_logits(choice, past, jnp.asarray(logits), V - 1)


@pytest.mark.parametrize('name', PROCESSORS)
def test_logits_are_processed_as_by_transformers(processors, name):
  """Each alone, and in its order.

  Faults seen: top_p of all logits where top_k has left some out; no
  temperature.
  """
  got = as_sampled(
    Config(**PROCESSORS[name]), processors['logits'], processors['previous_ids']
  )
  np.testing.assert_array_equal(np.isneginf(got), np.isneginf(processors[name]))
  kept = np.isfinite(processors[name])
  np.testing.assert_allclose(
    np.asarray(got)[kept], processors[name][kept], rtol=1e-6
  )


def test_ties_at_the_limit_are_all_kept(processors):
  logits = processors['ties_logits']
  got = as_sampled(
    Config(temperature=1.0, top_k=5), logits, np.zeros((4, 1), int)
  )
  want = np.isneginf(processors['ties_top_k'])
  np.testing.assert_array_equal(np.isneginf(got), want)
