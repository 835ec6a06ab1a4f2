"""Decoding equals transformers' `generate` (see golden/README.md), and itself
without a cache."""

import functools
import itertools
import json
import os

import jax
import numpy as np
import pytest

import atm
from atm.inference import bucketing, generation_defaults, sampling
from atm.inference import generate as generate_lib
from atm.inference.outputs import collect
from atm.inference.sampling import Config
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib

from conftest import tiny
from goldens import HERE
from small_models import init

with open(os.path.join(HERE, 'generate.json'), encoding='utf-8') as f:
  SETTINGS = json.load(f)
with open(os.path.join(HERE, 'public_generate.json'), encoding='utf-8') as f:
  PUBLIC = json.load(f)
NAMES = {
  'max_new_tokens': 'max_tokens',
  'min_new_tokens': 'min_tokens',
  'num_beams': 'beams',
  'num_return_sequences': 'results',
}
OURS = {field for field in Config.__dataclass_fields__}


@pytest.fixture(scope='module')
def theirs():
  with np.load(os.path.join(HERE, 'generate.npz')) as f:
    return dict(f)


@pytest.fixture(scope='module')
def twin():
  """The model of the goldens, on one device."""
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  return atm.load(os.path.join(HERE, 'blenderbot_generate'), mesh=mesh)


def options(settings: dict) -> dict:
  """Keyword arguments of transformers' generate as `Model.complete`'s."""
  settings = dict(settings)
  banned = settings.pop('bad_words_ids', ())
  settings.pop('prefix', None)
  settings.pop('do_sample', None)
  named = {NAMES.get(k, k): v for k, v in settings.items()}
  assert set(named) <= OURS, set(named) - OURS
  return dict(config=Config(**named), banned=banned)


def bare(row, fill: int) -> list[int]:
  return [int(i) for i in row if i != fill]


@pytest.mark.parametrize('name', SETTINGS)
def test_ids_are_those_of_transformers(twin, theirs, name):
  """200 prompts in each setting, in one batch.

  Faults seen: banned sequences matched without the prefix, or by their last id
  alone; the end banned one token too long; repetition counted without the start
  token; the penalty of lengths of a token less; an end counted where it is not
  among the k best; the running beams' hope at their length where it is 'never';
  what a beam descends from not moved with it; padding of prefixes seen by
  beams; beams read at the prefix's length in place of the row's.
  """
  prefixes = None
  if SETTINGS[name].get('prefix'):
    prefixes = [bare(row, -1) for row in theirs['prefix_ids']]
  made = twin.complete(
    [bare(row, 0) for row in theirs['input_ids']],
    prefixes=prefixes,
    batch_size=200,
    **options(SETTINGS[name]),
  )
  want = theirs[f'{name}_ids'].reshape(200, -1, 20)
  end = twin.config.end_id
  for row, expected in zip(made, want, strict=True):
    for one, ids in zip(row, expected, strict=True):
      ids = bare(ids, -1)
      ended = len(one.log_probabilities) > len(one.ids)
      assert one.ids + [end] * ended == ids
  if f'{name}_scores' in theirs:
    scores = [[one.score for one in row] for row in made]
    np.testing.assert_allclose(
      scores, theirs[f'{name}_scores'].reshape(200, -1), rtol=2e-5
    )


def test_log_probabilities_are_those_of_transformers(twin, theirs):
  made = twin.complete(
    [bare(row, 0) for row in theirs['input_ids'][:20]],
    config=Config(max_tokens=20),
  )
  for (one,), want in zip(made, theirs['greedy_logprobs'], strict=True):
    n = len(one.log_probabilities)
    np.testing.assert_allclose(one.log_probabilities, want[:n], atol=2e-5)
    assert (want[n:] == 0).all()
    assert one.score == pytest.approx(want.sum(), abs=1e-4)


# --- Public models

# The others are slow: each is a program of its own.
FEW = (
  ('public/nllb', 'beam_3'),
  ('public/mbart50', 'greedy_2'),
  ('public/pegasus', 'beam_never'),
)


@pytest.fixture(scope='module')
def public():
  with np.load(os.path.join(HERE, 'public_generate.npz')) as f:
    return dict(f)


@pytest.fixture(scope='module')
def load_public(tmp_path_factory):
  """Loads a tiny model on one device, without its tokenizer."""
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])

  @functools.cache
  def load(name: str):
    folder = tmp_path_factory.mktemp('public')
    for file in ('config.json', 'model.safetensors'):
      os.symlink(os.path.join(HERE, name, file), folder / file)
    return atm.load(str(folder), mesh=mesh)

  return load


def check_public(model, theirs, folder: str, setting: str) -> None:
  """Asserts that ids, and scores of beams, are those of transformers."""
  kind, c = PUBLIC['models'][folder], model.config
  name = os.path.basename(folder)
  said = {'max_new_tokens': PUBLIC['new_tokens'], **PUBLIC['settings'][setting]}
  if said.pop('forced_eos', False):
    said['forced_eos_token_id'] = c.end_id
  options, left = generation_defaults.convert_defaults(said, '', c)
  assert not left
  config = Config(**options)
  languages = theirs[f'{name}.languages'].tolist()
  starts = {'forced': [c.start_id], 'start': [], None: [c.start_id]}[kind]
  prefixes = [starts + [x] * (kind is not None) for x in languages]
  rows = [bare(row, -1) for row in theirs[f'{name}.inputs']]
  batch, T, room = bucketing.pad_batch(
    c, model.mesh, rows, prefixes, range(len(rows)), config.max_tokens, 128,
    [int(kind == 'forced')] * len(rows),
  )  # fmt: skip
  sampler = sampling.Sampler.from_config(config)
  run, given, named = bucketing.select_program(
    AlexaTM(c), model._decode_params, sampler.replace(max_tokens=room), batch,
    config, T,
  )  # fmt: skip
  made = collect(run(*given, **named), prefixes, None, ())
  want = theirs[f'{name}.{setting}']
  for (one,), language, expected in zip(made, languages, want, strict=True):
    ended = len(one.log_probabilities) > len(one.ids)
    ids = [language] * (kind == 'forced') + one.ids + [c.end_id] * ended
    assert ids == bare(expected, -1)
  if config.beams > 1:
    scores = [one.score for (one,) in made]
    np.testing.assert_allclose(
      scores, theirs[f'{name}.{setting}.scores'], rtol=1e-4
    )


@pytest.mark.parametrize(
  'folder, setting',
  [
    pytest.param(*x, marks=[pytest.mark.slow] * (x not in FEW))
    for x in itertools.product(PUBLIC['models'], PUBLIC['settings'])
  ],
)
def test_public_models_write_what_they_do_in_transformers(
  load_public, public, folder, setting
):
  """100 prompts in each setting, in one batch, of two languages.

  A forced language counts in lengths, in their penalty and in n-grams; a start
  token counts in n-grams alone.
  """
  check_public(load_public(folder), public, folder, setting)


# --- Without a cache, and row by row


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


def greedy(net, params, tokens, segments, max_tokens):
  """(ids [B, T], lengths [B])."""
  B, c = len(tokens), net.config
  choice = sampling.Sampler.from_config(sampling.Config(max_tokens=max_tokens))
  made = generate_lib.generate(
    net, params, choice, tokens, segments, np.full((B, 1), c.start_id),
    np.ones(B, np.int32), np.arange(B), 0, T=max_tokens,
  )  # fmt: skip
  return made[0][:, 0], made[2][:, 0]


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
  made, length = greedy(module, params, tokens, segments, 10)
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
  made, length = greedy(module, params, tokens, np.ones_like(tokens), 40)
  assert 0 < length.min() + 1 <= length.max() and length.min() < 40
  expected = slow_greedy(module, params, tokens, np.ones_like(tokens), 40)
  for i in range(8):
    assert list(made[i, : length[i]]) == expected[i]


@pytest.mark.parametrize('n', [0, 2])
def test_a_row_can_join_a_running_batch(model, n):
  """What `insert` puts in another's place is written as if alone.

  So is what depends on a row's own n-grams, and on its encoder's.
  """
  c = model.config
  net, params = AlexaTM(c), model.params
  choice = sampling.Sampler.from_config(
    sampling.Config(
      max_tokens=16, no_repeat_ngram_size=n, encoder_no_repeat_ngram_size=n
    )
  )

  def begun(*texts):
    tokens, segments = np.zeros((2, len(texts), 16), np.int32)
    for i, text in enumerate(texts):
      ids = model.encode(text)
      tokens[i, : len(ids)], segments[i, : len(ids)] = ids, 1
    R = len(texts)
    return generate_lib.start_decoding(
      net, params, choice, tokens, segments, np.full((R, 1), c.start_id),
      np.ones(R, np.int32), np.arange(R), 0, T=16,
    )  # fmt: skip

  def ended(rows):
    while not rows.done.all():
      rows = generate_lib.decode_step(net, params, choice, rows)
    return [row[:n].tolist() for row, n in zip(rows.ids, rows.length)]

  texts = 'Everyone has', 'Jeder', 'All human beings'
  alone = [ended(begun(text))[0] for text in texts]
  rows = begun(*texts[:2])
  for _ in range(5):
    rows = generate_lib.decode_step(net, params, choice, rows)
  first = rows.ids[0, : rows.length[0]].tolist()
  assert alone[0][: len(first)] == first
  rows = generate_lib.insert_row(rows, begun(texts[2]), 0)
  assert ended(rows) == [alone[2], alone[1]]


def test_batch_composition_changes_nothing(model, rng):
  prompts = [list(map(int, rng.integers(7, 2048, n))) for n in range(2, 20)]
  together = model.generate(prompts, max_tokens=12, batch_size=5)
  alone = [model.generate([p], max_tokens=12)[0] for p in prompts]
  assert together == alone
  for prompt, row in zip(prompts[::6], together[::6], strict=True):
    bare = np.array([prompt], np.int32)  # no padding at all
    made, n = greedy(
      AlexaTM(model.config), model.params, bare, np.ones_like(bare), 12
    )
    assert row == made[0, : n[0]].tolist()
  assert all(len(row) <= 12 for row in together)
