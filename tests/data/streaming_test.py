"""A stream of seqio's own is a function of (seed, step), too."""

import types

import numpy as np
import pytest

from atm.data import packing, streaming, task_registry
from atm.data.streaming import Stream

from built_rows import (
  LENGTHS,
  same_batches,
  share_of_host,
)


class Numbers:
  """A dataset as tf.data's: example i has i + 1 inputs and one target."""

  def __init__(self, count: int, **fields):
    self.examples = [
      {'inputs': np.full(i % 4 + 1, 100 + i), 'targets': np.array([200 + i])}
      | {name: np.int32(value) for name, value in fields.items()}
      for i in range(count)
    ]

  def skip(self, n):
    made = Numbers(0)
    made.examples = self.examples[n:]
    return made

  def as_numpy_iterator(self):
    return iter(self.examples)


@pytest.fixture
def make(monkeypatch):
  """Makes a stream of `Numbers`, of which `asked` tells what was asked for."""
  import seqio

  ids = packing.SpecialIds(pad=0, bos=1, eos=2, clm=None, doc=None)
  monkeypatch.setattr(packing.SpecialIds, 'of', lambda vocabulary, start: ids)
  monkeypatch.setattr(seqio, 'get_subtasks', lambda mixture: mixture.tasks)

  def call(count=99, objectives=(), **fields):
    steps = lambda x: [types.SimpleNamespace(objective=x)] if x else []
    asked = []
    provider = types.SimpleNamespace(
      name='some',
      tasks=[types.SimpleNamespace(preprocessors=steps(x)) for x in objectives],
      get_dataset=lambda *given, **named: (
        asked.append((given, named)) or Numbers(count, **fields)
      ),
    )
    monkeypatch.setattr(
      streaming.task_registry, 'find_task', lambda name: provider
    )
    lengths = task_registry.Lengths(5, 3)
    stream = Stream('some', None, lengths, 4, 7, 'validation')
    return stream, asked

  return call


def test_a_stream_begins_again_only_to_go_elsewhere(make):
  stream, asked = make()
  firsts = lambda step: stream(step)['encoder_input_tokens'][:, 0].tolist()
  for step in (0, 1, 2):
    assert firsts(step) == [100 + 4 * step + i for i in range(4)]
  assert len(asked) == 1
  assert firsts(7) == [128, 129, 130, 131] and firsts(8)[0] == 132
  assert firsts(7)[0] == 128 and len(asked) == 3
  given, named = asked[0]
  assert given == ({'inputs': 5, 'targets': 3}, 'validation')
  named.pop('passthrough_features')
  assert named == dict(shuffle=True, seed=7, num_epochs=None)


def test_examples_are_framed_as_they_are(make):
  """Those of other tasks are pairs; a host gets its rows alone."""
  stream, _ = make()
  whole = stream(0)
  assert whole['encoder_input_tokens'].tolist() == [
    [100, 0, 0, 0, 0], [101, 101, 0, 0, 0], [102, 102, 102, 0, 0],
    [103, 103, 103, 103, 0],
  ]  # fmt: skip
  assert whole['decoder_target_tokens'][:, 0].tolist() == [200, 201, 202, 203]
  assert whole['objective'].tolist() == [2, 2, 2, 2]
  assert not {'encoder_positions', 'decoder_positions'} & set(whole)
  assert not stream.packs  # so that none are asked for
  mine = stream(0, slice(1, 3))
  assert all((mine[k] == whole[k][1:3]).all() for k in whole)
  stream, _ = make(objective=1)
  assert stream(0)['objective'].tolist() == [1] * 4


@pytest.mark.parametrize(
  'objectives, labelled', [('ab', True), (['a', None], False)]
)
def test_objectives_are_asked_for_where_all_tasks_have_one(
  make, objectives, labelled
):
  stream, asked = make(objectives=objectives)
  stream(0)
  found = asked[0][1].get('passthrough_features')
  assert found == (['objective'] if labelled else None)


def test_a_stream_that_ends_is_an_error(make):
  stream, _ = make(count=7)
  stream(0)
  with pytest.raises(ValueError, match="has no 'validation' examples"):
    stream(1)


@pytest.mark.processes
def test_a_stream_resumes_and_is_the_same_for_any_hosts(words):
  import seqio

  import atm_tasks

  atm_tasks.configure(vocabulary=words.path)
  if 'two' not in seqio.MixtureRegistry.names():
    tasks = [('udhr_en_denoise', 2.0), ('udhr_te_clm', 1.0)]
    seqio.MixtureRegistry.add('two', tasks)
  make = lambda seed=0: Stream('two', words, LENGTHS, 8, seed)
  first = make()
  made = [first(step) for step in range(6)]
  assert not same_batches(made[0], made[1])
  resumed = make()
  for step in (4, 5, 2):
    assert same_batches(resumed(step), made[step])
  assert not same_batches(make(1)(0), made[0])
  halves = [make()(3, share_of_host(8, h, 2)) for h in range(2)]
  glued = {k: np.concatenate([s[k] for s in halves]) for k in halves[0]}
  assert same_batches(glued, made[3])
  named = np.concatenate([b['objective'] for b in made])
  assert set(named) == {0, 1}


def test_seqio_streams_the_same_objectives(words):
  import seqio

  import atm_tasks

  atm_tasks.configure(vocabulary=words.path)
  lengths = {'inputs': 64, 'targets': 64}

  def stream(name, seed):
    dataset = seqio.get_mixture_or_task(name).get_dataset(
      lengths, 'train', shuffle=False, seed=seed
    )
    return list(dataset.take(8).as_numpy_iterator())

  for example in stream('udhr_en_denoise', 1):
    source, target = example['inputs'], example['targets']
    assert source[0] == words.bos_id and target[-1] == words.eos_id
    n = len(target) - 1
    assert len(source) - 2 == n - int(np.floor(n * 0.15 + 0.5))
  for example in stream('udhr_en_clm', 1):
    assert list(example['inputs'][:2]) == [words.bos_id, words.clm_id]
  a, b, c = (stream('udhr', s) for s in (1, 1, 2))
  equal = lambda x, y: all(
    np.array_equal(p['inputs'], q['inputs']) for p, q in zip(x, y)
  )
  assert equal(a, b) and not equal(a, c)
