"""Batches of seqio's own stream of any task or mixture, without rows."""

import dataclasses
import itertools

import numpy as np

from atm.data import objectives, packing, task_registry
from atm.data.task_registry import Lengths
from atm.data.vocabulary import Vocabulary


class Stream:
  """Batch number `step` of seqio's own stream of a task or mixture.

  For any seqio task, without rows: fine-tuning, or random preprocessors. Every
  host reads the whole stream and keeps its part of each batch, so the batches
  are the same for any number of hosts. A step other than the next starts the
  stream again and skips to it: resuming costs reading what was read before.
  """

  packs = False

  def __init__(
    self,
    name: str,
    vocabulary: Vocabulary,
    lengths: Lengths,
    batch_size: int,
    seed: int,
    split: str = 'train',
    start_id: int | None = None,
  ):
    """Takes the model's `start_id`; None: the vocabulary's `<s>`."""
    import seqio  # its tasks from here on, see `task_registry`

    del seqio
    self.provider, self.split = task_registry.find_task(name), split
    self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
    self.ids = packing.SpecialIds.of(vocabulary, start_id)
    self._next: int | None = None

  def _begin(self, step: int) -> None:
    import seqio

    mixture, labels = self.provider, {}
    applied = all(map(task_registry.get_apply, seqio.get_subtasks(mixture)))
    if applied and not isinstance(mixture, seqio.Task):
      labels = {'passthrough_features': ['objective']}
    dataset = mixture.get_dataset(
      dataclasses.asdict(self.lengths), self.split, shuffle=True,
      seed=self.seed, num_epochs=None, **labels,
    )  # fmt: skip
    dataset = dataset.skip(step * self.batch_size)
    self._examples, self._next = dataset.as_numpy_iterator(), step

  def __call__(self, step: int, rows=slice(None)) -> dict:
    """Returns arrays as `Batches` does; ValueError where the stream ends."""
    with task_registry.shorten_tf_errors(self.provider.name):
      if step != self._next:
        self._begin(step)
      batch = list(itertools.islice(self._examples, self.batch_size))
    if len(batch) < self.batch_size:
      raise ValueError(f'{self.provider.name!r} has no {self.split!r} examples')
    self._next += 1
    batch = [batch[row] for row in np.arange(self.batch_size)[rows]]
    runs = []
    for side in ('inputs', 'targets'):
      ids = [example[side] for example in batch]
      runs.append(((), np.concatenate(ids), np.array(list(map(len, ids))), ()))
    sizes = (len(batch), *self.lengths.both)
    arrays = packing.frame_batch(np.arange(len(batch)), *runs, sizes, self.ids)
    del arrays['encoder_positions'], arrays['decoder_positions']
    pair = objectives.OBJECTIVE_NAMES.index('pair')
    numbers = [e.get('objective', pair) for e in batch]
    return arrays | {'objective': np.array(numbers, np.int32)}
