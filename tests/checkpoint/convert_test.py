"""Import and export: identities, faults that are named, memory."""

import dataclasses
import filecmp
import functools
import json
import os
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

import atm
from atm import storage as store
from atm.checkpoint import (
  config_json,
  convert,
  hf_folder,
  hf_keys,
  pretrained,
  torch_reader,
)
from atm.cli import gin_files, gin_reader
from atm.data import vocabulary, vocabulary_extension
from atm.model.config import CONFIG_CHOICES, ModelConfig
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding

from conftest import tiny
from goldens import ALEXATM, BLENDERBOT, HERE, folder_of, golden
from torch_archives import Call, Global, archive, program, storage, tensor


def quiet(text):
  pass


def tensors(folder):
  opened = hf_folder.open_weights(str(folder))
  return {key: tensor.read() for key, tensor in opened.items()}


def one():
  return mesh_lib.make_mesh(devices=jax.devices()[:1])


@pytest.fixture
def source(tmp_path):
  """A writable copy of the `untied` folder."""
  return folder_of('untied', tmp_path / 'source')


def rewrite(folder, change):
  """Applies `change` to the dict of tensors of a folder."""
  path = os.path.join(folder, 'model.safetensors')
  weights = safetensors.numpy.load_file(path)
  change(weights)
  safetensors.numpy.save_file(weights, path)


@pytest.mark.parametrize('name', ALEXATM + BLENDERBOT)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_import_after_export_is_the_identity(tmp_path, name, dtype):
  """Folder, checkpoint, folder, checkpoint: bit for bit."""
  folder = str(tmp_path / 'a')
  shutil.copytree(folder_of(name, tmp_path / 'source'), folder)

  def to_bfloat16(weights):
    for key, value in weights.items():
      if value.dtype == np.float32:
        weights[key] = value.astype(ml_dtypes.bfloat16)

  if dtype == 'bfloat16':
    rewrite(folder, to_bfloat16)
  runs = [str(tmp_path / f'run{i}') for i in range(2)]
  convert.import_weights(folder, runs[0], one, say=quiet)
  out = str(tmp_path / 'b')
  convert.export_weights(runs[0], out, shard_gib=1e-4, say=quiet)
  assert os.path.exists(f'{out}/model.safetensors.index.json')
  theirs, ours = tensors(folder), tensors(out)
  for key in set(theirs) - {'model.shared.weight'}:
    np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
    assert ours[key].dtype == theirs[key].dtype
  convert.import_weights(out, runs[1], one, say=quiet)
  a, b = (atm.load(run, mesh=one()) for run in runs)
  assert a.config == b.config and a.config.dtype == dtype
  # The model's own settings of generation go with it, byte for byte.
  assert a.generation_defaults == b.generation_defaults
  assert a.generation_defaults.get('max_tokens') == (
    None if name in ALEXATM else 20
  )
  for place in (runs[0], out, runs[1]):
    if name in BLENDERBOT:
      own = [f'{x}/generation_config.json' for x in (folder, place)]
      assert filecmp.cmp(*own, shallow=False)
    else:
      assert not os.path.exists(f'{place}/generation_config.json')
  a, b = (traverse_util.flatten_dict(x.params) for x in (a, b))
  assert a.keys() == b.keys()
  for path in a:
    assert a[path].dtype == dtype or path == ('logits_bias',)
    np.testing.assert_array_equal(np.asarray(a[path]), np.asarray(b[path]))


@pytest.mark.parametrize('name', ['untied', 'blenderbot_c'])
def test_an_imported_model_runs_like_the_folder(tmp_path, name):
  folder, run = folder_of(name, tmp_path / 'source'), str(tmp_path / 'run')
  mesh = lambda: mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  convert.import_weights(folder, run, mesh, say=quiet)
  g = golden(name)
  model = atm.load(run, mesh=one())
  ours = model.logits(
    g['input_ids'], g['decoder_input_ids'], g['attention_mask']
  )
  np.testing.assert_allclose(ours, g['logits'], atol=1e-5)
  with open(f'{run}/config.gin') as f:
    assert 'model.Config.norm_eps = 1e-' in f.read()


@pytest.mark.parametrize('name', ['mbart25', 'm2m_100', 'pegasus'])
def test_a_public_model_is_exported_as_it_was(tmp_path, name):
  """Keys and tensors are those that transformers wrote, and the ids, too."""
  folder, run = f'{HERE}/public/{name}', str(tmp_path / 'run')
  convert.import_weights(folder, run, one, say=quiet)
  said, out = [], str(tmp_path / 'out')
  convert.export_weights(run, out, say=said.append)
  described = hf_folder.read_json_object(f'{folder}/config.json')
  assert f"transformers 5's {described['architectures'][0]}" in said[-1]
  assert hf_folder.read_json_object(f'{out}/config.json') == described
  theirs, ours = tensors(folder), tensors(out)
  assert ours.keys() == theirs.keys()
  for key, value in theirs.items():
    same = np.array_equal
    if 'embed_positions' in key and name == 'pegasus':
      same = functools.partial(np.allclose, atol=1e-6)
    assert same(ours[key], value), key
  opened = [pretrained.open_pretrained(x) for x in (folder, run, out)]
  assert len({x.vocabulary.sha256 for x in opened}) == 1
  assert opened[0].config == opened[1].config == opened[2].config
  generation = opened[0].generation_config
  assert generation and generation == opened[1].generation_config
  assert generation == opened[2].generation_config


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes',
  [
    {'embedding_norm': True, 'position_offset': 2, 'activation': 'relu',
     'encoder_position_offset': 2, 'ties': 'all'},
    {'embedding_norm': True, 'position_offset': 2, 'embed_scale': True,
     'encoder_position_offset': 2},
    {'position_embedding': 'sinusoidal_fairseq', 'position_offset': 1,
     'encoder_position_offset': 1, 'ties': 'all'},
    {'position_embedding': 'sinusoidal', 'ties': 'embeddings'},
    {'activation': 'relu', 'ties': 'all'},
  ],
  ids=str,
)  # fmt: skip
def test_a_model_of_a_public_kind_is_what_transformers_computes(
  tmp_path, changes
):
  test_the_default_model_is_what_transformers_computes(tmp_path, changes)


def save(run, config) -> str:
  """Saves a model with drawn parameters in a MODEL_DIR; returns its path."""
  from atm.checkpoint import manager
  from atm.train.step import State

  from small_models import init

  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + 0.1 * rng.normal(size=x.shape).astype(x.dtype), init(config)
  )
  if config.logits_bias:
    params['logits_bias'] *= 0
  checkpoints = manager.CheckpointManager(str(run))
  state = State(np.zeros((), np.int32), params, {'x': np.zeros(1)})
  checkpoints.save(3, state.to_trees(), {'model': dataclasses.asdict(config)})
  checkpoints.close()
  return str(run)


def same_model(run, out) -> None:
  """Asserts that an exported folder is read as the model that it was."""
  again, model = atm.load(out, mesh=one()), atm.load(run, mesh=one())
  ids = np.arange(10, 22).reshape(2, 6)
  np.testing.assert_array_equal(
    again.logits(ids, ids[:, :4]), model.logits(ids, ids[:, :4])
  )


def test_a_model_trained_here_can_be_handed_back(tmp_path):
  """A config of our own in the released format, read again.

  Fault seen: the LM head, tied to the decoder's embedding, compared with the
  encoder's.
  """
  config = tiny(norm='uncentred', position_offset=2, ties='decoder_head')
  run, out = save(tmp_path / 'run', config), str(tmp_path / 'out')
  convert.export_weights(run, out, say=quiet)
  with open(os.path.join(HERE, 'state_dict_keys.txt')) as f:
    released = {line.split('\t')[0] for line in f if '\t' in line}
  ours = set(tensors(out))
  names = {key.replace('layers.2', 'layers.1') for key in ours}
  known = {key.replace('layer.2', 'layer.1') for key in released}
  assert names == known
  same_model(run, out)


@pytest.mark.parametrize(
  'changes',
  [
    *({'ties': ties} for ties in CONFIG_CHOICES['ties']),
    {'embed_scale': True, 'logits_bias': True},
  ],
  ids=str,
)
def test_the_default_model_is_what_transformers_computes(tmp_path, changes):
  """Fault seen: no default model could be exported, said after training."""
  run, out = save(tmp_path / 'run', tiny(**changes)), str(tmp_path / 'out')
  said = []
  convert.export_weights(run, out, say=said.append)
  kind = config_json.find_bart_class(tiny(**changes))
  architecture = config_json.BART_CLASSES[kind].architecture
  assert f"for transformers 5's {architecture}" in said[-1]
  same_model(run, out)
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers', minversion='5')
  theirs, told = getattr(transformers, architecture).from_pretrained(
    out, output_loading_info=True
  )
  assert not any(told.values()), told
  rng = np.random.default_rng(1)
  ids, decoder_ids = rng.integers(3, 96, (2, 9)), rng.integers(3, 96, (2, 5))
  mask = np.ones((2, 9), int)
  mask[1, 6:] = 0
  with torch.no_grad():
    found = theirs.eval()(
      input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask),
      decoder_input_ids=torch.tensor(decoder_ids),
    ).logits.numpy()  # fmt: skip
  logits = atm.load(run, mesh=one()).logits(ids, decoder_ids, mask)
  np.testing.assert_allclose(found, logits, atol=1e-4, rtol=1e-5)
  theirs.save_pretrained(str(tmp_path / 'theirs'))  # it is still ours
  same_model(run, str(tmp_path / 'theirs'))


def test_a_model_without_a_format_is_told_before_it_is_trained(tmp_path):
  config = tiny(position_offset=2)
  run = save(tmp_path / 'run', config)
  with pytest.raises(ValueError, match='position_offset = 2: of norm .standa'):
    convert.export_weights(run, str(tmp_path / 'out'), say=quiet)
  assert not (tmp_path / 'out').exists()
  assert config_json.explain_no_format(config)
  for name in gin_files.shipped_files():
    if name.startswith('models/'):
      assert config_json.explain_no_format(read_model(name)) is None


def read_model(name: str):
  """Returns the model of a shipped gin file."""
  made = gin_reader.read_configuration([gin_files.find_file(name)], [])
  return ModelConfig(
    **{
      b.parameter: b.value
      for b in made.bindings
      if b.selector == 'model.Config'
    }
  )


# --- Faults: each names the key and leaves nothing behind

KEY = 'model.decoder.layers.1.fc1.weight'


def wrong_shape(w):
  w[KEY] = w[KEY][:, :-1].copy()


def wrong_dtype(w):
  w[KEY] = w[KEY].astype(np.int64)


def other_dtype(w):
  w[KEY] = w[KEY].astype(np.float16)


def missing(w):
  del w[KEY]


def left_over(w):
  w['model.decoder.layers.7.fc1.weight'] = w[KEY]


@pytest.mark.parametrize(
  'change, message',
  [
    (wrong_shape, r"fc1.weight' has shape \(192, 63\), expected \(192, 64\)"),
    (wrong_dtype, "fc1.weight' is I64, expected float32"),
    (other_dtype, "fc1.weight' is float16, but .* is float32"),
    (missing, "lacks 'model.decoder.layers.1.fc1.weight'"),
    (left_over, "no place for, such as 'model.decoder.layers.7.fc1"),
  ],
)
def test_faults_in_the_weights(tmp_path, source, change, message):
  rewrite(source, change)
  run = tmp_path / 'run'
  with pytest.raises(hf_keys.WeightsError, match=message):
    convert.import_weights(source, str(run), one, say=quiet)
  assert not run.exists() and not (tmp_path / 'run.importing').exists()


def test_a_tied_copy_that_differs_is_refused(tmp_path):
  folder = folder_of('tied', tmp_path / 'source')

  def change(w):
    w['lm_head.weight'] = w['lm_head.weight'] + 1

  rewrite(folder, change)
  with pytest.raises(
    hf_keys.WeightsError, match="'lm_head.weight' differs from"
  ):
    convert.import_weights(folder, str(tmp_path / 'run'), one, say=quiet)


def test_a_truncated_file(tmp_path, source):
  path = os.path.join(source, 'model.safetensors')
  with open(path, 'r+b') as f:
    f.truncate(os.path.getsize(path) - 100)
  with pytest.raises(
    hf_keys.WeightsError, match='model.safetensors is damaged'
  ):
    convert.import_weights(source, str(tmp_path / 'run'), one, say=quiet)


def as_bin(source, parts=1):
  """Turns a folder's weights into pytorch_model.bin, perhaps in shards."""
  weights = safetensors.numpy.load_file(f'{source}/model.safetensors')
  os.remove(f'{source}/model.safetensors')
  where = {}
  for i in range(parts):
    kinds = {'float32': 'torch FloatStorage', 'int64': 'torch LongStorage'}
    state, storages = {}, {}
    for n, key in enumerate(sorted(weights)[i::parts]):
      value = weights[key]
      storages[str(n)] = value.tobytes()
      held = storage(kinds[str(value.dtype)], str(n), value.size)
      stride = tuple(s // value.itemsize for s in value.strides)
      state[key] = tensor(held, 0, value.shape, stride)
    name = f'part-{i}.bin' if parts > 1 else hf_folder.WHOLE[1]
    archive(f'{source}/{name}', program(state), storages)
    where.update(dict.fromkeys(state, name))
  if parts > 1:
    with open(f'{source}/{hf_folder.INDEXES[1]}', 'w') as f:
      json.dump({'weight_map': where}, f)


@pytest.mark.parametrize('parts', [1, 3])
def test_bin_files_are_read_without_torch(tmp_path, source, parts):
  expected = tensors(source)
  as_bin(source, parts)
  ours = tensors(source)
  assert ours.keys() == expected.keys()
  for key in expected:
    np.testing.assert_array_equal(ours[key], expected[key])
  convert.import_weights(source, str(tmp_path / 'run'), one, say=quiet)
  assert 'torch' not in sys.modules


def test_a_malicious_bin_is_refused_and_not_run(tmp_path, source):
  as_bin(source)
  witness = tmp_path / 'witness'
  call = Call(Global('os system'), (f'touch {witness}',))
  archive(f'{source}/{hf_folder.WHOLE[1]}', program({'x': call}))
  with pytest.raises(ValueError, match='pytorch_model.bin.*os.system'):
    convert.import_weights(source, str(tmp_path / 'run'), one, say=quiet)
  assert not witness.exists() and not (tmp_path / 'run').exists()


def test_a_truncated_bin_is_refused(tmp_path, source):
  as_bin(source)
  path = f'{source}/{hf_folder.WHOLE[1]}'
  with open(path, 'r+b') as f:
    f.truncate(os.path.getsize(path) // 2)
  with pytest.raises(ValueError, match='pytorch_model.bin'):
    convert.import_weights(source, str(tmp_path / 'run'), one, say=quiet)
  assert not (tmp_path / 'run').exists()


def split(source):
  """Splits a folder into two shards with an index."""
  weights = safetensors.numpy.load_file(f'{source}/model.safetensors')
  keys = sorted(weights)
  where = {}
  for i, part in enumerate((keys[:50], keys[50:])):
    name = f'model-{i}.safetensors'
    safetensors.numpy.save_file(
      {k: weights[k] for k in part}, f'{source}/{name}'
    )
    where.update(dict.fromkeys(part, name))
  os.remove(f'{source}/model.safetensors')
  with open(f'{source}/{hf_folder.INDEXES[0]}', 'w') as f:
    json.dump({'weight_map': where}, f)
  return weights, where


def test_shards(tmp_path, source):
  weights, where = split(source)
  convert.import_weights(source, str(tmp_path / 'run'), one, say=quiet)
  # The same key in two shards
  extra = {KEY: weights[KEY], **{
    k: weights[k] for k, f in where.items() if f == 'model-1.safetensors'
  }}  # fmt: skip
  safetensors.numpy.save_file(extra, f'{source}/model-1.safetensors')
  with pytest.raises(hf_keys.WeightsError, match="fc1.weight' is in two files"):
    convert.import_weights(source, str(tmp_path / 'r2'), one, say=quiet)
  os.remove(f'{source}/model-1.safetensors')
  with pytest.raises(FileNotFoundError, match='model-1.*the index names it'):
    convert.import_weights(source, str(tmp_path / 'r3'), one, say=quiet)
  with open(f'{source}/{hf_folder.INDEXES[0]}', 'w') as f:
    json.dump({'weight_map': {'x': '../../etc/passwd'}}, f)
  with pytest.raises(hf_keys.WeightsError, match='is not a file of the folder'):
    convert.import_weights(source, str(tmp_path / 'r4'), one, say=quiet)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(model_type='alexatmm'), "Did you mean 'alexatm'"),
    (dict(hidden_act='gelu_new'), "hidden_act = 'gelu_new'"),
    (dict(d_model=None), 'd_model is None: expected a whole number'),
    (dict(encoder_layers=2), 'num_hidden_layers = 3, but encoder_layers = 2'),
    (dict(num_hidden_layers=4, encoder_layers=4), r'lacks .*layer\.3\.'),
  ],
)
def test_faults_in_the_config(tmp_path, source, change, message):
  described = hf_folder.read_json_object(f'{source}/config.json') | change
  with open(f'{source}/config.json', 'w') as f:
    json.dump(described, f)
  with pytest.raises(hf_keys.WeightsError, match=message):
    convert.import_weights(source, str(tmp_path / 'run'), one, say=quiet)
  assert not (tmp_path / 'run').exists()


def test_an_interrupted_import_leaves_nothing(tmp_path, source, monkeypatch):
  def broken(self, path):
    if path[-1] == 'scale':
      raise KeyboardInterrupt
    return read(self, path)

  read = hf_folder.WeightReader.read
  monkeypatch.setattr(hf_folder.WeightReader, 'read', broken)
  with pytest.raises(KeyboardInterrupt):
    convert.import_weights(source, str(tmp_path / 'run'), one, say=quiet)
  assert os.listdir(tmp_path) == ['source']


def test_import_and_export_in_a_bucket(tmp_path, source, bucket):
  store.upload_folder(str(source), f'{bucket}/source')
  run, folder = f'{bucket}/run', f'{bucket}/exported'
  convert.import_weights(f'{bucket}/source', run, one, say=quiet)
  with pytest.raises(ValueError, match='has checkpoints already'):
    convert.import_weights(f'{bucket}/source', run, one, say=quiet)
  convert.export_weights(run, folder, say=quiet)
  with pytest.raises(ValueError, match='exists already'):
    convert.export_weights(run, folder, say=quiet)
  found, before = tensors(store.fetch(folder)), tensors(source)
  assert found.keys() == before.keys()
  assert all(np.array_equal(found[key], before[key]) for key in before)
  convert.export_weights(run, f'{bucket}/int8', weights='int8', say=quiet)
  assert pretrained.open_pretrained(f'{bucket}/int8').step == 0


def test_a_folder_that_was_sent_in_part_is_no_model(
  tmp_path, source, bucket, monkeypatch
):
  run = str(tmp_path / 'run')
  convert.import_weights(source, run, one, say=quiet)
  store.upload_folder(run, f'{bucket}/copied')  # as by other programs
  assert pretrained.open_pretrained(f'{bucket}/copied').step == 0
  send = store.upload_file

  def broken(local, path):
    if path.endswith('/config.json'):
      raise KeyboardInterrupt
    send(local, path)

  for module in (store, store.copies):
    monkeypatch.setattr(module, 'upload_file', broken)
  with pytest.raises(KeyboardInterrupt):
    convert.export_weights(run, f'{bucket}/part', say=quiet)
  assert store.list_names(f'{bucket}/part')
  with pytest.raises(FileNotFoundError):
    pretrained.open_pretrained(f'{bucket}/part')


def test_nothing_is_overwritten(tmp_path, source):
  run, out = str(tmp_path / 'run'), str(tmp_path / 'out')
  convert.import_weights(source, run, one, say=quiet)
  with pytest.raises(ValueError, match='has checkpoints already'):
    convert.import_weights(source, run, one, say=quiet)
  convert.export_weights(run, out, say=quiet)
  with pytest.raises(ValueError, match='exists already'):
    convert.export_weights(run, out, say=quiet)


def test_token_ids_outside_the_vocabulary_are_named(source):
  model = atm.load(source, mesh=one())
  with pytest.raises(
    ValueError, match='input 0 has the id 96: expected 0 to 95'
  ):
    model.generate([[96]])
  with pytest.raises(ValueError, match='has no tokenizer'):
    model.generate(['text'])
  with pytest.raises(ValueError, match='2 inputs, but 1 targets'):
    model.score([[1], [2]], [[3]])


@pytest.mark.processes
def test_memory_of_an_import_is_that_of_one_parameter(tmp_path):
  """1.4 GiB, in a process that must stay below 2x its largest + 1 GiB."""
  described = hf_folder.read_json_object(f'{HERE}/untied.config.json')
  described |= dict(
    d_model=512, encoder_ffn_dim=2048, intermediate_size=2048,
    decoder_ffn_dim=2048, encoder_layers=48, num_hidden_layers=48,
    decoder_layers=54, vocab_size=8000, torch_dtype='float32',
  )  # fmt: skip
  from atm.model import parameters
  from atm.model.transformer import AlexaTM

  config = config_json.config_from_hf(described)
  folder = tmp_path / 'big'
  folder.mkdir()
  with open(folder / 'config.json', 'w') as f:
    json.dump(described, f)
  like = parameters.abstract_params(AlexaTM(config), one(), sharding.Rules())
  weights = {}
  for path, x in traverse_util.flatten_dict(like).items():
    keys = hf_keys.ALEXATM.keys(path, x.shape)
    for key in keys:
      shape = hf_folder.to_hf_shape(path, x.shape)
      zeros = functools.partial(np.zeros, shape, np.float32)
      weights[key] = torch_reader.Tensor(shape, np.float32, zeros)
  hf_folder.write_shards(str(folder), weights, shard_bytes=1 << 27)
  code = f"""
from atm.checkpoint import convert
lines = []
convert.import_weights(
  {str(folder)!r}, {str(tmp_path / 'run')!r}, say=lines.append
)
with open('/proc/self/status') as f:  # ru_maxrss begins with the parent's
  print([int(x.split()[1]) / 2**20 for x in f if x.startswith('VmHWM')][0])
print(lines[0])
"""
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  peak, said = done.stdout.splitlines()[:2]
  total = sum(4 * np.prod(s) for s, *_ in weights.values()) / 2**30
  largest = 54 * 4 * 512 * 2048 / 2**30
  assert total > 1.3 and 'GiB to read' in said
  assert float(peak) < 2 * largest + 1


# --- What an import takes and leaves


@pytest.mark.parametrize('content', [b'', b'\x8f' * 5000, None])
def test_a_tokenizer_is_read_before_the_weights_are(
  source, tmp_path, words, content
):
  """Fault seen: random bytes taken, and found by whoever read the model."""
  run = str(tmp_path / 'run')
  said = 'is not a SentencePiece model'
  if content is None:  # more pieces than the model has
    content, said = words.model, 'has 2,048 pieces, more than vocab_size = '
  with open(f'{source}/20b_tokenizer.model', 'wb') as f:
    f.write(content)
  for read in (
    lambda: convert.import_weights(source, run, one, say=quiet),
    lambda: atm.load(source),
  ):
    with pytest.raises(ValueError, match=said) as raised:
      read()
    assert f'{source}/20b_tokenizer.model' in str(raised.value)
  assert os.listdir(tmp_path) == ['source']


def test_an_import_keeps_what_is_in_its_folder(source, tmp_path):
  """Fault seen: a folder named vocabulary/ was removed with all in it."""
  run = tmp_path / 'run'
  (run / 'vocabulary').mkdir(parents=True)
  (run / 'vocabulary' / 'notes.txt').write_text('mine')
  (run / 'config.gin').write_text('# mine')
  with pytest.raises(ValueError, match='config.gin is there already'):
    convert.import_weights(source, str(run), one, say=quiet)
  (run / 'config.gin').unlink()
  (run / 'checkpoints').mkdir()
  convert.import_weights(source, f'{run}/', one, say=quiet)
  assert (run / 'vocabulary' / 'notes.txt').read_text() == 'mine'
  assert sorted(os.listdir(tmp_path)) == ['run', 'source']
  # As a kill in the last moves leaves it.
  os.rename(run / 'checkpoints', tmp_path / 'other')
  convert.import_weights(source, str(run), one, say=quiet)
  assert os.listdir(run / 'checkpoints') == ['0']


def test_an_export_goes_into_no_folder_that_is_there(source, tmp_path):
  run, out = str(tmp_path / 'run'), tmp_path / 'out'
  convert.import_weights(source, run, one, say=quiet)
  out.mkdir()
  (out / 'notes.txt').write_text('mine')
  os.symlink('nowhere', tmp_path / 'link')
  for there in (out, tmp_path / 'link'):
    with pytest.raises(ValueError, match='exists already'):
      convert.export_weights(run, str(there), say=quiet)
  assert (out / 'notes.txt').read_text() == 'mine'
  os.mkdir(f'{run}/vocabulary')
  with open(f'{run}/vocabulary/sentencepiece.model', 'wb') as f:
    f.write(b'random')
  with pytest.raises(ValueError, match='is not a SentencePiece model'):
    convert.export_weights(run, str(tmp_path / 'new'), say=quiet)
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
  'name, code, token',
  [
    ('mbart50', 'yo_NG', 'yo_NG'),
    ('m2m_100', 'nya', '__nya__'),
    ('nllb', 'zzz_Latn', 'zzz_Latn'),
    ('pegasus', None, None),
  ],
)
def test_transformers_knows_tokens_that_were_added(name, code, token, tmp_path):
  """Fault seen: those of M2M-100 were in no file that its class reads."""
  transformers = pytest.importorskip('transformers', minversion='5')
  words = vocabulary.open_vocabulary(f'{HERE}/public/{name}')
  languages = {code: [*words.languages][0]} if code else None
  files = vocabulary_extension.extend_files(words, True, languages)
  made = vocabulary.store_files(files, str(tmp_path / 'vocabulary'))
  (tmp_path / 'out').mkdir()
  convert.write_tokenizer(str(tmp_path / 'out'), made)
  theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / 'out'))
  new = ['[CLM]', '[DOC]', *([token] if token else [])]
  ids = theirs.convert_tokens_to_ids(new)
  assert ids == [*range(made.size - len(new), made.size)]
  assert made.pieces(ids) == new and len(theirs) == made.size
  text = 'All [CLM] human beings'
  assert made.encode(text) == theirs(text, add_special_tokens=False).input_ids
  assert not theirs.decode(ids, skip_special_tokens=True).strip()
  again = vocabulary.open_vocabulary(str(tmp_path / 'out'))
  assert again.special_ids() == made.special_ids()
  assert again.languages == made.languages
