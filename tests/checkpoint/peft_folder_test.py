"""PEFT folders: parity with PEFT, the form of what is written, and faults.

golden/peft/ holds adapters that PEFT saved, and the logits it computed.
"""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

import atm
from atm.checkpoint import (
  adapters,
  convert,
  hf_keys,
  manager,
  peft_folder,
  pretrained,
)
from atm.model import lora
from atm.model.lora import LoraConfig
from atm.parallel import mesh as mesh_lib

from goldens import HERE

BASES = {
  'mbart25': 'public/mbart25', 'm2m_100': 'public/m2m_100',
  'pegasus': 'public/pegasus', 'blenderbot': 'blenderbot_a',
  'untied': 'peft/untied_base',
}  # fmt: skip


@functools.cache
def adapted(name: str) -> pretrained.PretrainedModel:
  """Returns the base of a case with the adapters of PEFT."""
  folders = f'{HERE}/{BASES[name]}', f'{HERE}/peft/{name}'
  return pretrained.open_pretrained(folders[0], adapter=folders[1])


def modules_of(model: pretrained.PretrainedModel) -> dict:
  shapes = pretrained.shapes_on_one_device(model.config)
  shapes = traverse_util.flatten_dict(shapes)
  hf_config = model.meta['hf_config']
  return peft_folder.list_modules(model.config, hf_config, shapes)


@pytest.mark.parametrize('name', BASES)
def test_logits_are_those_of_peft(name):
  """With ranks and alphas by pattern, rsLoRA, some layers, embeddings."""
  g = np.load(f'{HERE}/peft/{name}.io.npz')
  one = mesh_lib.make_mesh(devices=jax.devices()[:1])
  folders = f'{HERE}/{BASES[name]}', f'{HERE}/peft/{name}'
  model = atm.load(folders[0], mesh=one, adapter=folders[1])
  logits = model.logits(
    g['input_ids'], g['decoder_input_ids'], g['attention_mask']
  )
  ours = np.asarray(logits)[..., ::8]
  # float32 rounds otherwise on each processor: on an AMD EPYC with AVX-512
  # logits of 4.3 and 4.4 are 1.14e-5 off, of 1.1 and less at most 1.05e-5.
  np.testing.assert_allclose(ours, g['logits'], atol=1e-5, rtol=1e-6)


def write(model: pretrained.PretrainedModel, folder) -> dict:
  """Writes a model's adapters; returns adapter_config.json."""
  folder.mkdir()
  peft_folder.write_peft_folder(
    str(folder), model.adapter.config, model.adapter.arrays, modules_of(model),
    'base',
  )  # fmt: skip
  return json.loads((folder / 'adapter_config.json').read_text())


def tensors(folder) -> dict[str, np.ndarray]:
  return safetensors.numpy.load_file(f'{folder}/adapter_model.safetensors')


@pytest.mark.parametrize('name', ['mbart25', 'untied'])
def test_what_is_written_is_what_peft_wrote(tmp_path, name):
  """Keys, shapes and bytes, but for the copy of a table beside its adapter."""
  described = write(adapted(name), tmp_path / 'out')
  theirs, ours = tensors(f'{HERE}/peft/{name}'), tensors(tmp_path / 'out')
  copies = {key for key in theirs if 'base_layer' in key}
  assert ours.keys() == theirs.keys() - copies
  assert (name == 'untied') == bool(copies)
  for key, value in ours.items():
    np.testing.assert_array_equal(value, theirs[key], err_msg=key)
  with open(f'{HERE}/peft/{name}/adapter_config.json') as f:
    wanted = json.load(f)
  wanted['base_model_name_or_path'] = 'base'
  assert {key: wanted[key] for key in described} == described


@pytest.mark.parametrize('name', BASES)
def test_adapters_are_the_same_when_they_were_written_and_read(tmp_path, name):
  """Ranks and alphas by pattern have become one; the sums A B stay."""
  model = adapted(name)
  write(model, tmp_path / 'out')
  again = pretrained.open_pretrained(
    model.directory, adapter=str(tmp_path / 'out')
  )
  config, other = (x.adapter.config for x in (model, again))
  assert (config.rank, config.scale) == (other.rank, other.scale)
  assert model.adapter.fingerprint() == again.adapter.fingerprint()


def test_targets_are_the_shortest_endings_that_fit():
  every = [
    f'model.{stack}.layers.{i}.{name}'
    for stack, i in (('encoder', 0), ('decoder', 0), ('decoder', 1))
    for name in ('self_attn.q_proj', 'self_attn.v_proj', 'fc1')
  ]
  every += ['model.decoder.layers.0.encoder_attn.q_proj', 'lm_head']
  name_targets = peft_folder.name_targets
  ends = lambda *names: [x for x in every if x.endswith(names)]
  assert name_targets(ends('q_proj', 'fc1'), every) == ['fc1', 'q_proj']
  assert name_targets(ends('self_attn.q_proj'), every) == ['self_attn.q_proj']
  assert name_targets(['lm_head'], every) == ['lm_head']
  some = [x for x in every if 'decoder' in x]
  found = name_targets(some, every)
  assert [x for x in every if x.endswith(tuple(found))] == some


def test_tied_tables_are_written_for_all_that_use_them(tmp_path):
  """transformers' modules share the matrix, but not PEFT's adapters of it."""
  model, rng = adapted('mbart25'), np.random.default_rng(0)
  V, D, r = model.config.vocab_size, model.config.d_model, 2
  pair = {'a': rng.normal(size=(V, r)), 'b': rng.normal(size=(r, D))}
  config = dataclasses.replace(
    model.adapter.config, rank=r, targets=('encoder_embedding',)
  )
  adapter = dataclasses.replace(
    model.adapter, config=config, arrays={('encoder_embedding',): pair}
  )
  out = tmp_path / 'out'
  described = write(dataclasses.replace(model, adapter=adapter), out)
  assert described['target_modules'] == ['embed_tokens', 'lm_head']
  read = pretrained.open_pretrained(model.directory, adapter=str(out)).adapter
  for name, value in read.arrays[('encoder_embedding',)].items():
    np.testing.assert_array_equal(value, pair[name].astype(np.float32))
  path = out / 'adapter_model.safetensors'
  weights = tensors(out)
  weights['base_model.model.lm_head.lora_A.weight'] += 1
  safetensors.numpy.save_file(weights, path)
  with pytest.raises(hf_keys.WeightsError, match='one matrix in this model'):
    pretrained.open_pretrained(model.directory, adapter=str(out))


@pytest.fixture
def copy(tmp_path):
  """Returns a function: changes -> a changed copy of mbart25's adapters."""

  def make(change=None, **fields):
    folder = tmp_path / 'adapters'
    shutil.copytree(f'{HERE}/peft/mbart25', folder)
    path = folder / 'adapter_config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    if change:
      weights = tensors(folder)
      change(weights)
      path = folder / 'adapter_model.safetensors'
      safetensors.numpy.save_file(weights, path)
    return str(folder)

  return make


@pytest.mark.parametrize(
  'fields', [
    {'peft_type': 'IA3'}, {'use_dora': True}, {'bias': 'all'},
    {'modules_to_save': ['lm_head']}, {'init_lora_weights': 'pissa'},
    {'trainable_token_indices': [3]}, {'lora_alpha': 'x'}, {'lora_alpha': 0},
    {'lora_dropout': 2}, {'use_rslora': 1},
  ], ids=str,
)  # fmt: skip
def test_what_is_not_plain_lora_is_refused(copy, fields):
  folder, (name,) = copy(**fields), fields
  with pytest.raises(hf_keys.WeightsError, match=f'(?i){name}') as e:
    adapted_by(folder)
  text = str(e.value)
  assert folder in text and len(text) < 500 and '\n' not in text


def adapted_by(folder: str) -> pretrained.PretrainedModel:
  base = f'{HERE}/public/mbart25'
  return pretrained.open_pretrained(base, adapter=folder)


KEY = 'base_model.model.model.encoder.layers.0.self_attn.q_proj.lora_A.weight'


def test_adapters_that_do_not_fit_are_refused(copy, tmp_path):
  """Each in a line that names the module; and a folder without adapters."""
  for change, text in (
    (lambda w: w.update({KEY: w[KEY][:, :5]}), 'does not fit the matrix'),
    (lambda w: w.pop(KEY), 'q_proj has no lora_A'),
    (lambda w: w.update({KEY.replace('.0.', '.9.'): w[KEY]}), 'layers.9.*mean'),
    (lambda w: w.update({KEY: w[KEY].astype(np.int32)}), 'is no adapter'),
    (dict.clear, 'has no adapters'),
  ):
    folder = copy(change)
    with pytest.raises(hf_keys.WeightsError, match=text) as e:
      adapted_by(folder)
    assert len(str(e.value)) < 500 and '\n' not in str(e.value)
    shutil.rmtree(folder)
  with pytest.raises(FileNotFoundError, match='adapter_config.json'):
    adapted_by(str(tmp_path))
  with pytest.raises(FileNotFoundError, match='name that as MODEL_DIR'):
    pretrained.open_pretrained(f'{HERE}/peft/mbart25')


def test_a_table_beside_its_adapter_is_that_of_the_base(tmp_path):
  """PEFT saves tables that it adapts: another one is of another base."""
  folder = tmp_path / 'adapters'
  shutil.copytree(f'{HERE}/peft/untied', folder)
  weights = tensors(folder)
  weights['base_model.model.lm_head.base_layer.weight'][0] += 1
  path = folder / 'adapter_model.safetensors'
  safetensors.numpy.save_file(weights, path)
  base = f'{HERE}/{BASES["untied"]}'
  model = pretrained.open_pretrained(base, adapter=str(folder))
  with pytest.raises(ValueError, match='a table of its own for lm_head'):
    model.parameter_reader()(('lm_head',))
  one = mesh_lib.make_mesh(devices=jax.devices()[:1])
  with pytest.raises(ValueError, match='a table of its own for lm_head'):
    model.read_params(one)


@pytest.mark.slow
@pytest.mark.parametrize('base', [*BASES.values(), 'public/nllb'])
def test_peft_loads_what_is_written(base, tmp_path):
  """All matrices of a LoRA run, tied tables, too; logits are ours within 1e-5.

  PEFT_PYTHON names a Python that has peft, if this one has not.
  """
  python = os.environ.get('PEFT_PYTHON', sys.executable)
  if subprocess.run(
    [python, '-c', 'import peft'], capture_output=True
  ).returncode:
    pytest.skip('needs peft: PEFT_PYTHON=PYTHON')
  folder, run = f'{HERE}/{base}', str(tmp_path / 'run')
  source = pretrained.open_pretrained(folder)
  shapes = pretrained.shapes_on_one_device(source.config)
  config = LoraConfig(3, 4.0, 0.1, ('.',), rslora=True)
  draws = np.random.default_rng(0)
  trained = jax.tree.map(
    lambda x: jnp.float32(0.06 * draws.standard_normal(x.shape)),
    lora.init_adapters(shapes, config, jax.random.key(0)),
  )
  checkpoints = manager.CheckpointManager(run)
  put = lambda x: jax.device_put(x, jax.devices()[0])
  meta = {'model': dataclasses.asdict(source.config)}
  checkpoints.save(1, {'params': jax.tree.map(put, trained)}, meta)
  checkpoints.close()
  about = adapters.BaseModel(folder, 0, source.fingerprint())
  adapters.write_description(run, config, about)
  convert.export_weights(run, str(tmp_path / 'peft'), form='peft')
  one = mesh_lib.make_mesh(devices=jax.devices()[:1])
  model, plain = (atm.load(x, mesh=one) for x in (run, folder))
  names = [name for name, x in BASES.items() if x == base] or ['mbart25']
  inputs = dict(np.load(f'{HERE}/peft/{names[0]}.io.npz'))
  given = [
    inputs[x] for x in ('input_ids', 'decoder_input_ids', 'attention_mask')
  ]
  inputs['logits'] = np.asarray(model.logits(*given))
  assert np.abs(inputs['logits'] - plain.logits(*given)).max() > 0.1
  np.savez(tmp_path / 'logits.npz', **inputs)
  found = subprocess.run(
    [python, f'{HERE}/make_peft.py', folder, f'{tmp_path}/peft',
     f'{tmp_path}/logits.npz'], capture_output=True, text=True, cwd=HERE,
  )  # fmt: skip
  assert found.returncode == 0, found.stderr
  greatest = np.abs(inputs['logits']).max()  # up to 46: float32's grid is 4e-6
  print(base, found.stdout.strip(), f'of {greatest:.1f}')
  assert float(found.stdout) < max(1e-5, 1e-6 * greatest)
  assert 'missing' not in found.stderr, found.stderr
