"""A stream of seqio's own is a function of (seed, step), too."""

import numpy as np

from atm.data.streaming import Stream

from built_rows import (
  LENGTHS,
  same_batches,
  share_of_host,
)


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
