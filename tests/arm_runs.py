"""Records of training runs that never were, in arms of several seeds."""

import numpy as np

QUESTIONS = 60


def make_run(arm, seed, loss=4.0, right=0.5, shots=(1, 4), **changes):
  """Makes the record of a run that answers a share of questions right."""
  random = np.random.default_rng([seed, sum(map(ord, arm))])
  noise = random.normal(0, 0.01)
  steps = [0, 100, 200]
  evaluations = [
    {
      'task': 'recall', 'set': 'in_context', 'mode': 'clm', 'chance': 25.0,
      'metric': 'accuracy', 'asked': '0a1b', 'shots': k, 'step': step,
      'questions': QUESTIONS, 'flops': 1e9 * step,
      'right': np.packbits(
        random.random(QUESTIONS) < right * (1 + k) / 5 * step / 200
      ).tobytes().hex(),
    }
    for step in (100, 200)
    for k in shots
  ]  # fmt: skip
  return {
    'arm': arm, 'run': f'{arm}{seed}', 'seed': seed, 'parameters': 1_000_000,
    'batch_size': 8, 'lengths': {'inputs': 32, 'targets': 32},
    'last_step': 200, 'config': {'d_model': 64}, 'seconds': {'step': 60.0},
    'steps': steps, 'flops': [1e9 * step for step in steps],
    'tokens': [512.0 * step for step in steps],
    'losses': {
      'clm': [9.0, loss + 1 + noise, loss + noise],
      'clm/en': [9.0, loss + 1, loss],
    },
    'unigram': {'clm': 6.0}, 'evaluations': evaluations, **changes,
  }  # fmt: skip


def make_arms(seeds=3):
  """Makes an arm of loss 4 and one of 3.5 that answers more."""
  return [
    *(make_run('seq2seq', seed) for seed in range(seeds)),
    *(make_run('decoder', seed, 3.5, 0.9) for seed in range(seeds)),
  ]
