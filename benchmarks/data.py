"""Tokens a CPU second of each stage of the data, beside seqio and t5.

On one core: tokenising beside bare SentencePiece; rows, packing and noise; then
batches from the cache beside seqio's own pipeline with its EncDec converter and
packing, (a) over the same tasks from text, (b) over ready inputs and targets in
memory, so that it only packs, and (c) with the t5 package's span corruption
over tokens in memory. All run in turn, ROUNDS times; printed are medians, and
medians of the ratios of neighbours.

  python benchmarks/data.py [--text FOLDER --vocabulary_size 32000]

FOLDER holds LANG.txt; without it the shipped text is read. Of t5 only one file
is needed: pip install --no-deps t5 babel.
"""

import argparse
import collections
import functools
import importlib.util
import os
import statistics
import tempfile
import time

# One core, and before TensorFlow counts them.
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('AUTOGRAPH_VERBOSITY', '0')

import numpy as np
import seqio
import tensorflow as tf

import atm_tasks
from atm.data import batches as batches_lib
from atm.data import (
  cache,
  cache_shards,
  cache_worker,
  counter_rng,
  objectives,
  task_registry,
  token_store,
  vocabulary_training,
)
from atm.data import packing as packing_lib
from atm.data.languages import LANGUAGE_CODES
from atm.data.vocabulary import Vocabulary

B, ROUNDS = 64, 5
AHEAD = 24  # batches that tf.data may have ready


def rate(function) -> float:
  """Tokens a CPU second; the function returns how many tokens it made."""
  start = time.process_time()
  tokens = function()
  return tokens / (time.process_time() - start)


class Stream:
  """Batches of tf.data, whose threads work ahead.

  First so many batches are taken that nothing is ready any more, then the clock
  starts; afterwards the threads are waited for, so that nobody else pays.
  """

  def __init__(self, batches, steps: int, *sides: str):
    self.batches, self.steps, self.sides = batches, steps, sides

  def take(self, steps: int) -> int:
    """The tokens that are no padding of so many batches."""
    made = (next(self.batches) for _ in range(steps))
    return sum(
      int((batch[f'{side}_segment_ids'] > 0).sum())
      for batch in made
      for side in self.sides
    )

  def rate(self) -> float:
    self.take(AHEAD)
    found = rate(lambda: self.take(self.steps))
    while rate(lambda: time.sleep(0.1) or 1) < 200:
      pass  # some thread works: more than 5 ms in 0.1 s
    return found


def sample(folder: str, into: str, megabytes: float) -> None:
  """Copies the first megabytes of each LANG.txt, whole lines."""
  for name in sorted(os.listdir(folder)):
    if name.endswith('.txt'):
      with open(os.path.join(folder, name), 'rb') as f:
        lines = f.readlines(int(megabytes * 1e6))
      with open(os.path.join(into, name), 'wb') as f:
        f.writelines(lines)


def shipped(into: str) -> None:
  for language in LANGUAGE_CODES:
    with open(os.path.join(into, f'{language}.txt'), 'w') as f:
      texts = (
        text for _, text in task_registry.read_texts(f'udhr_{language}_clm')
      )
      f.writelines(f'{text}\n' for text in texts)


class Stages:
  """The stages of a cache that was built of a sample of text."""

  def __init__(self, folder: str, words: Vocabulary, length: int):
    self.folder, self.words = folder, words
    self.lengths = task_registry.Lengths(length, length)
    self.ids = packing_lib.SpecialIds.of(words)
    self.texts = [text for _, text in task_registry.read_texts('text')]
    self.documents = [words.encode(text) for text in self.texts]
    self.parts = self.load(packing=True)
    self.packed = self.load(packing=False)
    self.batches = self.mix(self.parts)
    self.mixed = self.mix(self.packed)
    self.denoise, self.clm = objectives.Denoise(), objectives.CLM(packs=True)
    self.arrays = self.arrays_of('denoise'), self.arrays_of('clm')
    self.step = 0

  def load(self, packing: bool) -> list[batches_lib.MixturePart]:
    directory = f'{self.folder}/rows-{packing}'
    configure = functools.partial(
      atm_tasks.configure, text_dir=f'{self.folder}/text', paper_packing=packing
    )
    cache.build(
      'text', self.words.path,
      dict(zip(('inputs', 'targets'), self.lengths.both)), directory,
      ('train',), configure_tasks=configure, say=lambda text: None,
    )  # fmt: skip
    return batches_lib.load_parts(
      'text', 'train', self.words, self.lengths, directory
    )

  def mix(self, parts) -> batches_lib.Batches:
    return batches_lib.Batches(parts, self.words, self.lengths, B, 0)

  def arrays_of(self, objective: str) -> tuple:
    """[B, L] rows of an objective, and their lengths."""
    part = max(
      (p for p in self.parts if p.objective.name == objective),
      key=lambda p: len(p.rows),
    )
    read = [part.rows.row(i) for i in range(min(B, len(part.rows)))]
    length = np.array([len(row) for row in read])
    tokens = np.zeros((len(read), length.max()), np.int32)
    for i, row in enumerate(read):
      tokens[i, : len(row)] = row
    return tokens, length

  # --- Each returns how many tokens it made

  def bare(self) -> int:
    sp = atm_tasks.pretraining.tasks.VOCABULARY.tokenizer
    return sum(len(sp.Encode(t, out_type='numpy')) for t in self.texts)

  def tokenise(self) -> int:
    """The cache's own step: texts to ids."""
    step, many = (
      atm_tasks.pretraining.tasks.Tokenize(),
      cache_worker.TEXTS_AT_ONCE,
    )
    return sum(
      sum(map(len, step.direct(self.texts[i : i + many], {})))
      for i in range(0, len(self.texts), many)
    )

  def read(self) -> int:
    """All the cache does before rows: reads, counts sentences, tokenises."""
    words = self.words
    job = cache_shards.CacheJob(words.path, words.sha256, self.lengths, '', 1)
    total = 0
    # One task a text; its other objectives share the tokens.
    wanted = [(seqio.TaskRegistry.get(p.name), 'train') for p in self.parts]
    for unit in cache_shards.list_units(wanted, job):
      task = seqio.TaskRegistry.get(unit.tasks[0])
      counts = collections.Counter()
      documents = cache_worker.read_documents(
        task, unit, job, counts, words.unk_id
      )
      total += sum(map(len, documents))
    return total

  def write(self) -> int:
    length = self.denoise.row_length(*self.lengths.both)
    made = self.denoise.rows(self.documents, self.ids, length)
    return token_store.write_rows(f'{self.folder}/written', made)['tokens']

  def pack(self) -> int:
    length = self.clm.row_length(*self.lengths.both)
    made = self.clm.rows(self.documents, self.ids, length)
    return sum(map(len, self.clm.pack(made, self.ids, *self.lengths.both)))

  def noise(self, objective, arrays, repeat: int = 20) -> int:
    tokens, length = arrays
    total = 0
    for step in range(repeat):
      key = counter_rng.make_key(step, np.arange(len(tokens)))
      batch = objective.examples(
        tokens, length, key, self.ids, *self.lengths.both
      )
      total += int(batch['decoder_loss_weights'].sum())
    return total

  def cached(self, batches, steps: int = 60) -> int:
    self.step += steps
    return sum(
      int(batches(step)['decoder_loss_weights'].sum())
      for step in range(self.step - steps, self.step)
    )


# --- The peers


def converted(name: str, lengths: task_registry.Lengths, seed: int):
  """seqio's batches of a task or mixture, packed."""
  return (
    seqio.get_dataset(
      name,
      dict(zip(('inputs', 'targets'), lengths.both)),
      seqio.EncDecFeatureConverter(pack=True),
      num_epochs=None,
      seed=seed,
    )
    .batch(B)
    .as_numpy_iterator()
  )


def add_task(name: str, vocabulary, preprocessors, **features) -> None:
  """A seqio task over arrays of tokens in memory, again and again."""
  ragged = {k: tf.ragged.constant(v, tf.int32) for k, v in features.items()}

  def dataset(split, shuffle_files, seed=None):
    del split, shuffle_files, seed
    return tf.data.Dataset.from_tensor_slices(ragged).repeat()

  seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(dataset, splits=['train']),
    preprocessors=preprocessors,
    output_features={
      k: seqio.Feature(vocabulary, add_eos=False) for k in ('inputs', 'targets')
    },
  )


def add_ready(stages: Stages, count: int = 2000) -> None:
  """`ready`: the inputs and targets of denoising, so that seqio only packs."""
  tokens, length = stages.arrays[0]
  pairs = {'inputs': [], 'targets': []}
  for step in range(-(-count // len(tokens))):
    key = counter_rng.make_key(step, np.arange(len(tokens)))
    batch = stages.denoise.examples(
      tokens, length, key, stages.ids, *stages.lengths.both
    )
    for side, name in (
      ('inputs', 'encoder_input'),
      ('targets', 'decoder_target'),
    ):
      segments = batch[f'{name.partition("_")[0]}_segment_ids']
      pairs[side] += [
        row[s > 0].tolist() for row, s in zip(batch[f'{name}_tokens'], segments)
      ]
  vocabulary = seqio.PassThroughVocabulary(stages.words.size)
  add_task('ready', vocabulary, [], **pairs)


def add_t5(stages: Stages, count: int = 2000) -> bool:
  """`t5`: span corruption as T5 has it; whether the package is there."""
  spec = importlib.util.find_spec('t5')
  if spec is None or importlib.util.find_spec('babel') is None:
    return False
  path = os.path.join(os.path.dirname(spec.origin), 'data', 'preprocessors.py')
  spec = importlib.util.spec_from_file_location('t5_preprocessors', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  documents = [list(d) for d in stages.documents[:count] if len(d)]
  vocabulary = seqio.PassThroughVocabulary(stages.words.size + 100)
  add_task('t5', vocabulary, [module.span_corruption], targets=documents)
  return True


# --- The table


def measure(columns: dict) -> dict[str, list[float]]:
  """The rates of the columns, run in turn once to warm up and ROUNDS times."""
  found = {name: [] for name in columns}
  for number in range(ROUNDS + 1):
    for name, column in columns.items():
      value = column.rate() if isinstance(column, Stream) else rate(column)
      if number:
        found[name].append(value)
  return found


def show(found: dict[str, list[float]], base: str | None = None) -> None:
  for name, values in found.items():
    line = f'  {name:<58}{statistics.median(values) / 1e6:9.2f}M'
    if base is not None and name != base:
      ratios = [b / v for b, v in zip(found[base], values)]
      line += f'{statistics.median(ratios):9.2f}x'
    print(line, flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--text', help='a folder of LANG.txt')
  parser.add_argument('--vocabulary', help='a SentencePiece file')
  parser.add_argument('--vocabulary_size', type=int, default=2048)
  parser.add_argument('--megabytes', type=float, default=1.0, help='a language')
  parser.add_argument('--length', type=int, default=1024)
  given = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    text = f'{folder}/text'
    os.mkdir(text)
    sample(given.text, text, given.megabytes) if given.text else shipped(text)
    atm_tasks.configure(text_dir=text)
    words = (
      Vocabulary(given.vocabulary)
      if given.vocabulary
      else vocabulary_training.train_vocabulary(
        'text', f'{folder}/v', given.vocabulary_size, say=lambda text: None
      )
    )
    report(Stages(folder, words, given.length))


def report(stages: Stages) -> None:
  total = sum(map(len, stages.documents))
  print(
    f'{len(stages.texts):,} texts, {total:,} tokens; vocabulary '
    f'{stages.words.size:,}; {B} rows of {stages.lengths.targets} a batch; '
    f'one core, medians of {ROUNDS}'
  )
  print('\ntext tokens a CPU second; bare SentencePiece against ours')
  show(
    measure(
      {
        'SentencePiece alone, a text at a time': stages.bare,
        'ours, texts to ids': stages.tokenise,
        'ours from files: read, count sentences, tokenise': stages.read,
      }
    ),
    base='SentencePiece alone, a text at a time',
  )
  print('\ntokens a CPU second')
  denoise, clm = stages.arrays
  single = objectives.CLM()
  show(
    measure(
      {
        'join, cut and write rows': stages.write,
        'plan packed CLM rows': stages.pack,
        'denoising, target tokens': lambda: stages.noise(
          stages.denoise, denoise
        ),
        'CLM, target tokens': lambda: stages.noise(single, clm, 60),
      }
    )
  )
  print('\ntarget tokens a CPU second; the first against each other')
  add_ready(stages)
  peer = lambda name, steps, *sides: Stream(
    converted(name, stages.lengths, 0), steps, *sides
  )
  first = 'batches from the cache, paper packing'
  columns = {
    first: lambda: stages.cached(stages.batches),
    'batches from the cache, CLM packed': lambda: stages.cached(stages.mixed),
    'seqio, the same tasks from text, packed': peer('text', 8, 'decoder'),
    'seqio, ready inputs and targets, it only packs': peer(
      'ready', 40, 'decoder'
    ),
  }
  if add_t5(stages):
    columns['t5 span corruption in seqio, packed (both sides)'] = peer(
      't5', 16, 'encoder', 'decoder'
    )
  else:
    print('  (t5 is not installed: pip install --no-deps t5 babel)')
  found = measure(columns)
  show(found, base=first)
  need = 2e6 / 5
  have = statistics.median(found[first])
  print(
    f'\n2M tokens a step and 5 s a step are {need:,.0f} tokens a second for '
    f'the whole pod:\none core of one host makes {have / need:.0f} times that; '
    f'of 32 hosts each needs {need / 32:,.0f}, and one core\nmakes '
    f'{have / need * 32:,.0f} times that.'
  )


if __name__ == '__main__':
  main()
