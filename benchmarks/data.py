"""Batches by index against seqio's own stream of the same tasks.

Both make batches of the shipped mixture on this process's threads, in turn,
five times; prints target tokens a CPU second of each, medians, and the ratio.

  make bench
"""

import os
import statistics
import tempfile
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import seqio

import atm_tasks
from atm import data

STEPS, B, LENGTHS = 20, 64, {'inputs': 512, 'targets': 512}


def ours(batches, start):
  return sum(
    batches(step)['decoder_loss_weights'].sum()
    for step in range(start, start + STEPS)
  )


def theirs(seed):
  dataset = seqio.get_dataset(
    'udhr',
    LENGTHS,
    'train',
    shuffle=False,
    seed=seed,
    feature_converter=seqio.EncDecFeatureConverter(pack=False),
  )
  batches = dataset.batch(B).take(STEPS).as_numpy_iterator()
  return sum(b['decoder_loss_weights'].sum() for b in batches)


def rate(function, argument):
  start = time.process_time()
  tokens = function(argument)
  return tokens / (time.process_time() - start)


def main():
  with tempfile.TemporaryDirectory() as folder:
    words = data.vocab('udhr', folder, 2048, say=lambda text: None)
    atm_tasks.configure(vocabulary=words.path)
    lengths = data.Lengths.of(LENGTHS)
    parts = data.load('udhr', 'train', words, lengths, f'{folder}/rows')
    batches = data.Batches(parts, words, lengths, B, 0)
    pairs = [
      (rate(lambda n: ours(batches, n), n * STEPS), rate(theirs, n))
      for n in range(6)
    ][1:]  # the first is a warm-up
  a, b = (statistics.median(column) for column in zip(*pairs))
  ratio = statistics.median(x / y for x, y in pairs)
  print(f'by index      {a:12,.0f} target tokens a CPU second')
  print(f'seqio stream  {b:12,.0f}')
  print(f'ratio         {ratio:12.1f}')


if __name__ == '__main__':
  main()
