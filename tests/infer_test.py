"""Generation: through a cache, in batches, from Python and from files."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import atm
from atm import decode, infer, sharding
from atm.model import AlexaTM, Config
from atm.sharding import Rules

from conftest import tiny
from model_test import init


@functools.partial(jax.jit, static_argnums=0)
def whole(net, params, tokens, segments, decoder):
  return net.apply(
    {'params': params},
    tokens,
    decoder,
    encoder_segment_ids=segments,
    enable_dropout=False,
  )


def slow_greedy(net, params, tokens, segments, max_tokens):
  """Greedy decoding without a cache: everything again for each token."""
  c = net.config
  decoder = np.full((len(tokens), max_tokens + 1), c.pad_id, np.int32)
  decoder[:, 0] = c.start_id
  for t in range(max_tokens):
    out = whole(net, params, tokens, segments, decoder)
    decoder[:, t + 1] = out[:, t].argmax(-1)
  made = [list(row[1:]) for row in decoder]
  return [
    row[: row.index(c.end_id)] if c.end_id in row else row for row in made
  ]


@pytest.fixture(scope='module')
def net():
  config = tiny(init_std=0.4)
  return AlexaTM(config), init(config, seed=2)


def test_greedy_equals_decoding_without_a_cache(net, rng):
  module, params = net
  prompts = [list(rng.integers(3, 96, n)) for n in (5, 9, 2, 9)]
  tokens, segments = np.zeros((2, 5, 12), np.int32)
  for i, row in enumerate(prompts):
    tokens[i, : len(row)], segments[i, : len(row)] = row, 1
  made, length = decode.greedy(module, params, tokens, segments, 10)
  expected = slow_greedy(module, params, tokens, segments, 10)
  for i in range(4):
    assert list(made[i, : length[i]]) == expected[i]
    assert (made[i, length[i] :] == module.config.pad_id).all()
  assert length[4] == 0  # a row of padding writes nothing


def test_the_end_token_ends_a_row(net, rng):
  """With the end made likely, rows stop early and at different lengths."""
  module, params = net
  params = {**params, 'lm_head': params['lm_head'].at[2].multiply(3.0)}
  tokens = rng.integers(3, 96, (8, 6)).astype(np.int32)
  made, length = decode.greedy(module, params, tokens, np.ones_like(tokens), 40)
  assert 0 < length.min() + 1 <= length.max() and length.min() < 40
  expected = slow_greedy(module, params, tokens, np.ones_like(tokens), 40)
  for i in range(8):
    assert list(made[i, : length[i]]) == expected[i]


@pytest.fixture(scope='module')
def model(words):
  """An untrained model over the shipped vocabulary, on one device."""
  config = Config(
    vocab_size=2048, d_model=32, encoder_layers=1, decoder_layers=1,
    encoder_heads=4, decoder_heads=4, encoder_ff=64, decoder_ff=64,
    positions=64, dtype='float32', init_std=0.3,
  )  # fmt: skip
  mesh = sharding.mesh(devices=jax.devices()[:1])
  return infer.Model(config, init(config), words, mesh, Rules(), 7)


def test_batch_composition_changes_nothing(model, rng):
  prompts = [list(map(int, rng.integers(7, 2048, n))) for n in range(2, 20)]
  together = model.generate(prompts, max_tokens=12, batch_size=5)
  alone = [model.generate([p], max_tokens=12)[0] for p in prompts]
  assert together == alone
  for prompt, row in zip(prompts[::6], together[::6], strict=True):
    bare = np.array([prompt], np.int32)  # no padding at all
    made, n = decode.greedy(
      AlexaTM(model.config), model.params, bare, np.ones_like(bare), 12
    )
    assert row == made[0, : n[0]].tolist()
  assert all(len(row) <= 12 for row in together)


def test_modes_put_the_marker(model):
  v = model.vocabulary
  text = 'born free'
  assert model.encode(text, 'denoise') == [v.bos_id, *v.encode(text), v.eos_id]
  assert model.encode(text, 'clm')[:2] == [v.bos_id, v.clm_id]
  for mode in infer.MODES:
    by_ids = model.generate([model.encode(text, mode)])[0]
    assert model.generate([text], mode=mode) == [v.decode(by_ids)]


def test_any_mesh_generates_alike(model, words):
  import dataclasses

  mesh = sharding.mesh(data=2, fsdp=2, tensor=2)
  prompts = ['Everyone has', 'Jeder', 'सभी', 'よって']
  other = dataclasses.replace(model, mesh=mesh)
  assert other.generate(prompts) == model.generate(prompts)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(inputs=['a'], mode='cml'), "Did you mean 'clm'"),
    (dict(inputs=['a'], max_tokens=0), 'max_tokens = 0: expected 1 or more'),
    (dict(inputs=[[1] * 65]), 'input 0 has 65 tokens'),
    (dict(inputs=[[1], []]), 'input 1 has 0 tokens'),
    (dict(inputs='one string'), 'expected a list of strings'),
  ],
)
def test_generate_errors(model, arguments, message):
  with pytest.raises(ValueError, match=message):
    model.generate(**arguments)


def test_reading_inputs(tmp_path):
  text, objects = tmp_path / 'a.txt', tmp_path / 'a.jsonl'
  text.write_text('one\n\nthree\n')
  assert [r['input'] for r in infer.read_inputs(str(text))] == [
    'one', '', 'three'
  ]  # fmt: skip
  objects.write_text('{"input": "x", "id": 3}\n\n{"text": "y"}\n')
  assert infer.read_inputs(str(objects)) == [
    {'input': 'x', 'id': 3}, {'text': 'y', 'input': 'y'}
  ]  # fmt: skip
  objects.write_text('{"input": "x"}\n{"input": 3}\n')
  with pytest.raises(ValueError, match='a.jsonl, line 2: expected UTF-8 JSON'):
    infer.read_inputs(str(objects))
  with pytest.raises(FileNotFoundError, match="INPUT = 'none'"):
    infer.read_inputs('none')


def test_load_says_what_is_missing(tmp_path):
  with pytest.raises(FileNotFoundError, match='no checkpoints/ in MODEL_DIR'):
    atm.load(str(tmp_path))
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(FileNotFoundError, match='steps there: none'):
    atm.load(str(tmp_path))


def test_from_checkpoint_to_jsonl(model, words, tmp_path):
  """What a trainer saved, `atm.load` and `infer` read, with 8 devices too."""
  import dataclasses

  from atm import checkpoint, trainer
  from atm.step import State

  directory = str(tmp_path / 'run')
  checkpoints = checkpoint.Checkpoints(directory)
  meta = {
    'model': dataclasses.asdict(model.config),
    'vocabulary': words.sha256,
    'config': '',
  }
  state = State(jnp.zeros((), jnp.int32), model.params, {'x': jnp.zeros(1)})
  checkpoints.save(7, state, meta)
  checkpoints.close()
  trainer.keep_beside(directory, words, meta)
  (tmp_path / 'in.jsonl').write_text('{"input": "Everyone", "id": 1}\n' * 3)
  out = infer.infer(directory, str(tmp_path / 'in.jsonl'), say=lambda t: None)
  with open(out, encoding='utf-8') as f:
    rows = [json.loads(line) for line in f]
  assert len(rows) == 3 and rows[0]['id'] == 1
  assert rows[0]['output'] == model.generate(['Everyone'])[0]
  loaded = atm.load(directory, at_step=7)
  assert loaded.step == 7 and loaded.mesh.size == 8
  with pytest.raises(FileNotFoundError, match='of step 3.*steps there: .7'):
    atm.load(directory, at_step=3)
