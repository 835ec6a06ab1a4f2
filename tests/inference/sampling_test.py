"""How tokens are chosen, against transformers' processors."""

import dataclasses
import os

import jax.numpy as jnp
import numpy as np
import pytest

from atm.inference import sampling
from atm.inference.sampling import Config, Sampler

from goldens import HERE


def test_options_are_checked(model):
  with pytest.raises(ValueError, match="Did you mean 'beams'"):
    model.generate(['a'], beam=4)
  for wrong, said in (
    (dict(beams=2, temperature=1.0), 'expected beam search'),
    (dict(results=2), 'expected at most beams = 1'),
    (dict(top_p=0.0), 'top_p = 0.0: expected a number above 0'),
    (dict(early_stopping='nver'), "Did you mean 'never'"),
    (dict(stop='a'), 'expected a list of strings'),
    (dict(stop=['']), 'expected no empty string'),
  ):
    with pytest.raises(ValueError, match=said):
      model.generate(['a'], **wrong)


def test_samples_do_not_depend_on_the_batch(model):
  """An input's tokens are of its number and the seed.

  Faults seen: keys by place in the batch; one key for all results.
  """
  config = sampling.Config(max_tokens=8, temperature=1.2, results=3, top_p=0.9)
  texts = ['Everyone has', 'Jeder', 'a', 'All human beings', 'b', 'c']
  ids = lambda made: [[one.ids for one in row] for row in made]
  together = ids(model.complete(texts, config=config, batch_size=4))
  for number in (0, 3, 5):
    alone = model.complete([texts[number]], config=config, numbers=[number])
    assert ids(alone) == [together[number]]
  assert len({tuple(one) for row in together for one in row}) > 12
  other = dataclasses.replace(config, seed=1)
  assert ids(model.complete(texts, config=other, batch_size=4)) != together


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
  """Logits as `sampling.choose_tokens` samples from them."""
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


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(max_tokens=0), 'max_tokens = 0: expected a whole number'),
    (dict(top_k=True), 'top_k = True: expected a whole number'),
    (dict(temperature=-1.0), 'temperature = -1.0: expected a number'),
    (dict(min_p=1.5), 'min_p = 1.5: expected a number from 0 to 1'),
    (
      dict(top_p=1.5),
      'top_p = 1.5: expected a number above 0 and of at most 1',
    ),
    (
      dict(repetition_penalty=0),
      'repetition_penalty = 0: expected a number above 0',
    ),
  ],
)
def test_a_setting_out_of_range_is_named(changes, message):
  with pytest.raises(ValueError, match=message):
    Config(**changes)


def test_banned_sequences_end_where_the_table_ends():
  """Padded in front, to a power of two of rows and of length.

  Fault seen: padded behind.
  """
  sampler = Sampler.from_config(Config(), [[5], [6, 7, 8], [9]])
  assert sampler.banned.tolist() == [
    [-1, -1, -1, 5], [-1, 6, 7, 8], [-1, -1, -1, 9], [-1] * 4
  ]  # fmt: skip
  assert Sampler.from_config(Config()).banned.shape == (0, 1)


def test_a_row_stops_at_a_stop_string_or_without_room():
  """Fault seen: one token too many."""
  stops = np.zeros((4, 8), np.int32)
  sampler = Sampler.from_config(Config(max_tokens=3), (), stops)
  history = sampling.History(
    jnp.array([2, 3, 1]), jnp.zeros((3, 0)), None, jnp.array([0, 1, 3])
  )
  stopped = sampling.has_stopped(sampler, history)
  assert stopped.tolist() == [False, True, True]
