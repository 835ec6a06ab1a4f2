"""Generation: through a cache, in batches, from Python and from files."""

import dataclasses

import pytest

import atm
from atm.inference import sampling, stop_strings
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding

from small_models import PUBLIC, untrained


def test_any_mesh_generates_alike(model, words):
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  prompts = ['Everyone has', 'Jeder', 'सभी', 'よって']
  other = dataclasses.replace(model, mesh=mesh)
  assert other.generate(prompts) == model.generate(prompts)


@pytest.mark.slow
@pytest.mark.parametrize('public', PUBLIC)
def test_public_models_generate_alike_on_any_mesh(words, public):
  model = untrained(words, **PUBLIC[public])
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  other = dataclasses.replace(model, mesh=mesh)
  prompts = [[7, 8, 9], [10], [11, 12], [13, 14, 15, 16]]
  for beams in (1, 3):
    config = sampling.Config(max_tokens=8, beams=beams)
    ids = lambda made: [one.ids for (one, *_) in made]
    got = other.complete(prompts, config=config)
    assert ids(got) == ids(model.complete(prompts, config=config))


def test_load_says_what_is_missing(tmp_path):
  with pytest.raises(FileNotFoundError, match='no checkpoints/ in MODEL_DIR'):
    atm.load(str(tmp_path))
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(FileNotFoundError, match='steps there: none'):
    atm.load(str(tmp_path))


def test_long_inputs_are_cut_where_asked(model):
  """`complete` counts what was cut; `stream` and `generate` read the same."""
  config = sampling.Config(max_tokens=6)
  texts = ['Everyone has', 'All human beings are born free. ' * 20]
  with pytest.raises(ValueError, match="input 1 has .* truncate='start'"):
    model.complete(texts, config=config)
  for side in ('start', 'end'):
    made = model.complete(texts, config=config, truncate=side)
    count = len(model.encode(texts[1])) - model.config.positions
    assert [one.truncated for (one,) in made] == [0, count]
    generated = model.generate(texts, max_tokens=6, truncate=side)
    assert generated == [one.text for (one,) in made]
    pieces = model.stream(texts[1], config=config, truncate=side)
    assert ''.join(pieces) == made[1][0].text


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


def test_stops_in_a_prefix_end_no_output(model):
  """Only what is generated is looked at.

  Faults seen: the text cut inside the prefix; a stop that begins in the prefix
  found; what was generated up to a stop lost.
  """
  config, words = sampling.Config(max_tokens=24), model.vocabulary
  texts = ['Everyone has', 'Jeder', 'All human beings']
  prefixes = ['Every; one', 'Jeder;', '']
  free = model.complete(texts, config=config, prefixes=prefixes)
  given = [words.decode(words.encode(prefix)) for prefix in prefixes]
  tails = [row[0].text[len(x) :] for x, row in zip(given, free, strict=True)]
  later = next(c for c in tails[0] if c != tails[0][0])
  stops = [';', 'one' + tails[0][0], later]
  made = model.complete(texts, config=config, prefixes=prefixes, stop=stops)
  for prefix, tail, (one,) in zip(given, tails, made, strict=True):
    assert one.text == prefix + stop_strings.cut_at_stop(tail, stops)
  assert made[0][0].text not in (given[0], free[0][0].text)
  assert len(made[0][0].ids) < 24
  # A stop at the first token leaves the prefix, which is no error.
  made = model.complete(
    texts, config=config, prefixes=prefixes, stop=[tails[0][0]]
  )
  assert made[0][0].text == given[0] and len(made[0][0].ids) == 1


# --- A model's own settings


@pytest.fixture
def own(model):
  """The model with settings of its own."""
  return dataclasses.replace(
    model,
    generation_defaults=dict(beams=3, max_tokens=9, banned=[[5]]),
    generation_path='nllb/generation_config.json',
  )


def test_a_model_s_own_settings_count_and_are_told_once(own, model, caplog):
  texts = ['Everyone has', 'Jeder']
  made = own.generate(texts)
  assert made == model.generate(texts, beams=3, max_tokens=9, banned=[[5]])
  assert own.generate(texts) == made
  assert caplog.messages == [
    'settings of nllb/generation_config.json: beams 3, max_tokens 9, banned 1'
  ]
  with_one = own.generate(texts, beams=1, banned=[[6]])
  assert with_one == model.generate(texts, max_tokens=9, banned=[[6]])
  config = sampling.Config(temperature=0.7, max_tokens=4)
  asked = own.complete(texts, config=config, banned=[[6]])
  assert asked == model.complete(texts, config=config, banned=[[6]])


def test_a_stream_is_greedy_where_a_model_has_beams(own, model):
  want = model.generate(['Jeder'], max_tokens=9, banned=[[5]])
  assert ''.join(own.stream('Jeder')) == want[0]
  with pytest.raises(ValueError, match='beams = 2, results = 1: expected 1'):
    own.stream('Jeder', config=sampling.Config(beams=2))


def test_n_grams_are_not_repeated_in_streams(model):
  """And the stream writes what `generate` does."""
  texts = ['Everyone has', 'Jeder', 'All']
  config = sampling.Config(max_tokens=24, no_repeat_ngram_size=2)
  made = model.complete(texts, config=config)
  for text, (one,) in zip(texts, made, strict=True):
    pairs = [*zip(one.ids, one.ids[1:])]
    assert len({*pairs}) == len(pairs)
    assert ''.join(model.stream(text, config=config)) == one.text
