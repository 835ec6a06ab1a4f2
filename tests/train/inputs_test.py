"""Vocabulary and rows of a run."""

import functools
import shutil

import pytest

from atm.data import cache
from atm.train import inputs
from atm.train.run_folder import RunFolder

from tiny_runs import EIGHT, small_config, small_model


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(d_ff=1), r"Config.encoder_ff = 32, but 64 in INIT_FROM = '.*': leave "
     'out what binds model.Config.encoder_ff'),
    (dict(vocabulary='other'), 'is not the one that INIT_FROM = .* was tr'),
    (dict(vocabulary=None, lost=1), 'INIT_FROM = .* has no vocabulary: set VO'),
    (dict(init_encoder='x'), "INIT_ENCODER = 'x': expected one of them"),
    (dict(init_from='run'), 'is MODEL_DIR: use another MODEL_DIR'),
    (dict(vocabulary=None, left=1), 'run/vocabulary is not the vocabulary '),
    (dict(init_from='none'), 'no checkpoints/ in'),
  ],
)  # fmt: skip
def test_a_model_to_train_on_must_fit(train, words, tmp_path, changes, message):
  source = tmp_path / 'source'
  shutil.copytree(train.whole(4), source)
  if changes.pop('lost', False):
    shutil.rmtree(source / 'vocabulary')
  if changes.get('init_from') == 'run':
    changes['init_from'] = str(tmp_path / 'run')
  if changes.pop('left', False):  # by a run that died before it saved
    folder = tmp_path / 'run' / 'vocabulary'
    folder.mkdir(parents=True)
    (folder / 'sentencepiece.model').write_bytes(words.model + b'\xa0\x1f\x01')
  if changes.get('vocabulary'):
    changes['vocabulary'] = str(tmp_path / 'other.model')
    other = words.model + b'\xa0\x1f\x01'  # a field that nobody reads
    (tmp_path / 'other.model').write_bytes(other)
  if changes.pop('d_ff', False):
    changes['model_config'] = small_model(encoder_ff=32, remat='full')
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    train(tmp_path / 'run', 1, **{'init_from': str(source), **changes})
  assert not (tmp_path / 'run' / 'config.gin').exists()


def test_a_run_is_not_given_another_vocabulary_than_its_own(
  train, words, tmp_path
):
  """Fault seen: trained with one, and read by `atm infer` with the other."""
  own, other = tmp_path / 'run' / 'vocabulary', tmp_path / 'other.model'
  own.mkdir(parents=True)
  (own / 'sentencepiece.model').write_bytes(words.model)
  other.write_bytes(words.model + b'\xa0\x1f\x01')
  with pytest.raises(
    ValueError, match=f'{own} is not the vocabulary that this'
  ):
    train(tmp_path / 'run', 1, vocabulary=str(other))
  assert not (tmp_path / 'run' / 'config.gin').exists()


def test_a_run_that_was_moved_has_its_vocabulary(words, tmp_path):
  """Fault seen: refused, as VOCABULARY names a path of another machine."""
  folder = RunFolder(str(tmp_path))
  (tmp_path / 'vocabulary').mkdir()
  own = tmp_path / 'vocabulary' / 'sentencepiece.model'
  own.write_bytes(words.model)
  config = small_config(tmp_path, vocabulary='/gone/sentencepiece.model')
  folder.step_found = 4
  assert inputs.find_run_vocabulary(config, folder, None).path == str(own)
  folder.step_found = None
  with pytest.raises(FileNotFoundError, match='no vocabulary at ./gone'):
    inputs.find_run_vocabulary(config, folder, None)


def test_packed_rows_train_on_any_mesh(train, words, tmp_path):
  """Several CLM documents a row: the losses do not depend on the mesh."""
  import atm_tasks

  packs = functools.partial(atm_tasks.configure, paper_packing=False)
  made = tmp_path / 'rows'
  cache.build(
    'udhr', words.path, {'inputs': 32, 'targets': 32}, str(made),
    configure_tasks=packs, say=lambda text: None,
  )  # fmt: skip
  changes = {'configure_tasks': packs, 'cache_dir': str(made)}
  one = train(tmp_path / 'one', 3, **changes)
  eight = train(tmp_path / 'eight', 3, make_mesh=EIGHT, **changes)
  losses = lambda run: [r['loss'] for r in run.history if 'loss' in r]
  assert losses(one) == pytest.approx(losses(eight), abs=1e-5)
  atm_tasks.configure(vocabulary=words.path)
