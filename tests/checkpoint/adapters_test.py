"""Adapters: what a LoRA run says of itself, and what is made of it."""

import dataclasses
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import atm
from atm import fileio, storage
from atm.checkpoint import adapters, convert, manager, pretrained
from atm.model import lora, quantized
from atm.model.lora import LoraConfig
from atm.parallel import mesh as mesh_lib

from conftest import tiny

CONFIG = LoraConfig(4, 8.0, 0.1, ('query/kernel', 'lm_head'), True)
BASE = adapters.BaseModel('runs/base', 7, 'ab' * 32)


def test_a_description_is_read_as_it_was_written(tmp_path):
  assert adapters.read_description(str(tmp_path)) is None
  adapters.write_description(str(tmp_path), CONFIG, BASE)
  assert adapters.read_description(str(tmp_path)) == (CONFIG, BASE)


@pytest.mark.parametrize(
  'part, key, value', [
    ('lora', 'rank', 0), ('lora', 'targets', ['(']), ('base', 'path', None),
    ('lora', 'rank', 'x'),
  ],
)  # fmt: skip
def test_a_damaged_description_is_refused(tmp_path, part, key, value):
  adapters.write_description(str(tmp_path), CONFIG, BASE)
  path = tmp_path / adapters.ADAPTER_FILE
  described = json.loads(path.read_text())
  described[part][key] = value
  path.write_text(json.dumps(described))
  with pytest.raises(ValueError, match=f'(?i){path}: .*{key}') as e:
    adapters.read_description(str(tmp_path))
  assert '\n' not in str(e.value)


# --- Models with adapters

LORA = LoraConfig(
  3, 6.0, 0.1, ('query/kernel', 'down', 'lm_head', 'encoder_embedding')
)


def one():
  return mesh_lib.make_mesh(devices=jax.devices()[:1])


def draw_params(seed: int, **changes) -> dict:
  """Returns random parameters of a tiny model, without compiling it."""
  draws = np.random.default_rng(seed)
  draw = lambda x: np.float32(0.3 * draws.standard_normal(x.shape))
  shapes = pretrained.shapes_on_one_device(tiny(**changes))
  return jax.tree.map(draw, shapes)


def save(folder: str, step: int, params: dict, **changes) -> None:
  """Writes a checkpoint of a tiny model, or of adapters for one."""
  checkpoints = manager.CheckpointManager(folder)
  put = lambda x: jax.device_put(x, jax.devices()[0])
  meta = {'model': dataclasses.asdict(tiny(**changes))}
  checkpoints.save(step, {'params': jax.tree.map(put, params)}, meta)
  checkpoints.close()


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Returns the folders of a base, of step 2, and of a LoRA run of it."""
  root = tmp_path_factory.mktemp('lora')
  base, run = str(root / 'base'), str(root / 'run')
  params = draw_params(0)
  save(base, 2, params)
  draws = np.random.default_rng(1)
  trained = jax.tree.map(
    lambda x: jnp.float32(0.1 * draws.standard_normal(x.shape)),
    lora.init_adapters(params, LORA, jax.random.key(0)),
  )
  save(run, 5, trained)
  fingerprint = pretrained.open_pretrained(base).fingerprint()
  about = adapters.BaseModel(base, 2, fingerprint)
  adapters.write_description(run, LORA, about)
  for folder, beams in ((base, 3), (run, 2)):
    path = os.path.join(folder, 'generation_config.json')
    fileio.write_json(path, {'num_beams': beams})
  return base, run


def merge_by_hand(base: str, run: str) -> dict:
  """Returns W + scale A B of the files, by NumPy in float64."""
  read = pretrained.open_pretrained(base).parameter_reader()
  flat = traverse_util.flatten_dict(pretrained.shapes_on_one_device(tiny()))
  arrays = pretrained.open_pretrained(run).adapter.arrays
  out = {path: np.float64(read(path)) for path in flat}
  for path, pair in arrays.items():
    a, b = (pair[name].astype(np.float64) for name in 'ab')
    out[path] = out[path] + 2.0 * (a @ b)
  assert len(arrays) == 7  # of both stacks, and two tables
  return out


def check_params(params: dict, wanted: dict) -> None:
  flat = traverse_util.flatten_dict(params)
  assert flat.keys() == wanted.keys()
  for path, value in wanted.items():
    assert flat[path].dtype == np.float32
    np.testing.assert_allclose(flat[path], value, atol=2e-6, err_msg=path)


def test_a_lora_run_is_its_base_with_the_adapters(runs):
  """All at once, one at a time, and as ADAPTER of the base."""
  base, run = runs
  wanted, model = merge_by_hand(*runs), pretrained.open_pretrained(run)
  assert (model.step, model.config, model.base.step) == (5, tiny(), 2)
  check_params(model.read_params(one()), wanted)
  sharded = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  check_params(model.read_params(sharded), wanted)
  read = model.parameter_reader()
  check_params(traverse_util.unflatten_dict({p: read(p) for p in wanted}),
               wanted)  # fmt: skip
  put = pretrained.open_pretrained(base, adapter=run)
  assert put.step == 2 and put.adapter.step == 5
  # As the adapters were tuned, not as their base was.
  assert put.generation_config == model.generation_config == {'num_beams': 2}
  check_params(put.read_params(one()), wanted)
  assert put.fingerprint() == model.fingerprint() != put.base.fingerprint()


def test_int8_weights_are_those_of_the_merged_model(runs):
  """Fault to find: quantised first, the adapters' change would be lost."""
  model = atm.load(runs[1], mesh=one(), weights='int8')
  wanted = merge_by_hand(*runs)
  path = ('decoder', 'layers', 'feed_forward', 'down', 'kernel')
  held = traverse_util.flatten_dict(
    model.params, is_leaf=lambda _, x: isinstance(x, quantized.QuantizedMatrix)
  )[path]
  whole = np.asarray(held.values * held.scale[..., None]).swapaxes(-1, -2)
  apart = np.abs(whole - wanted[path]).max()
  assert apart <= np.asarray(held.scale).max() * 0.51


def test_an_export_is_merged_or_the_adapters_alone(runs, tmp_path):
  """And the adapters alone, on the base again, are the same model."""
  base, run = runs
  wanted, said = merge_by_hand(*runs), []
  whole, alone, int8 = (str(tmp_path / x) for x in ('whole', 'alone', 'int8'))
  convert.export_weights(run, whole, say=said.append)
  assert f'wrote step 5 of {run} to {whole}, for transformers' in said[-1]
  params = pretrained.open_pretrained(whole).read_params(one())
  assert not params.pop('logits_bias').any()  # Blenderbot has one
  check_params(params, wanted)
  convert.export_weights(run, alone, form='peft', say=said.append)
  assert 'for PEFT, on transformers' in said[-1]
  names = ['adapter_config.json', 'adapter_model.safetensors']
  assert sorted(os.listdir(alone)) == names
  put = pretrained.open_pretrained(base, adapter=alone)
  check_params(put.read_params(one()), wanted)
  convert.export_weights(base, int8, weights='int8', adapter=run, say=print)
  assert pretrained.open_pretrained(int8).weights == 'int8'
  with pytest.raises(ValueError, match="FORMAT = 'peft', .* no adapters"):
    convert.export_weights(base, str(tmp_path / 'x'), form='peft', say=print)
  with pytest.raises(ValueError, match="'int8' weights, into .* another|made"):
    pretrained.open_pretrained(int8, adapter=alone).read_params(one())


def test_a_base_that_does_not_fit_is_refused(runs, tmp_path):
  """Gone, of other weights, or of other sizes: each in a line."""
  base, run = runs
  other, small = str(tmp_path / 'other'), str(tmp_path / 'small')
  save(other, 2, draw_params(1))
  save(small, 2, draw_params(0, decoder_ff=40), decoder_ff=40)
  lost = str(tmp_path / 'lost')
  shutil.copytree(run, lost)
  config, about = adapters.read_description(lost)
  gone = dataclasses.replace(about, path=str(tmp_path / 'gone'))
  adapters.write_description(lost, config, gone)
  for error, where, text in (
    (ValueError, (other, run), 'trained on other weights than .*FORMAT'),
    (ValueError, (small, run), r'down/kernel of .*is \[3, 40, 32\]'),
    (FileNotFoundError, (lost, None), 'gone.*, which is not there'),
    (FileNotFoundError, (base, other), 'ADAPTER = .*adapter.json, or a PEFT'),
  ):
    with pytest.raises(error, match=text) as e:
      pretrained.open_pretrained(where[0], adapter=where[1])
    assert len(str(e.value)) < 500 and '\n' not in str(e.value)
  put = pretrained.open_pretrained(base, adapter=lost)  # as the error says
  check_params(put.read_params(one()), merge_by_hand(*runs))


def test_a_whole_model_beside_a_description_of_adapters(runs, tmp_path):
  """Fault seen: a KeyError."""
  shutil.copytree(runs[0], tmp_path / 'run')
  adapters.write_description(
    str(tmp_path / 'run'), LORA, adapters.BaseModel(runs[0], 2)
  )
  with pytest.raises(ValueError, match=r'step 2 is of a whole model.* Remove'):
    pretrained.open_pretrained(str(tmp_path / 'run'))


def test_adapters_lie_in_a_store(runs, tmp_path, bucket):
  """A LoRA run's folder and one of PEFT, and what is exported there."""
  base, run = runs
  storage.upload_folder(run, f'{bucket}/run')
  model = pretrained.open_pretrained(base, adapter=f'{bucket}/run')
  wanted = pretrained.open_pretrained(run).adapter.fingerprint()
  assert model.adapter.fingerprint() == wanted
  peft = f'{bucket}/peft'
  convert.export_weights(f'{bucket}/run', peft, form='peft', say=print)
  model = pretrained.open_pretrained(base, adapter=peft)
  assert model.adapter.fingerprint() == wanted
