"""A fresh model whose encoder starts from a trained one."""

import dataclasses
import functools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import traverse_util

from atm.checkpoint import config_json, hf_folder, hf_keys, manager, warm_start
from atm.data import vocabulary, vocabulary_training
from atm.data.vocabulary import Vocabulary
from atm.model.config import ModelConfig
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding
from atm.train import step

from conftest import tiny
from goldens import HERE, folder_of, golden

XLMR = f'{HERE}/xlmr_xl'
EIGHT = functools.partial(mesh_lib.make_mesh, data=2, fsdp=2, tensor=2)
SENTENCES = [
  'the quick brown fox jumps over the lazy dog',
  'pack my box with five dozen liquor jugs',
] * 20


def beside_xlmr(**changes) -> ModelConfig:
  """A model whose encoder is that of golden/xlmr_xl."""
  sizes = dict(
    vocab_size=124, encoder_layers=3, encoder_ff=128, positions=40, pad_id=1,
    start_id=0, end_id=2,
  )  # fmt: skip
  return tiny(**{**sizes, **changes})


@functools.cache
def _fresh(config, mesh, seed):
  """A fresh state on the host, and its shardings."""
  net, tx = AlexaTM(config), optax.identity()
  abstract = step.abstract_state(net, tx, mesh, sharding.Rules())
  state = step.init_state(net, tx, seed, abstract)
  return jax.device_get(state), jax.tree.map(lambda x: x.sharding, abstract)


def fresh(config, mesh=None, seed=7):
  mesh = mesh or mesh_lib.make_mesh(devices=jax.devices()[:1])
  return jax.tree.map(jax.device_put, *_fresh(config, mesh, seed))


def warm(config, source, words, mesh=None):
  """(fresh parameters, the same warm-started, lines said)."""
  before = fresh(config, mesh).params
  lines = []
  source = warm_start.open_source(source)
  after = warm_start.init_encoder(before, config, source, words, lines.append)
  return before, after, lines


def encode(config, params, ids, mask=None):
  return AlexaTM(config).apply(
    {'params': params}, ids, np.ones_like(ids) if mask is None else mask,
    enable_dropout=False, method=AlexaTM.encode,
  )  # fmt: skip


def close(ours, theirs, atol=1e-5):
  np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0)


def same(one, other):
  np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def kept(before, after, *but):
  """Asserts that the decoder and all else but the encoder are unchanged."""
  for path, value in traverse_util.flatten_dict(before).items():
    if not path[0].startswith('encoder') and path[0] not in but:
      same(value, traverse_util.flatten_dict(after)[path])


@pytest.fixture(scope='module')
def xlmr_words(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('xlmr'))
  return vocabulary.convert_xlmr(XLMR, folder)


def train_words(directory, size=40) -> Vocabulary:
  return vocabulary_training.train_sentencepiece(
    SENTENCES, str(directory), size
  )


def permuted(words, directory) -> Vocabulary:
  """The same pieces, the ordinary ones in the opposite order."""
  from sentencepiece import sentencepiece_model_pb2

  model = sentencepiece_model_pb2.ModelProto.FromString(words.model)
  pieces = list(model.pieces)
  pieces = [type(p).FromString(p.SerializeToString()) for p in pieces]
  del model.pieces[:]
  model.pieces.extend(pieces[:7] + pieces[:6:-1])
  os.makedirs(directory)
  with open(f'{directory}/{vocabulary.MODEL_FILE}', 'wb') as f:
    f.write(model.SerializeToString())
  return Vocabulary(str(directory))


def copy_xlmr(folder, tensors=None, drop=(), **described) -> str:
  """A copy of golden/xlmr_xl with changes."""
  shutil.copytree(XLMR, folder)
  for name in drop:
    os.remove(f'{folder}/{name}')
  with open(f'{XLMR}/config.json') as f:
    config = {**json.load(f), **described}
  with open(f'{folder}/config.json', 'w') as f:
    json.dump(config, f)
  if tensors:
    weights = safetensors.numpy.load_file(f'{XLMR}/model.safetensors')
    path = f'{folder}/model.safetensors'
    safetensors.numpy.save_file(tensors(weights), path)
  return str(folder)


def run_dir(directory, config, words=None, seed=3):
  """A MODEL_DIR with one checkpoint; returns its parameters."""
  state = fresh(config, seed=seed)
  checkpoints = manager.CheckpointManager(str(directory))
  checkpoints.save(5, state.to_trees(), {'model': dataclasses.asdict(config)})
  checkpoints.close()
  if words is not None:
    os.makedirs(f'{directory}/vocabulary', exist_ok=True)
    file = f'{directory}/vocabulary/{vocabulary.MODEL_FILE}'
    with open(file, 'wb') as f:
      f.write(words.model)
  return state.params


def check(config, folder):
  warm_start.check_encoder(config, warm_start.open_source(str(folder)))


# --- XLM-R


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 2, 2)])
def test_xlmr_states(xlmr_words, shape):
  """Faults seen: positions without offset; without type 0; norms swapped."""
  config = beside_xlmr()
  devices = jax.devices()[: np.prod(shape)]
  mesh = mesh_lib.make_mesh(*shape, devices=devices)
  _, params, _ = warm(config, XLMR, xlmr_words, mesh)
  g = np.load(f'{HERE}/xlmr_xl.io.npz')
  real = g['attention_mask'].astype(bool)
  states = encode(config, params, g['input_ids'], g['attention_mask'])
  close(np.asarray(states)[real], g['last_hidden_state'][real])
  full = encode(config, params, g['full_input_ids'])
  close(full, g['full_last_hidden_state'])


def test_xlmr_with_token_types_of_its_own(xlmr_words):
  config = beside_xlmr(token_types=3)
  _, params, _ = warm(config, XLMR, xlmr_words)
  g = np.load(f'{HERE}/xlmr_xl.io.npz')
  close(
    encode(config, params, g['full_input_ids']), g['full_last_hidden_state']
  )
  theirs = safetensors.numpy.load_file(f'{XLMR}/model.safetensors')
  types = theirs['embeddings.token_type_embeddings.weight']
  same(params['encoder_types'], np.repeat(types, 3, axis=0))


def test_a_model_with_a_head_is_the_bare_one(xlmr_words, tmp_path):
  def masked_lm(weights):
    rest = {
      'lm_head.dense.weight': np.ones((32, 32), np.float32),
      'lm_head.bias': np.ones(122, np.float32),
      'roberta.pooler.dense.bias': np.ones(32, np.float32),
      'roberta.embeddings.position_ids': np.arange(42)[None],
    }
    return {**{f'roberta.{k}': v for k, v in weights.items()}, **rest}

  folder = copy_xlmr(tmp_path / 'lm', masked_lm)
  config = beside_xlmr()
  _, bare, _ = warm(config, XLMR, xlmr_words)
  _, headed, _ = warm(config, folder, xlmr_words)
  jax.tree.map(same, bare, headed)


def test_half_precision_weights_become_float32(xlmr_words, tmp_path):
  half = lambda w: {k: v.astype(np.float16) for k, v in w.items()}
  folder = copy_xlmr(tmp_path / 'half', half)
  before, after, _ = warm(beside_xlmr(), folder, xlmr_words)
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(after))
  up = after['encoder']['layers']['feed_forward']['up']['kernel']
  same(up, np.asarray(up).astype(np.float16).astype(np.float32))


def test_positions_beyond_the_table_repeat_it(xlmr_words):
  """Fault seen: a table that repeats its padding rows too."""
  long, short = beside_xlmr(positions=100), beside_xlmr(positions=24)
  _, params, lines = warm(long, XLMR, xlmr_words)
  assert 'positions: 40 known, repeated to fill 100' in lines
  rows = np.asarray(params['encoder_positions'])
  same(rows[40:80], rows[:40])
  same(rows[80:], rows[:20])
  assert len(np.unique(rows, axis=0)) == 40
  g = np.load(f'{HERE}/xlmr_xl.io.npz')
  ids, states = g['full_input_ids'], g['full_last_hidden_state']
  close(encode(long, params, ids), states)
  again = AlexaTM(long).apply(  # the second tile computes the same
    {'params': params}, ids, np.ones_like(ids), np.arange(40)[None] + 40,
    enable_dropout=False, method=AlexaTM.encode,
  )  # fmt: skip
  close(again, states)
  _, params, lines = warm(short, XLMR, xlmr_words)
  same(params['encoder_positions'], rows[:24])
  assert not any('positions' in line for line in lines)


def test_xlmr_rows_without_a_piece_are_nobodys(xlmr_words, tmp_path):
  """XL has 250,880 rows for 250,002 pieces; [CLM] must not get one of those."""

  def longer(weights):
    key = 'embeddings.word_embeddings.weight'
    more = np.full((6, 32), 9, np.float32)
    return {**weights, key: np.concatenate([weights[key], more])}

  folder = copy_xlmr(tmp_path / 'more', longer, vocab_size=128)
  config = beside_xlmr(vocab_size=128)
  before, after, lines = warm(config, folder, xlmr_words)
  assert any('122 of 128 rows matched' in line for line in lines)
  name = 'encoder_embedding'
  same(after[name][122:], before[name][122:])
  assert not (np.asarray(after[name]) == 9).any()


# --- What starts equal


@pytest.mark.parametrize(
  'ties', ['none', 'embeddings', 'decoder_head', 'encoder_head', 'all']
)
def test_decoder_and_head_start_from_the_encoder(xlmr_words, ties):
  config = beside_xlmr(ties=ties)
  before, after, _ = warm(config, XLMR, xlmr_words)
  assert jax.tree.structure(before) == jax.tree.structure(after)
  theirs = safetensors.numpy.load_file(f'{XLMR}/model.safetensors')
  tables = [name for name in warm_start.EMBEDDINGS if name in after]
  assert len(tables) == {'none': 3, 'all': 1}.get(ties, 2)
  for name in tables:
    same(after[name][:122], theirs['embeddings.word_embeddings.weight'])
    same(after[name][122:], before['encoder_embedding'][122:])
  kept(before, after, *tables)


def test_an_update_can_donate_the_result(xlmr_words):
  """Fault seen: one buffer for the three matrices."""
  _, after, _ = warm(beside_xlmr(), XLMR, xlmr_words)
  add = lambda tree: jax.tree.map(lambda x: x + 1, tree)
  wanted = jax.device_get(add(after))
  made = jax.jit(add, donate_argnums=0)(after)
  jax.tree.map(same, made, wanted)


def test_shapes_dtypes_and_shardings_stay(xlmr_words):
  config = beside_xlmr()
  before, after, _ = warm(config, XLMR, xlmr_words, EIGHT())
  for path, old in traverse_util.flatten_dict(before).items():
    new = traverse_util.flatten_dict(after)[path]
    assert (new.shape, new.dtype) == (old.shape, old.dtype), path
    assert new.sharding == old.sharding, path
  kernel = after['encoder']['layers']['feed_forward']['up']['kernel']
  assert kernel.addressable_shards[0].data.size == kernel.size // 4
  _, single, _ = warm(config, XLMR, xlmr_words)
  jax.tree.map(same, after, single)


# --- From this package's own and from the two classes of the same shape


def test_from_a_checkpoint(tmp_path):
  words = train_words(tmp_path / 'words')
  theirs = run_dir(tmp_path / 'run', tiny(), words)
  config = tiny(decoder_layers=1, decoder_ff=32, ties='decoder_head')
  before, after, lines = warm(config, str(tmp_path / 'run'), words)
  jax.tree.map(same, after['encoder'], theirs['encoder'])
  for name in ('encoder_embedding', 'encoder_positions'):
    same(after[name], theirs[name])
  same(after['decoder_embedding'], theirs['encoder_embedding'])
  kept(before, after, 'decoder_embedding')
  assert any('the same vocabulary, all 96 rows' in line for line in lines)


def test_the_newest_checkpoint_is_taken(tmp_path):
  words = train_words(tmp_path / 'words')
  run_dir(tmp_path / 'run', tiny(), words)
  later = fresh(tiny(), seed=11)
  checkpoints = manager.CheckpointManager(str(tmp_path / 'run'))
  checkpoints.save(12, later.to_trees(), {'model': dataclasses.asdict(tiny())})
  checkpoints.close()
  _, after, _ = warm(tiny(), str(tmp_path / 'run'), words)
  jax.tree.map(same, after['encoder'], later.params['encoder'])


@pytest.mark.parametrize('name', ['untied', 'blenderbot_a', 'blenderbot_b'])
@pytest.mark.parametrize('types', [0, 4])
def test_from_hugging_face(name, types, tmp_path):
  """The encoder's states are the reference's, types folded or not."""
  folder = folder_of(name, tmp_path)
  theirs = config_json.config_from_hf(
    hf_folder.read_json_object(f'{folder}/config.json')
  )
  changes = dict(token_types=types, decoder_layers=1, ties='none')
  config = dataclasses.replace(theirs, **changes)
  words = train_words(tmp_path / 'words')
  _, params, lines = warm(config, folder, words)
  assert any('it has no tokenizer, all' in line for line in lines)
  g = golden(name)
  real = g['attention_mask'].astype(bool)
  states = encode(config, params, g['input_ids'], g['attention_mask'])
  close(np.asarray(states)[real], g['encoder_last_hidden_state'][real])


# --- From public models


def public(name):
  folder = f'{HERE}/public/{name}'
  described = hf_folder.read_json_object(f'{folder}/config.json')
  weights = safetensors.numpy.load_file(f'{folder}/model.safetensors')
  return folder, config_json.config_from_hf(described), weights


def test_rows_of_a_public_model_follow_their_pieces(tmp_path):
  """Faults seen: mBART's two rows in front taken for positions 0 and 1."""
  folder, theirs, weights = public('mbart25')
  words = train_words(tmp_path / 'words')
  config = dataclasses.replace(
    theirs, vocab_size=50, pad_id=words.pad_id, start_id=1, end_id=2,
    decoder_layers=1, ties='none', positions=50, encoder_position_offset=1,
  )  # fmt: skip
  _, after, lines = warm(config, folder, words)
  assert 'positions: 40 known, repeated to fill 50' in lines
  table = weights['model.encoder.embed_positions.weight'][2:]
  same(after['encoder_positions'][1:41], table)
  same(after['encoder_positions'][41:], table[:10])
  norm = after['encoder']['embedding_norm']
  same(norm['scale'], weights['model.encoder.layernorm_embedding.weight'])
  there = vocabulary.open_vocabulary(folder)
  ids = {piece: i for i, piece in enumerate(there.pieces(range(there.size)))}
  shared = {
    i: ids[piece]
    for i, piece in enumerate(words.pieces(range(7, 40)), 7)
    if piece in ids
  }
  shared |= {words.pad_id: 1, words.eos_id: 2, words.unk_id: 3}
  assert len(shared) > 20
  rows = weights['model.shared.weight']
  for name in ('encoder_embedding', 'decoder_embedding', 'lm_head'):
    same(after[name][np.array([*shared])], rows[np.array([*shared.values()])])


@pytest.mark.parametrize(
  'name, kind',
  [
    ('nllb', 'learned'),
    pytest.param('mbart50', 'learned', marks=pytest.mark.slow),
    pytest.param('m2m_100', 'sinusoidal_fairseq', marks=pytest.mark.slow),
    pytest.param('pegasus', 'learned', marks=pytest.mark.slow),
  ],
)
def test_states_of_a_public_encoder(name, kind):
  """A learned table begins as the sinusoids that a source computes."""
  folder, theirs, _ = public(name)
  words = vocabulary.open_vocabulary(folder)
  config = dataclasses.replace(
    theirs, position_embedding=kind, decoder_layers=1, ties='none'
  )
  _, params, lines = warm(config, folder, words)
  assert any('the same vocabulary, all' in line for line in lines)
  g = golden(f'public/{name}')
  real = g['attention_mask'].astype(bool)
  states = encode(config, params, g['input_ids'], g['attention_mask'])
  close(np.asarray(states)[real], g['encoder_last_hidden_state'][real])


@pytest.mark.parametrize(
  'name, change, match',
  [
    ('mbart50', {'activation': 'gelu'}, "set model.Config.activation = 'relu'"),
    ('mbart25', {'embedding_norm': False}, 'Config.embedding_norm = True'),
    ('pegasus', {'embed_scale': False}, 'set model.Config.embed_scale = True'),
    ('nllb', {'encoder_position_offset': 0}, 'encoder_position_offset = 2'),
    ('mbart25', {'position_embedding': 'sinusoidal'},
     "set model.Config.position_embedding = 'learned'"),
    ('nllb', {'position_embedding': 'sinusoidal'},
     "position_embedding = 'sinusoidal_fairseq'"),
  ],
)  # fmt: skip
def test_a_misfit_of_a_public_model(name, change, match):
  folder, theirs, _ = public(name)
  with pytest.raises(ValueError, match=match):
    check(dataclasses.replace(theirs, **change), folder)


# --- Vocabularies


def test_rows_follow_their_pieces(tmp_path):
  """Fault seen: rows copied by id."""
  words = train_words(tmp_path / 'words')
  other = permuted(words, tmp_path / 'other')
  theirs = run_dir(tmp_path / 'run', tiny(), words)
  before, after, lines = warm(tiny(), str(tmp_path / 'run'), other)
  assert any(
    '40 of 96 rows matched by piece, 7 of them special' in line
    for line in lines
  )
  ours, source = after['encoder_embedding'], theirs['encoder_embedding']
  for piece in ['<s>', '[CLM]', 'l', '▁']:
    there, here = (v._sp.PieceToId(piece) for v in (words, other))
    same(ours[here], source[there])
  same(ours[7:40], source[7:40][::-1])
  same(ours[40:], before['encoder_embedding'][40:])
  same(ours, after['lm_head'])


def test_special_pieces_are_matched_by_role(tmp_path, xlmr_words):
  words = train_words(tmp_path / 'words')
  config = beside_xlmr(vocab_size=50, pad_id=0, start_id=1)
  before, after, lines = warm(config, XLMR, words)
  theirs = safetensors.numpy.load_file(f'{XLMR}/model.safetensors')
  theirs = theirs['embeddings.word_embeddings.weight']
  ours = np.asarray(after['encoder_embedding'])
  same(ours[:5], theirs[[1, 0, 2, 3, 121]])  # PAD BOS EOS UNK MASK
  same(ours[5:7], before['encoder_embedding'][5:7])  # CLM DOC
  shared = set(words.pieces(range(7, 40))) & set(
    xlmr_words.pieces(range(4, 121))
  )
  assert len(shared) > 5
  for piece in shared:
    there, here = (v._sp.PieceToId(piece) for v in (xlmr_words, words))
    same(ours[here], theirs[there])
  matched = f'{len(shared) + 5} of 50 rows matched by piece, 5 of them special'
  assert any(matched in line for line in lines)


def test_without_a_tokenizer_rows_are_copied_or_refused(tmp_path, xlmr_words):
  folder = copy_xlmr(tmp_path / 'bare', drop=[vocabulary.XLMR_FILE])
  config = beside_xlmr(vocab_size=122)
  _, after, lines = warm(config, folder, xlmr_words)
  theirs = safetensors.numpy.load_file(f'{XLMR}/model.safetensors')
  same(after['lm_head'], theirs['embeddings.word_embeddings.weight'])
  assert any('no tokenizer, all 122 rows' in line for line in lines)
  match = 'vocab_size = 124, but .* has 122 rows and no tokenizer'
  with pytest.raises(ValueError, match=match):
    check(beside_xlmr(), folder)
  with open(f'{folder}/tokenizer.json', 'w') as f:
    f.write('{}')
  with pytest.raises(ValueError, match='has tokenizer.json, but no Sentence'):
    warm(config, folder, xlmr_words)


# --- Errors


@pytest.mark.parametrize(
  'change, match',
  [
    (
      {'encoder_layers': 2},
      'Config.encoder_layers = 2, but 3 in .* set model.Config.encoder_layers',
    ),
    ({'d_model': 64}, 'set model.Config.d_model = 32'),
    ({'encoder_heads': 8}, 'set model.Config.encoder_heads = 4'),
    ({'encoder_ff': 64}, 'set model.Config.encoder_ff = 128'),
    ({'norm': 'uncentred'}, "set model.Config.norm = 'standard'"),
    ({'norm_eps': 1e-12}, 'set model.Config.norm_eps = 1e-05'),
    ({'embed_scale': True}, 'set model.Config.embed_scale = False'),
    (
      {'d_model': 64, 'encoder_ff': 64},
      'd_model = 32, model.Config.encoder_ff = 128',
    ),
  ],
)
def test_a_misfit_names_the_binding(change, match, xlmr_words):
  config = beside_xlmr(**change)
  with pytest.raises(ValueError, match=match):
    check(config, XLMR)
  with pytest.raises(ValueError, match=match):
    warm_start.init_encoder(
      {}, config, warm_start.open_source(XLMR), xlmr_words
    )


def test_a_misfit_of_a_checkpoint(tmp_path):
  run_dir(tmp_path, tiny())
  with pytest.raises(ValueError, match='set model.Config.encoder_layers = 2'):
    check(tiny(encoder_layers=3), str(tmp_path))
  check(tiny(decoder_layers=1, positions=8), str(tmp_path))


def test_folders_that_hold_no_encoder(tmp_path):
  with pytest.raises(FileNotFoundError, match='INIT_ENCODER = .*checkpoints/'):
    check(beside_xlmr(), tmp_path)
  os.makedirs(tmp_path / 'run' / 'checkpoints')
  with pytest.raises(FileNotFoundError, match='no checkpoint in .*run'):
    check(beside_xlmr(), tmp_path / 'run')
  other = copy_xlmr(tmp_path / 'base', model_type='xlm-roberta')
  with pytest.raises(ValueError, match="Did you mean 'xlm-roberta-xl'"):
    check(beside_xlmr(), other)


@pytest.mark.parametrize(
  'described, match',
  [
    ({'hidden_act': 'gelu_new'}, 'hidden_act'),
    ({'position_embedding_type': 'relative_key'}, "only 'absolute' is sup"),
    ({'hidden_size': None}, 'hidden_size is None: expected a whole number'),
    ({'vocab_size': 121}, '122 pieces .* more than vocab_size = 121'),
  ],
)
def test_an_xlmr_that_is_not_what_it_says(described, match, tmp_path):
  def shorter(weights):
    key = 'embeddings.word_embeddings.weight'
    rows = described.get('vocab_size', 122)
    return {**weights, key: weights[key][:rows].copy()}

  folder = copy_xlmr(tmp_path / 'odd', shorter, **described)
  with pytest.raises(ValueError, match=match):
    check(beside_xlmr(), folder)


def test_weights_are_checked_key_by_key(tmp_path):
  drop = lambda w: {k: v for k, v in w.items() if 'layer.2.LayerN' not in k}
  folder = copy_xlmr(tmp_path / 'lacks', drop)
  with pytest.raises(hf_keys.WeightsError, match='lacks .*layer.2.LayerNorm'):
    check(beside_xlmr(), folder)
  more = lambda w: {**w, 'encoder.layer.3.x': np.ones(2, np.float32)}
  folder = copy_xlmr(tmp_path / 'more', more)
  with pytest.raises(hf_keys.WeightsError, match='no place for.*layer.3.x'):
    check(beside_xlmr(), folder)


def test_a_warm_start_trains(xlmr_words):
  """The result goes into an update on eight devices."""
  config = beside_xlmr()
  mesh, tx = EIGHT(), optax.sgd(0.1)
  net = AlexaTM(config)
  abstract = step.abstract_state(net, tx, mesh, sharding.Rules())
  state = step.init_state(net, tx, 0, abstract)
  params = warm_start.init_encoder(
    state.params, config, warm_start.open_source(XLMR), xlmr_words, [].append
  )
  state = state.replace(params=params)
  ids = np.arange(64, dtype=np.int32).reshape(8, 8) + 4
  batch = {
    'encoder_input_tokens': ids,
    'encoder_segment_ids': np.ones_like(ids),
    'decoder_input_tokens': ids,
    'decoder_segment_ids': np.ones_like(ids),
    'decoder_target_tokens': ids,
    'decoder_loss_weights': np.ones(ids.shape, np.float32),
  }
  batch = sharding.shard_batch(batch, mesh, sharding.Rules())

  @functools.partial(jax.jit, donate_argnums=0)
  def update(params):
    loss = lambda p: step.forward(net, p, batch)['loss'].mean()
    value, grads = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.01 * g, params, grads), value

  with sharding.use_mesh(mesh, sharding.Rules()):
    params, first = update(state.params)
    _, second = update(params)
  assert jnp.isfinite(first) and second < first
