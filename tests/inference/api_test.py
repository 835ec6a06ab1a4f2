"""Generation: through a cache, in batches, from Python and from files."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import atm
from atm.inference import api, batch, prompts, sampling, stop_strings
from atm.inference import generate as generate_lib
from atm.model.config import Config
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding
from atm.parallel.sharding import Rules

from conftest import tiny
from transformer_test import init


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


@pytest.fixture(scope='module')
def model(words):
  """An untrained model over the shipped vocabulary, on one device."""
  config = Config(
    vocab_size=2048, d_model=32, encoder_layers=1, decoder_layers=1,
    encoder_heads=4, decoder_heads=4, encoder_ff=64, decoder_ff=64,
    positions=64, dtype='float32', init_std=0.3,
  )  # fmt: skip
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  return api.Model(config, init(config), words, mesh, Rules(), 7)


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


def test_padding_on_either_side_changes_nothing(model, rng):
  """Fault seen: only behind the ids."""
  pad = [model.config.pad_id]
  row = list(map(int, rng.integers(7, 2048, 9)))
  padded = [row, pad * 3 + row, row + pad * 4, pad + row + pad]
  alone = model.generate([row], max_tokens=12)
  assert model.generate(padded, max_tokens=12) == alone * 4
  total, _ = model.score(padded, [row] * 4)
  np.testing.assert_allclose(total, total[0], rtol=1e-6)


def test_what_is_given_is_not_scored(model, rng):
  """p(a b) = p(a) p(b | a), and all of it is greedy where both are."""
  source, target = rng.integers(7, 2048, (2, 6, 9)).tolist()
  whole, _ = model.score(source, target)
  halves = [row[:4] for row in target], target
  (first, n, _), (rest, m, _) = (
    model.likelihoods(source, rows, given, batch_size=4)
    for rows, given in zip(halves, ([0] * 6, [4] * 6), strict=True)
  )
  np.testing.assert_allclose(first + rest, whole, rtol=1e-5)
  assert n.tolist() == [4] * 6 and m.tolist() == [5] * 6
  made = model.generate(source, max_tokens=6)
  *_, greedy = model.likelihoods(source, made)
  assert greedy.all() and len(made[2]) == 6
  made[2][4] = 7 if made[2][4] != 7 else 8
  given = [0, 0, 3, 0, 0, 0]
  *_, greedy = model.likelihoods(source, made, given)
  assert greedy.tolist() == [i != 2 for i in range(6)]


def test_modes_put_the_marker(model):
  v = model.vocabulary
  text = 'born free'
  assert model.encode(text, 'denoise') == [v.bos_id, *v.encode(text), v.eos_id]
  assert model.encode(text, 'clm')[:2] == [v.bos_id, v.clm_id]
  for mode in prompts.MODES:
    by_ids = model.generate([model.encode(text, mode)])[0]
    assert model.generate([text], mode=mode) == [v.decode(by_ids)]


def test_any_mesh_generates_alike(model, words):
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  prompts = ['Everyone has', 'Jeder', 'सभी', 'よって']
  other = dataclasses.replace(model, mesh=mesh)
  assert other.generate(prompts) == model.generate(prompts)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(inputs=['a'], mode='cml'), "Did you mean 'clm'"),
    (
      dict(inputs=['a'], max_tokens=0),
      'max_tokens = 0: expected a whole',
    ),
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
  assert [r['input'] for r in batch.read_inputs(str(text))] == [
    'one', '', 'three'
  ]  # fmt: skip
  objects.write_text('{"input": "x", "id": 3}\n\n{"text": "y"}\n')
  assert batch.read_inputs(str(objects)) == [
    {'input': 'x', 'id': 3}, {'text': 'y', 'input': 'y'}
  ]  # fmt: skip
  objects.write_text('{"input": "x"}\n{"input": 3}\n')
  with pytest.raises(ValueError, match='a.jsonl, line 2: expected UTF-8 JSON'):
    batch.read_inputs(str(objects))
  with pytest.raises(FileNotFoundError, match="INPUT = 'none'"):
    batch.read_inputs('none')


def test_load_says_what_is_missing(tmp_path):
  with pytest.raises(FileNotFoundError, match='no checkpoints/ in MODEL_DIR'):
    atm.load(str(tmp_path))
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(FileNotFoundError, match='steps there: none'):
    atm.load(str(tmp_path))


def test_from_checkpoint_to_jsonl(model, words, tmp_path):
  """What a trainer saved, `atm.load` and `infer` read, with 8 devices too."""
  from atm.checkpoint import manager
  from atm.train.run_folder import RunFolder
  from atm.train.step import State

  directory = str(tmp_path / 'run')
  checkpoints = manager.CheckpointManager(directory)
  meta = {
    'model': dataclasses.asdict(model.config),
    'vocabulary': words.sha256,
    'config': '',
  }
  state = State(jnp.zeros((), jnp.int32), model.params, {'x': jnp.zeros(1)})
  checkpoints.save(7, state.to_trees(), meta)
  checkpoints.close()
  RunFolder(directory).save_setup('', words)
  (tmp_path / 'in.jsonl').write_text('{"input": "Everyone", "id": 1}\n' * 3)
  out = batch.InferJob(
    directory, str(tmp_path / 'in.jsonl'), say=lambda t: None
  ).run()
  with open(out, encoding='utf-8') as f:
    rows = [json.loads(line) for line in f]
  assert len(rows) == 3 and rows[0]['id'] == 1
  assert rows[0]['output'] == model.generate(['Everyone'])[0]
  loaded = atm.load(directory, at_step=7)
  assert loaded.step == 7 and loaded.mesh.size == 8
  with pytest.raises(FileNotFoundError, match='of step 3.*steps there: .7'):
    atm.load(directory, at_step=3)


# --- All that can be asked of a generation


def test_stop_strings_end_an_output(model):
  """As soon as the text has one; the text is what stands before it."""
  texts = ['Everyone has', 'Jeder', 'सभी', 'よって', 'All human beings']
  free = model.complete(texts, config=sampling.Config(max_tokens=24))
  whole = [row[0].text for row in free]
  stops = sorted(
    {text[len(text) // 2 :][:3] for text in whole if len(text) > 9}
  )
  made = model.complete(
    texts, config=sampling.Config(max_tokens=24), stop=stops
  )
  shorter = 0
  for text, (one,), (before,) in zip(whole, made, free, strict=True):
    assert one.text == stop_strings.cut_at_stop(text, stops)
    assert before.ids[: len(one.ids)] == one.ids
    if one.text != text:
      shorter += 1
      assert any(s in model.vocabulary.decode(one.ids) for s in stops)
      assert not any(s in model.vocabulary.decode(one.ids[:-1]) for s in stops)
  assert shorter >= 3


@pytest.mark.parametrize('stop', [[], ['a'], ['e ', 'ing']])
@pytest.mark.parametrize('temperature', [0.0, 1.5])
def test_a_stream_is_what_complete_gives(model, temperature, stop):
  """Fault seen: the beginning of a stop string shown."""
  config = sampling.Config(max_tokens=24, temperature=temperature, seed=3)
  for number, text in enumerate(['Everyone has', 'सभी']):
    pieces = list(model.stream(text, config=config, stop=stop, number=number))
    ((one,),) = model.complete(
      [text], config=config, stop=stop, numbers=[number]
    )
    assert ''.join(pieces) == one.text
    assert len(pieces) > 2 or stop


def test_a_stream_that_waits_leaves_no_mesh_in_use(model):
  """So streams of two meshes can take turns.

  Fault seen: the mesh in use while a stream is suspended.
  """
  config = sampling.Config(max_tokens=24)
  stream = model.stream('Everyone has', config=config)
  next(stream)
  assert sharding.current_rules() is None
  stream.close()


def test_banned_texts_are_not_written(model):
  """Behind a space and without one.

  Fault seen: only as behind a space.
  """
  texts, config = (
    ['Everyone has', 'Jeder', 'All'],
    sampling.Config(max_tokens=16),
  )
  words, spelling = model.vocabulary, model.vocabulary.spelling()
  free = [row[0].ids for row in model.complete(texts, config=config)]
  inside = sorted(
    {i for ids in free for i in ids if words.inside(spelling[i]) == [i]}
  )
  assert len(inside) > 3
  banned = [spelling[i] for i in inside]
  made = model.complete(texts, config=config, banned=banned)
  spaced = {tuple(words.encode(text)) for text in banned}
  for (one,), before in zip(made, free, strict=True):
    assert one.ids != before and not set(inside) & set(one.ids)
    assert not spaced & {(i,) for i in one.ids}


def test_a_prefix_begins_an_output(model):
  (one,) = model.complete(
    ['Everyone has'], prefixes=['Every'], config=sampling.Config(max_tokens=8)
  )[0]
  assert one.text.startswith('Every') and len(one.ids) <= 8
  with pytest.raises(ValueError, match='2 inputs, but 1 prefixes'):
    model.complete(['a', 'b'], prefixes=['a'])
  with pytest.raises(ValueError, match='a prefix of 64 tokens: expected at'):
    model.complete([[3]], prefixes=[[3] * 64])


def test_samples_do_not_depend_on_the_batch(model):
  """An input's tokens are of its number and the seed.

  Faults seen: keys by place in the batch; one key for all results.
  """
  config = sampling.Config(max_tokens=8, temperature=1.2, results=3, top_p=0.9)
  texts = ['Everyone has', 'Jeder', 'a', 'All human beings', 'b', 'c']
  ids = lambda made: [[one.ids for one in row] for row in made]
  together = ids(model.complete(texts, config=config, batch_size=4))
  for number in (0, 3, 5):
    alone = model.complete([texts[number]], config=config, numbers=[number])
    assert ids(alone) == [together[number]]
  assert len({tuple(one) for row in together for one in row}) > 12
  other = dataclasses.replace(config, seed=1)
  assert ids(model.complete(texts, config=other, batch_size=4)) != together


def test_beams_on_any_mesh(model):
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  texts = ['Everyone has', 'Jeder', 'सभी', 'よって']
  config = sampling.Config(max_tokens=8, beams=3, results=2)
  other = dataclasses.replace(model, mesh=mesh)
  for got, want in zip(
    other.complete(texts, config=config), model.complete(texts, config=config)
  ):
    assert [x.ids for x in got] == [x.ids for x in want]


def test_no_other_program_within_a_bucket(model):
  """Of lengths, and whatever the numbers of a Config are."""
  words = 'Everyone has the right to life and liberty of person'.split()
  run = lambda n, **options: model.generate(
    [' '.join(words[:n])], mode='clm', **options
  )
  run(3, max_tokens=16, temperature=0.5, top_k=4)
  before = generate_lib.generate._cache_size()
  run(4, max_tokens=15, temperature=0.7, top_k=9, min_tokens=3)
  run(2, max_tokens=9, temperature=0.9, top_p=0.5, seed=4)
  assert generate_lib.generate._cache_size() == before
  run(3, max_tokens=17, temperature=0.5, top_k=4)  # another bucket
  assert generate_lib.generate._cache_size() == before + 1


def test_a_row_can_join_a_running_batch(model):
  """What `insert` puts in another's place is written as if alone."""
  c = model.config
  net, params = AlexaTM(c), model.params
  choice = sampling.Sampler.from_config(sampling.Config(max_tokens=16))

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


def test_few_shot_helpers_write_the_paper_s_prompts(model, monkeypatch):
  seen = []

  def generate(texts, mode, **options):
    seen.append((texts, mode, options))
    return [' eins ; zwei'] * len(texts)

  monkeypatch.setattr(model, 'generate', generate)
  made = model.translate(['one'], 'de', [('two', 'zwei')], max_tokens=9)
  assert made == ['eins']
  ((texts, mode, options),) = seen
  assert texts == [
    'Sentence: two; Translation in German: zwei; '
    'Sentence: one; Translation in German:'
  ]
  assert mode == 'clm' and options == {'stop': [';'], 'max_tokens': 9}
  model.summarize(['A text.'], [('Another.', 'That.')])
  assert seen[1][0] == [
    'Article: Another. ==> Short summary: That. <br><br><br> '
    'Article: A text. ==> Short summary:'
  ]


def test_options_are_checked(model):
  with pytest.raises(ValueError, match="Did you mean 'beams'"):
    model.generate(['a'], beam=4)
  for wrong, said in (
    (dict(beams=2, temperature=1.0), 'expected beam search'),
    (dict(results=2), 'expected at most beams = 1'),
    (dict(top_p=0.0), 'top_p = 0.0: expected above 0'),
    (dict(early_stopping='nver'), "Did you mean 'never'"),
    (dict(stop='a'), 'expected a list of strings'),
    (dict(stop=['']), 'expected no empty string'),
  ):
    with pytest.raises(ValueError, match=said):
      model.generate(['a'], **wrong)
