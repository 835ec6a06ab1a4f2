"""The same tasks and mixtures as seqio's own readers and t5x see them.

Importing this module imports TensorFlow, and registers all tasks with seqio.
"""

import numpy as np
import seqio
import tensorflow as tf

from atm.data import task_table
from atm.data.vocabulary import Vocabulary
from atm_tasks.pretraining import tasks
from atm_tasks.pretraining.late_vocabulary import LateVocabulary


class SeqioVocabulary(seqio.SentencePieceVocabulary):
  """A vocabulary, of any tokenizer, whose file is named after registration.

  What seqio itself asks of it is answered by `words`. The TensorFlow ops of a
  SentencePiece model, and what else seqio has for one, stay.
  """

  def __init__(self, late: LateVocabulary | None = None):
    """Takes the vocabulary that names the file; None: one of its own."""
    super().__init__('')
    self._late = LateVocabulary() if late is None else late

  @property
  def words(self) -> Vocabulary:
    """The vocabulary; raises ValueError where none is named yet."""
    return self._late.words

  def use(self, path: str) -> None:
    """Names the file or folder, which is opened when it is first needed."""
    self._late.use(path)

  def _model_context(self):
    path = self._late.get_path()
    if self._sentencepiece_model_file != path:
      self._sentencepiece_model_file, self._model = path, None
    return super()._model_context()

  def __getstate__(self) -> dict:
    # gin copies it, and seqio compares by it.
    path = self._late.path
    own = {'_late': path, '_sentencepiece_model_file': path}
    return {**super().__getstate__(), **own}

  def __setstate__(self, state: dict) -> None:
    super().__setstate__({**state, '_late': LateVocabulary(state['_late'])})

  pad_id = property(lambda self: self.words.pad_id)
  bos_id = property(lambda self: self.words.bos_id)
  eos_id = property(lambda self: self.words.eos_id)
  unk_id = property(lambda self: self.words.unk_id)
  _base_vocab_size = property(lambda self: self.words.size)

  def _encode(self, s: str) -> list[int]:
    return self.words.encode_batch([s])[0].tolist()

  def _decode(self, ids) -> str:
    return self.words.decode_any([int(i) for i in ids])

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    if isinstance(self.words, Vocabulary):
      return super()._encode_tf(s)

    def encode(raw):  # bytes, or an array of them outside of a graph
      raw = raw.item() if isinstance(raw, np.ndarray) else raw
      return self.words.encode_batch([raw.decode()])[0]

    s = tf.convert_to_tensor(s, tf.string)
    ids = tf.numpy_function(encode, (s,), tf.int32, stateful=False)
    ids.set_shape([None])
    return ids

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    if isinstance(self.words, Vocabulary):
      return super()._decode_tf(ids)

    def decode(ids):
      texts = [self._decode(row).encode() for row in np.atleast_2d(ids)]
      return np.array(texts if ids.ndim > 1 else texts[0], object)

    text = tf.numpy_function(decode, (ids,), tf.string, stateful=False)
    text.set_shape(ids.shape[:-1])
    return text

  def __str__(self) -> str:
    return f'SeqioVocabulary({self._late.path!r})'


VOCABULARY = SeqioVocabulary(tasks.WORDS)


def register_seqio_task(task: task_table.TextTask) -> None:
  """Registers a task with seqio, in place of any of its name."""
  steps = [
    seqio.CacheDatasetPlaceholder() if task_table.is_placeholder(step) else step
    for step in task.preprocessors
  ]
  feature = seqio.Feature(VOCABULARY, add_eos=False)
  seqio.TaskRegistry.remove(task.name)
  seqio.TaskRegistry.add(
    task.name,
    source=task.source,
    preprocessors=steps,
    output_features={'inputs': feature, 'targets': feature},
  )


def register_seqio_mixture(mixture: task_table.TextMixture) -> None:
  """Registers a mixture with seqio, in place of any of its name."""
  seqio.MixtureRegistry.remove(mixture.name)
  seqio.MixtureRegistry.add(mixture.name, list(mixture.rates.items()))


def unregister_seqio_name(name: str) -> None:
  """Makes a name free in seqio's registries."""
  for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
    registry.remove(name)


for each in task_table.TASKS.values():
  register_seqio_task(each)
for each in task_table.MIXTURES.values():
  register_seqio_mixture(each)
