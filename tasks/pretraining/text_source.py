"""The base of texts by language: which are held out, and the tf.data side.

A source lists units of work, `list_shards(split)`, and reads one of them in
plain Python, `texts(split, shard)`; `get_dataset` is the same texts as seqio
wants them. A text comes with its runs of whitespace made single spaces; blank
ones are left out.
"""

import functools
import heapq
import itertools
import zlib
from collections.abc import Iterator

import numpy as np

from atm_tasks.pretraining import records

SPLITS = ('train', 'validation')
SHUFFLE = 1 << 14  # texts of the shuffle buffer
# Texts of a language that are held out where the share would be fewer; but no
# more than a tenth of them, or one.
LEAST_HELD_OUT = 4


class TextSource:
  """Base class of sources: splits by content, and the tf.data side.

  Args:
    held_out: share of the texts in the `validation` split, chosen by content,
      so that a repeated text stays on one side; of few texts a number, see
      `bound`. 0 holds out none.

  Raises:
    ValueError: `held_out` is no share.
  """

  # What seqio asks of a source, besides `list_shards` and `get_dataset`.
  splits = SPLITS
  caching_permitted = True
  performs_internal_shuffling = False
  supports_arbitrary_sharding = False
  by_content = True  # False where `validation` is stored apart

  def __init__(self, held_out: float):
    if not 0 <= held_out < 1:
      raise ValueError(f'held_out = {held_out}: expected a share in [0, 1)')
    self.held_out = held_out

  def num_input_examples(self, split: str) -> None:
    """Tells seqio that nobody has counted the examples."""

  @property
  def made_from(self) -> dict:
    """The settings that rows depend on, besides the text."""
    return {'held_out': self.held_out}

  def documents(self, split: str, shard: int) -> Iterator[str]:
    """Yields the stored documents of a unit, whichever split they are of."""
    raise NotImplementedError

  def texts(self, split: str, shard: int) -> Iterator[str]:
    """Yields the texts of unit number `shard` of `list_shards(split)`.

    Raises:
      ValueError: no such split or unit; while reading, a bad record.
    """
    count = len(self.list_shards(split))
    if not 0 <= shard < count:
      raise ValueError(f'shard = {shard}: expected 0 to {count - 1}')
    return self._chosen(split, shard)

  def clean(self, document: str) -> str:
    """Returns the text of a document."""
    return collapse_whitespace(document)

  def draw(self, text: str) -> float:
    """Draws a number in [0, 1) by the text; below `bound` it is held out."""
    return zlib.crc32(text.encode()) / 2**32

  @functools.cached_property
  def bound(self) -> float:
    """The bound below which the draw of a held-out text is.

    It is `held_out`. Where fewer than LEAST_HELD_OUT texts draw less, it is the
    draw that holds out so many (a tenth of the texts if that is fewer, at least
    one) and never all: of one text none. It depends on the texts alone, which
    are read until it is known.
    """
    if not self.held_out:
      return 0.0
    below, above = set(), set()
    units = range(len(self.list_shards('train')))
    for document in itertools.chain.from_iterable(
      self.documents('train', unit) for unit in units
    ):
      if text := self.clean(document):
        draw = self.draw(text)
        (below if draw < self.held_out else above).add(draw)
        if len(below) >= LEAST_HELD_OUT and above:
          return self.held_out
        if len(above) > 10_000:  # the least of them decide
          above = set(heapq.nsmallest(10 * LEAST_HELD_OUT, above))
    draws = sorted(below | above)
    count = max(len(below), min(LEAST_HELD_OUT, len(draws) // 10), 1)
    return draws[min(count, len(draws) - 1)] if draws else self.held_out

  def holds_out(self) -> bool:
    """Tells whether the `validation` split has a text."""
    if not self.by_content:
      return True
    return any(
      True
      for unit in range(len(self.list_shards('validation')))
      for _ in self.texts('validation', unit)
    )

  def bad(self, shard: int) -> int:
    """Returns how many records of a unit its last reading skipped."""
    return 0

  def _chosen(self, split: str, shard: int) -> Iterator[str]:
    held, bound = split == 'validation', self.by_content and self.bound
    for document in self.documents(split, shard):
      if text := self.clean(document):
        if not self.by_content or (self.draw(text) < bound) == held:
          yield text

  def _batches(self, split: str, shard: int) -> Iterator[np.ndarray]:
    texts = self.texts(split, int(shard))
    while batch := [t.encode() for t in itertools.islice(texts, records.BATCH)]:
      # Of objects: NumPy's own strings lose a NUL at the end.
      yield np.array(batch, dtype=object)

  def get_dataset(
    self,
    split: str = 'train',
    shuffle: bool = False,
    seed: int | None = None,
    shard_info=None,
    *,
    sequence_length=None,
    use_cached: bool = False,
    num_epochs: int | None = 1,
  ):
    """Builds a tf.data.Dataset of {'text': scalar string}, of a host's units.

    Args:
      split: 'train' or 'validation'.
      shuffle, seed: whether and how units and texts are shuffled.
      shard_info: a seqio.ShardInfo: which host of how many.
      sequence_length, use_cached: seqio passes them to every provider.
      num_epochs: None: without end.

    Raises:
      ValueError: there are fewer units than shards asked for.
    """
    import tensorflow as tf

    del sequence_length, use_cached
    count = len(self.list_shards(split))
    units = tf.data.Dataset.range(count)
    if shard_info:
      if count < shard_info.num_shards:
        raise ValueError(
          f'num_shards = {shard_info.num_shards}: expected at most {count}, '
          f'the units of {split!r}'
        )
      units = units.shard(shard_info.num_shards, shard_info.index)
    if shuffle:
      units = units.shuffle(max(1, count), seed=seed)
    dataset = units.interleave(
      lambda unit: tf.data.Dataset.from_generator(
        functools.partial(self._batches, split),
        args=(unit,),
        output_signature=tf.TensorSpec([None], tf.string),
      ).unbatch(),
      cycle_length=8 if shuffle else 1,
      block_length=16,
    ).map(lambda text: {'text': text})
    if shuffle:
      dataset = dataset.shuffle(SHUFFLE, seed=seed)
    return dataset if num_epochs == 1 else dataset.repeat(num_epochs)


def collapse_whitespace(text: str) -> str:
  """Replaces runs of white space by single spaces, and strips the text."""
  text = text.strip()
  # No white space but ' ' is printable; asking is faster than splitting.
  plain = '  ' not in text and text.isprintable()
  return text if plain else ' '.join(text.split())


class RowsOnly(TextSource):
  """A text of which only a cache's rows are there, as on a training host."""

  def __init__(self, name: str, held_out: float):
    super().__init__(held_out)
    self.name, self.named_by = name, 'TEXT_DIR, or WIKIPEDIA and MC4'

  def list_shards(self, split: str) -> list[str]:
    raise ValueError(
      f'the text of {self.name!r} is not named, only its rows in CACHE_DIR: '
      f'set {self.named_by}'
    )
