"""Results of evaluations that several tests of pages read."""

import json
import os

import numpy as np
import pytest

from atm.evals import results as results_lib

from synthetic import EVIL, FEW, choice, generated, judged, synthetic


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
  """An evaluation of every kind of task in four languages."""
  return synthetic(tmp_path_factory.mktemp('a') / 'runs', n=12, languages=FEW)


@pytest.fixture(scope='session')
def other(tmp_path_factory):
  """The same of a worse model."""
  path = tmp_path_factory.mktemp('b') / 'runs'
  return synthetic(path, quality=0.3, seed=1, n=12, languages=FEW)


@pytest.fixture(scope='session')
def results(folder):
  return results_lib.read_results(folder)


@pytest.fixture(scope='session')
def evil(tmp_path_factory):
  """(folder, results) of an evaluation whose every text is hostile."""
  folder = tmp_path_factory.mktemp('evil')
  lines = [generated(i, EVIL, EVIL, EVIL, {EVIL: EVIL}) for i in range(4)]
  pairs = [[EVIL, EVIL], [EVIL, 'no']]
  picked = choice(np.random.default_rng(0), 0, 1, pairs, 0, {EVIL: EVIL})
  tasks = []
  for name, metrics, some in (
    ('squadv2', ['rouge1'], lines), ('xnli_en', ['accuracy'], [picked])
  ):  # fmt: skip
    kind = 'score' if some[0]['pairs'] else 'generate'
    tasks.append(
      judged(name, some, metrics, set=EVIL, language='en', kind=kind)
    )
    os.makedirs(folder / 'predictions', exist_ok=True)
    with open(folder / f'predictions/{name}.jsonl', 'w') as f:
      f.writelines(json.dumps(line) + '\n' for line in some)
  texts = dict.fromkeys(('suite', 'model_dir', 'config'), EVIL)
  results = texts | {
    'tasks': tasks, 'step': 1, 'parameters': 1, 'seconds': 1,
    'versions': {EVIL: EVIL}, 'settings': {EVIL: EVIL},
    'missing': [{'name': EVIL, 'why': EVIL, 'where': EVIL}],
  }  # fmt: skip
  return str(folder), results
