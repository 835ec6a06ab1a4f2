"""The released weights' format: parity with references made by PyTorch.

`untied` and `tied` are tiny random models in the format of the released
AlexaTM 20B, `blenderbot_*` of transformers' Blenderbot, and those of `public`
are of its mBART, M2M-100 (NLLB-200, too) and Pegasus, see golden/README.md.
"""

import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

import atm
from atm.checkpoint import hf_folder, hf_keys, pretrained
from atm.inference import sampling
from atm.model import embeddings
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.train import step

from goldens import ALEXATM, BLENDERBOT, HERE, PUBLIC, folder_of, golden


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tmp_path_factory.mktemp('hf')


@pytest.fixture(scope='module')
def load(root):
  """Returns a function: name -> the model of a folder, read once."""
  one = mesh_lib.make_mesh(devices=jax.devices()[:1])
  return functools.cache(
    lambda name, mesh=one, **more: atm.load(
      folder_of(name, root), mesh=mesh, **more
    )
  )


def close(ours, theirs, atol=1e-5):
  np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0)


def applied(config, **fixed):
  """`AlexaTM.apply` as one program."""
  return jax.jit(functools.partial(AlexaTM(config).apply, **fixed))


@functools.cache
def encoder(config):
  return applied(config, enable_dropout=False, method=AlexaTM.encode)


def encode(model, ids, mask, **more):
  run = encoder(model.config)
  return run({'params': model.params}, ids, mask, **more)


@pytest.mark.parametrize('name', ALEXATM)
def test_released_format_states_and_logits(load, name):
  """States and logits, with masks and without, with token types."""
  model, g = load(name), golden(name)
  ids, mask = g['input_ids'], g['attention_mask']
  real = mask.astype(bool)
  states = encode(model, ids, mask)
  close(states[real], g['encoder_last_hidden_state'][real])
  typed = encode(
    model, ids, mask, encoder_token_types=g['encoder_token_type_ids']
  )
  close(typed[real], g['encoder_last_hidden_state_token_type'][real])
  decoder = g['decoder_input_ids']
  close(model.logits(ids, decoder, mask), g['logits'])
  close(model.logits(ids, decoder), g['logits_no_masks'])
  seen = g['decoder_attention_mask'].astype(bool)
  close(
    model.logits(ids, decoder, mask)[seen],
    g['logits_with_decoder_mask'][seen],
  )


@pytest.mark.parametrize('name', ALEXATM + BLENDERBOT)
def test_decoder_states(load, name):
  model, g = load(name), golden(name)
  run = applied(
    model.config, enable_dropout=False, capture_intermediates=True,
    mutable=['intermediates'],
  )  # fmt: skip
  _, kept = run(
    {'params': model.params}, g['input_ids'], g['decoder_input_ids'],
    encoder_segment_ids=g['attention_mask'],
    decoder_segment_ids=np.ones_like(g['decoder_input_ids']),
  )  # fmt: skip
  states = kept['intermediates']['decoder']['norm']['__call__'][0]
  close(states, g['decoder_last_hidden_state'])


def training_batch(model, g):
  labels = g['labels']
  weights = (labels != -100).astype(np.float32)
  return {
    'encoder_input_tokens': g['input_ids'].astype(np.int32),
    'encoder_segment_ids': g['attention_mask'].astype(np.int32),
    'decoder_input_tokens': g['decoder_input_ids'].astype(np.int32),
    'decoder_segment_ids': np.ones_like(labels, np.int32),
    'decoder_target_tokens': np.where(labels < 0, 0, labels).astype(np.int32),
    'decoder_loss_weights': weights,
  }


@pytest.mark.parametrize('name', ALEXATM + BLENDERBOT)
def test_loss_and_gradients(load, name, root):
  model, g = load(name), golden(name)
  b = training_batch(model, g)

  def mean(params):
    sums = step.forward(AlexaTM(model.config), params, b)
    return sums['loss'].sum() / sums['weight'].sum()

  loss, grads = jax.jit(jax.value_and_grad(mean))(model.params)
  close(loss, g['loss'])
  theirs = dict(np.load(f'{HERE}/{name}.grads.npz'))
  described = hf_folder.read_json_object(f'{folder_of(name, root)}/config.json')
  layout = hf_keys.LAYOUTS[hf_keys.get_model_type(described)]
  for path, grad in traverse_util.flatten_dict(grads).items():
    keys = layout.keys(path, grad.shape)
    if path == ('logits_bias',):
      assert not grad.any()
      continue
    if path == ('encoder_embedding',) and keys[0] not in theirs:
      keys = ['model.shared.weight']
    whole = np.stack([
      theirs[k].T if path[-1] == 'kernel' else theirs[k] for k in keys
    ])  # fmt: skip
    if path == ('encoder_embedding',) and name in BLENDERBOT:
      # torch's padding_idx drops the gradient of padding read as an input;
      # here it is a token like others where a target looks back on it.
      whole[:, model.config.pad_id] = g['pad_row_grad_without_padding_idx']
    close(np.asarray(grad).reshape(whole.shape), whole, atol=1e-4)


@pytest.mark.parametrize('name', ALEXATM + BLENDERBOT)
def test_token_log_probabilities(load, name):
  model, g = load(name), golden(name)
  logits = model.logits(
    g['input_ids'], g['decoder_input_ids'], g['attention_mask']
  )
  labels = g['labels']
  each = jax.nn.log_softmax(logits)
  ours = np.take_along_axis(
    np.asarray(each), np.maximum(labels, 0)[..., None], axis=-1
  )[..., 0]
  close(np.where(labels < 0, 0, ours), g['token_logprobs'])


@pytest.mark.parametrize('name', ALEXATM)
def test_scores_are_the_token_log_probabilities(load, name):
  model, g = load(name), golden(name)
  sources = [r[m > 0] for r, m in zip(g['input_ids'], g['attention_mask'])]
  targets = [row[row != -100] for row in g['labels']]
  total, counts = model.score(sources, targets)
  close(total, g['seq_logprob'], atol=5e-5)
  assert list(counts) == [len(t) for t in targets]
  for i, target in enumerate(targets):  # and token by token
    ends = [model.score([sources[i]], [target[: n + 1]])[0][0]
            for n in range(len(target))]  # fmt: skip
    each = np.diff([0.0, *ends])
    close(each, g['token_logprobs'][i][: len(target)], atol=2e-5)


@pytest.mark.parametrize('name', ALEXATM + BLENDERBOT)
def test_cached_steps(load, name):
  model, g = load(name), golden(name)
  net, params = AlexaTM(model.config), {'params': model.params}
  ids, mask, decoder = (
    g['input_ids'],
    g['attention_mask'],
    g['decoder_input_ids'],
  )
  B, T = decoder.shape
  encoded = encode(model, ids, mask)
  caches = net.apply(params, encoded, T, method=AlexaTM.empty_cache)
  run = applied(model.config, method=AlexaTM.decode_cached)
  for t in range(T):
    out, caches = run(
      params, decoder[:, t : t + 1], jnp.full((B, 1), t), caches, mask
    )
    close(out[:, 0], g['logits_cached_steps'][:, t])


@pytest.mark.parametrize('name', ALEXATM)
def test_greedy_ids(load, name):
  model, g = load(name), golden(name)
  sources = [
    row[m > 0].tolist() for row, m in zip(g['input_ids'], g['attention_mask'])
  ]
  made = model.generate(sources, max_tokens=14)
  for ours, theirs in zip(made, g['greedy_ids'], strict=True):
    # Theirs begin with the start token, and the last one is forced.
    theirs = theirs[1:15].tolist()
    end = model.config.end_id
    assert ours == (theirs[: theirs.index(end)] if end in theirs else theirs)


@pytest.mark.parametrize('name', ALEXATM)
@pytest.mark.parametrize('kind', ['greedy_ids_bad_words', 'beam4_ids'])
def test_banned_words_and_beams(load, name, kind):
  """A banned pair; four beams, all returned. The last id there is forced."""
  model, g = load(name), golden(name)
  banned, config = (), sampling.Config(max_tokens=14, beams=4, results=4)
  if kind == 'greedy_ids_bad_words':
    banned = [g['bad_words_bigram']]
    config = sampling.Config(max_tokens=14)
    assert not np.array_equal(g[kind], g['greedy_ids'])
  sources = [
    row[m > 0].tolist() for row, m in zip(g['input_ids'], g['attention_mask'])
  ]
  made = model.complete(sources, config=config, banned=banned)
  made = [one.ids for row in made for one in row]
  end = model.config.end_id
  for ours, theirs in zip(made, g[kind], strict=True):
    theirs = theirs[1:15].tolist()
    assert ours == (theirs[: theirs.index(end)] if end in theirs else theirs)


@pytest.mark.parametrize('name', BLENDERBOT)
def test_blenderbot_greedy_ids(load, name):
  """In b padding is chosen mid-sequence; in c the start token is the end's."""
  model, g = load(name), golden(name)
  end = model.config.end_id
  sources = [
    row[m > 0].tolist() for row, m in zip(g['input_ids'], g['attention_mask'])
  ]
  made = model.generate(sources, max_tokens=20)
  for ours, theirs in zip(made, g['greedy_ids'], strict=True):
    theirs = theirs[1:].tolist()
    assert ours == (theirs[: theirs.index(end)] if end in theirs else theirs)


@pytest.mark.parametrize('name', ALEXATM + BLENDERBOT)
def test_bfloat16_stays_near(load, name):
  model, g = load(name, dtype='bfloat16'), golden(name)
  assert model.config.dtype == 'bfloat16'
  logits = g['logits']
  ours = model.logits(
    g['input_ids'], g['decoder_input_ids'], g['attention_mask']
  )
  assert np.abs(ours - logits).max() < 2e-2 * np.abs(logits).max()
  assert (ours.argmax(-1) == logits.argmax(-1)).mean() >= 0.95


@pytest.mark.parametrize('name', BLENDERBOT)
def test_blenderbot_states_and_logits(load, name):
  model, g = load(name), golden(name)
  ids, mask = g['input_ids'], g['attention_mask']
  real = mask.astype(bool)
  close(encode(model, ids, mask)[real], g['encoder_last_hidden_state'][real])
  decoder = g['decoder_input_ids']
  close(model.logits(ids, decoder, mask), g['logits'])
  close(model.logits(ids, decoder), g['logits_no_masks'])
  full = model.logits(g['full_input_ids'], g['full_decoder_input_ids'])
  close(full, g['full_logits'])


@pytest.mark.parametrize('name', ALEXATM + BLENDERBOT)
def test_a_sharded_model_has_the_same_logits(load, name):
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  g = golden(name)
  if name == 'blenderbot_b':
    with pytest.raises(ValueError, match='vocab_size = 101 does not divide'):
      load(name, mesh=mesh)
    return
  model = load(name, mesh=mesh)
  shard = model.params['encoder']['layers']['feed_forward']['up']['kernel']
  assert shard.addressable_shards[0].data.size == shard.size // 4
  close(
    model.logits(g['input_ids'], g['decoder_input_ids'], g['attention_mask']),
    g['logits'],
  )


# --- Public models, of whose logits the references have every eighth


def near(ours, theirs, atol=1e-5):
  """As `close`, relative to the largest where that is above one."""
  scale = max(1.0, np.abs(theirs).max())
  close(np.asarray(ours) / scale, theirs / scale, atol)


@pytest.fixture(scope='module')
def public():
  """Returns a function: name -> (configuration, parameters, references)."""

  @functools.cache
  def read(name):
    source = pretrained.open_pretrained(f'{HERE}/public/{name}')
    one = mesh_lib.make_mesh(devices=jax.devices()[:1])
    return source.config, source.read_params(one), golden(f'public/{name}')

  return read


def public_outputs(config, params, g):
  """Returns (loss, (encoder's states, logits, log-probabilities)).

  The first half of the batch is masked, the second is not.
  """
  net, twice = AlexaTM(config), lambda x: np.concatenate([x, x])
  mask, ids, targets = (
    np.concatenate([g['attention_mask'], np.ones_like(g['attention_mask'])]),
    twice(g['input_ids']),
    twice(g['decoder_input_ids']),
  )
  states = net.apply(
    {'params': params}, ids, mask, enable_dropout=False, method=AlexaTM.encode
  )
  logits = net.apply(
    {'params': params}, states, ids, targets, encoder_segment_ids=mask,
    decoder_segment_ids=np.ones_like(targets), enable_dropout=False,
    method=AlexaTM.decode,
  )  # fmt: skip
  labels, weights = g['labels'], g['labels'] != -100
  each = jax.nn.log_softmax(logits[: len(labels)])
  chosen = np.maximum(labels, 0)[..., None]
  each = jnp.take_along_axis(each, chosen, axis=-1)[..., 0] * weights
  return -each.sum() / weights.sum(), (states, logits, each)


def check_public_outputs(g, loss, states, logits, each):
  B, real = len(g['labels']), g['attention_mask'].astype(bool)
  close(loss, g['loss'])
  close(states[:B][real], g['encoder_last_hidden_state'][real])
  close(each, g['token_logprobs'])
  near(logits[:B, :, ::8], g['logits'])
  near(logits[B:, :, ::8], g['logits_no_masks'])


@pytest.mark.parametrize('name', ['mbart25', 'm2m_100'])
def test_public_models_states_and_logits(public, name):
  """Faults seen: positions without offset; a norm left out; padding counted."""
  config, params, g = public(name)
  run = jax.jit(lambda params: public_outputs(config, params, g))
  loss, outputs = run(params)
  check_public_outputs(g, loss, *outputs)


@pytest.mark.slow
@pytest.mark.parametrize('name', PUBLIC)
def test_public_models_gradients_and_cached_steps(public, name):
  config, params, g = public(name)
  run = jax.value_and_grad(
    lambda params: public_outputs(config, params, g), has_aux=True
  )
  (loss, outputs), grads = jax.jit(run)(params)
  check_public_outputs(g, loss, *outputs)
  theirs = dict(np.load(f'{HERE}/public/{name}.grads.npz'))
  used = theirs.pop('used_ids'), theirs.pop('used_rows')
  described = hf_folder.read_json_object(f'{HERE}/public/{name}/config.json')
  layout, compared = hf_keys.get_layout(described), set()
  for path, grad in traverse_util.flatten_dict(grads).items():
    if path == ('logits_bias',):
      continue
    keys = layout.keys(path, grad.shape)
    compared |= {*keys}
    whole = np.asarray(grad if hf_folder.is_stacked(path) else grad[None])
    if path[-1] == 'kernel':
      whole = whole.swapaxes(1, 2)
    for key, ours in zip(keys, whole, strict=True):
      ours_rows = ours[::4] if ours.ndim > 1 else ours
      close(ours_rows, theirs[key], atol=1e-4)
    if path == ('encoder_embedding',):
      close(whole[0][used[0]], used[1], atol=1e-4)
  assert compared == theirs.keys()

  net, steps = AlexaTM(config), g['step_ids']
  B, T = steps.shape
  encoded = outputs[0][:B]
  caches = net.apply({'params': params}, encoded, T, method=AlexaTM.empty_cache)
  step_on = applied(config, method=AlexaTM.decode_cached)
  for t in range(T):
    out, caches = step_on(
      {'params': params}, steps[:, t : t + 1], jnp.full((B, 1), t), caches,
      g['attention_mask'],
    )  # fmt: skip
    near(out[:, 0, ::8], g['logits_cached_steps'][:, t])
  full = applied(config, enable_dropout=False)(
    {'params': params}, g['full_input_ids'], g['full_decoder_input_ids'],
    encoder_segment_ids=np.ones_like(g['full_input_ids']),
  )  # fmt: skip
  near(full[:, -4:, ::8], g['full_logits'])


def variant(name, folder, change=None, **described) -> str:
  """Writes a public model's config.json and tensors, changed; its folder."""
  source = f'{HERE}/public/{name}'
  weights = safetensors.numpy.load_file(f'{source}/model.safetensors')
  weights = change(weights) if change else weights
  safetensors.numpy.save_file(weights, f'{folder}/model.safetensors')
  described = hf_folder.read_json_object(f'{source}/config.json') | described
  with open(f'{folder}/config.json', 'w') as f:
    json.dump(described, f)
  return str(folder)


def read_all(folder):
  """Returns (configuration, {path: array}) of a folder without a tokenizer."""
  source = pretrained.open_pretrained(folder)
  read = source.parameter_reader()
  shapes = pretrained.shapes_on_one_device(source.config)
  return source.config, {k: read(k) for k in traverse_util.flatten_dict(shapes)}


SHARED, HEAD = 'model.shared.weight', 'lm_head.weight'
EMBEDDED = [f'model.{x}.embed_tokens.weight' for x in ('encoder', 'decoder')]
TABLES = [f'model.{x}.embed_positions.weight' for x in ('encoder', 'decoder')]


def all_copies(weights):
  return {**weights, **dict.fromkeys([*EMBEDDED, HEAD], weights[SHARED])}


def head_alone(weights):
  return {HEAD: weights.pop(SHARED), **weights}


def bare(weights):
  weights.pop('final_logits_bias', None)
  return {key.removeprefix('model.'): x for key, x in weights.items()}


def fairseq_table(weights):
  """As early folders have it, with fairseq's notes of its version."""
  width = weights[SHARED].shape[1]
  table = np.array(embeddings.sinusoids(np.arange(40), width, True))
  table[1] = 0
  notes = {f'model.{x}.version': np.ones(1, np.float32) for x in ('encoder',)}
  return {**weights, **notes, **{f'{key}s': table for key in TABLES}}


@pytest.mark.parametrize(
  'name, change',
  [
    ('mbart50', all_copies),
    ('pegasus', all_copies),
    ('mbart50', head_alone),
    ('m2m_100', head_alone),
    ('mbart25', bare),
    ('nllb', bare),
    ('m2m_100', fairseq_table),
    ('pegasus', lambda w: {k: x for k, x in w.items() if k not in TABLES}),
  ],
)
def test_folders_of_one_model_hold_it_in_several_ways(tmp_path, name, change):
  """Fault seen: the LM head's key alone, which holds the tied matrix."""
  config, plain = read_all(variant(name, tmp_path))
  again, found = read_all(variant(name, tmp_path, change))
  assert again == config and config.ties == 'all'
  assert sum(path[0] in ('decoder_embedding', 'lm_head') for path in found) == 0
  for path, value in plain.items():
    if path == ('logits_bias',) and change is bare:
      assert not found[path].any()
    else:
      np.testing.assert_array_equal(found[path], value, err_msg=str(path))


def test_positions_of_pegasus_that_are_no_sinusoids_are_learned(tmp_path):
  """transformers' class reads the stored table, whatever that holds."""
  _, plain = read_all(variant('pegasus', tmp_path))
  moved = {}

  def move(weights):
    weights |= {k: weights[k] * 2 + i for i, k in enumerate(TABLES)}
    return moved.setdefault('', weights)

  config, found = read_all(variant('pegasus', tmp_path, move))
  assert config.position_embedding == 'learned'
  for name, key in zip(('encoder_positions', 'decoder_positions'), TABLES):
    np.testing.assert_array_equal(found.pop((name,)), moved[''][key])
  assert found.keys() == plain.keys()


def test_a_bias_that_was_left_out_is_zeros(tmp_path):
  without = lambda w: {k: x for k, x in w.items() if k != 'final_logits_bias'}
  _, found = read_all(variant('mbart50', tmp_path, without))
  assert (
    found['logits_bias',].shape == (603,) and not found['logits_bias',].any()
  )


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_a_table_is_as_rounded_as_its_folder(tmp_path, dtype):
  """transformers reads Pegasus' positions, and takes them as they are."""
  half = lambda w: {k: x.astype(dtype) for k, x in w.items()}
  config, found = read_all(variant('pegasus', tmp_path, half))
  table = safetensors.numpy.load_file(f'{tmp_path}/model.safetensors')[
    TABLES[0]
  ]
  assert {x.dtype for x in found.values()} == {np.dtype(dtype)}
  ids = np.full((1, 34), 5)
  net = AlexaTM(config)
  embed = lambda ids: net.apply(
    {'params': traverse_util.unflatten_dict(found)}, ids, None, None,
    method=AlexaTM.embed_source,
  )  # fmt: skip
  row = found['encoder_embedding',][5].astype(np.float32) * 20**0.5
  np.testing.assert_array_equal(
    np.asarray(embed(ids))[0], row + table.astype(np.float32)
  )


def test_positions_of_another_kind_are_refused(tmp_path):
  """M2M-100's class computes its table, whatever a folder stores."""

  def learned(weights):
    weights = fairseq_table(weights)
    key = f'{TABLES[1]}s'
    return {**weights, key: weights[key][::-1].copy()}

  folder = variant('m2m_100', tmp_path, learned)
  with pytest.raises(
    hf_keys.WeightsError, match='decoder.embed_positions.weig'
  ):
    read_all(folder)


def test_a_table_is_not_read_before_its_shape(tmp_path, monkeypatch):
  folder = variant('pegasus', tmp_path)
  opened = hf_folder.open_weights(folder)
  monkeypatch.setattr(hf_folder, 'open_weights', lambda _: opened)
  for shape in ((2**62, 20), (0, 20), (), (34, 2**62)):
    opened[TABLES[0]] = opened[TABLES[0]]._replace(shape=shape, read=None)
    with pytest.raises(hf_keys.WeightsError, match='encoder.embed_positions'):
      read_all(folder)


def test_a_file_is_for_whoever_may_read_its_neighbours(tmp_path):
  """Fault seen: safetensors gives its file to its owner alone."""
  (tmp_path / 'other').write_text('')
  path = tmp_path / 'model.safetensors'
  hf_folder.write_tensors(str(path), {'x': np.arange(3.0)})
  assert path.stat().st_mode == (tmp_path / 'other').stat().st_mode
  kept = safetensors.numpy.load_file(path)['x']
  np.testing.assert_array_equal(kept, np.arange(3.0))


def test_three_matrices_apart(tmp_path):
  """As transformers 5 writes a model whose matrices are not tied."""

  def apart(weights):
    copies = {k: weights[SHARED] + n for n, k in enumerate([*EMBEDDED, HEAD])}
    return {**weights, **copies}

  folder = variant('m2m_100', tmp_path, apart, tie_word_embeddings=False)
  config, found = read_all(folder)
  assert config.ties == 'none'
  first = found['encoder_embedding',]
  np.testing.assert_array_equal(found['decoder_embedding',], first + 1)
  np.testing.assert_array_equal(found['lm_head',], first + 2)
  # transformers 4 wrote the LM head apart, and one embedding of both stacks.
  two = lambda w: {**w, HEAD: w[SHARED] + 1}
  folder = variant('m2m_100', tmp_path, two, tie_word_embeddings=False)
  config, found = read_all(folder)
  assert config.ties == 'embeddings'
  np.testing.assert_array_equal(found['lm_head',], first + 1)
