"""Trained models in a MODEL_DIR and in a Hugging Face folder."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from atm.checkpoint import checksums, manager, pretrained
from atm.parallel import mesh as mesh_lib
from tests.public_folders import PUBLIC

from conftest import tiny
from goldens import folder_of


@pytest.fixture
def run(tmp_path) -> str:
  """A MODEL_DIR of steps 1 and 2, whose parameters are the step's number."""
  abstract = pretrained.shapes_on_one_device(tiny())
  checkpoints = manager.CheckpointManager(str(tmp_path / 'run'))
  for step in (1, 2):
    full = lambda x, n=step: jnp.full(x.shape, n, x.dtype, device=x.sharding)
    params = jax.tree.map(full, abstract)
    meta = {'model': dataclasses.asdict(tiny())}
    checkpoints.save(step, {'params': params}, meta)
  checkpoints.close()
  return str(tmp_path / 'run')


def one():
  return mesh_lib.make_mesh(devices=jax.devices()[:1])


def break_meta(run: str, step: int) -> None:
  path = f'{run}/checkpoints/{step}/meta/metadata'
  with open(path) as f:
    text = f.read()
  with open(path, 'w') as f:
    f.write(text.replace('"d_model": 32', '"d_model": 33'))


def test_a_kernel_of_other_devices_does_not_bind(run):
  """Fault seen: no prompt on a CPU of what was trained with a TPU's kernel."""
  path = f'{run}/checkpoints/2/meta/metadata'
  with open(path) as f:
    text = f.read()
  with open(path, 'w') as f:
    f.write(text.replace('"attention": "auto"', '"attention": "splash"'))
  assert '"splash"' not in text and pretrained.read_config(run) == tiny()


def test_a_run_is_opened_at_a_step(run):
  """Fault seen: the newest step's parameters read for another step."""
  model = pretrained.open_pretrained(run, at_step=1)
  assert (model.step, model.config, model.vocabulary) == (1, tiny(), None)
  params = model.read_params(one())
  assert all((x == 1).all() for x in jax.tree.leaves(params))
  assert (model.parameter_reader()(('lm_head',)) == 1).all()
  assert pretrained.open_pretrained(run).step == 2


def test_a_hugging_face_folder_is_opened_alike(tmp_path):
  """All parameters at once and one at a time, and in the model's dtype."""
  model = pretrained.open_pretrained(folder_of('untied', tmp_path / 'hf'))
  assert model.step == 0 and model.meta['hf_config']['model_type'] == 'alexatm'
  read = model.parameter_reader()
  params = traverse_util.flatten_dict(model.read_params(one()))
  for path, value in params.items():
    np.testing.assert_array_equal(np.asarray(value), read(path))
  cast = model.read_params(one(), as_saved=False)
  assert {x.dtype for x in jax.tree.leaves(cast)} == {np.dtype('float32')}


def test_the_configuration_is_that_of_the_newest_sound_step(run):
  """Fault seen: the newest step's metadata, or none."""
  break_meta(run, 2)
  assert pretrained.read_config(run) == tiny()
  with pytest.raises(checksums.DamageError, match=r'intact: \[1\]'):
    pretrained.open_pretrained(run)
  break_meta(run, 1)
  with pytest.raises(checksums.DamageError, match='step 1 .* intact: none'):
    pretrained.read_config(run)


def test_the_vocabulary_is_the_one_of_the_weights(tmp_path, words):
  """Fault seen: a damaged or exchanged one was used, with other ids.

  The byte flipped is one of a piece's score: SentencePiece sees nothing of it.
  """
  run = tmp_path / 'run'
  config = tiny(vocab_size=2048)
  for step, sha256 in ((1, words.sha256), (2, None)):
    meta = {'model': dataclasses.asdict(config)}
    meta |= {'vocabulary': sha256} if sha256 else {}
    checkpoints = manager.CheckpointManager(str(run))
    checkpoints.save(step, {'params': {'x': jnp.ones(1)}}, meta)
    checkpoints.close()
  folder = run / 'vocabulary'
  folder.mkdir()
  model = folder / 'sentencepiece.model'
  model.write_bytes(words.model)
  open_run = pretrained.open_pretrained
  assert open_run(str(run), 1).vocabulary.sha256 == words.sha256
  at = words.model.index(b'\x15', len(words.model) // 2) + 1
  flipped = bytes([words.model[at] ^ 1])
  model.write_bytes(words.model[:at] + flipped + words.model[at + 1 :])
  with pytest.raises(ValueError, match=f'{model} is damaged, or not the voc'):
    open_run(str(run), 1)
  assert open_run(str(run), 2).vocabulary.size == 2048  # nothing says of it


@pytest.mark.parametrize(
  'name, default', [('mbart50', 'en_XX'), ('m2m_100', 'en'), ('nllb', None)]
)
def test_outputs_begin_with_the_language_that_a_folder_says(name, default):
  """By `forced_bos_token_id` of generation_config.json; NLLB's has none."""
  vocabulary = pretrained.open_pretrained(f'{PUBLIC}/{name}').vocabulary
  assert vocabulary.input_format.target == default


def test_outputs_of_mbart_25_begin_with_the_start_token_s_language(tmp_path):
  folder = tmp_path / 'mbart25'
  weights = shutil.ignore_patterns('*.safetensors')
  shutil.copytree(f'{PUBLIC}/mbart25', folder, ignore=weights)
  opened = pretrained.open_pretrained(str(folder))
  assert opened.vocabulary.input_format.target is None
  config = json.loads((folder / 'config.json').read_text())
  config['decoder_start_token_id'] = opened.vocabulary.languages['ro_RO']
  (folder / 'config.json').write_text(json.dumps(config))
  form = pretrained.open_pretrained(str(folder)).vocabulary.input_format
  assert form.target == 'ro_RO'


def test_a_fingerprint_tells_parameters_apart(run, tmp_path):
  """Of steps of a run, and of folders of Hugging Face, without reading all."""
  steps = [pretrained.open_pretrained(run, step) for step in (1, 2, 1)]
  first, second, again = (x.fingerprint() for x in steps)
  assert first == again != second and len(first) == 64
  folder = folder_of('untied', tmp_path / 'hf')
  now = pretrained.open_pretrained(folder).fingerprint()
  assert now == pretrained.open_pretrained(folder).fingerprint()
  path = f'{folder}/model.safetensors'
  with open(path, 'r+b') as f:
    f.seek(-1, 2)
    last = f.read(1)
    f.seek(-1, 2)
    f.write(bytes([last[0] ^ 1]))
  assert pretrained.open_pretrained(folder).fingerprint() != now
