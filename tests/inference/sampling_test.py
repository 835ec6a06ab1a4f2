"""How tokens are chosen, against transformers' processors."""

import dataclasses
import os
import pickle
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.inference import sampling
from atm.inference.sampling import Config, Sampler

from goldens import HERE


def test_options_are_checked(model):
  with pytest.raises(ValueError, match="Did you mean 'beams'"):
    model.generate(['a'], beam=4)
  for wrong, said in (
    (dict(beams=2, temperature=1.0), 'expected beam search'),
    (dict(results=2), 'expected at most beams = 1'),
    (dict(top_p=0.0), 'top_p = 0.0: expected a number above 0'),
    (dict(early_stopping='nver'), "Did you mean 'never'"),
    (dict(stop='a'), 'expected a tuple of texts'),
    (dict(stop=['']), 'a text that is not empty'),
  ):
    with pytest.raises(ValueError, match=said):
      model.generate(['a'], **wrong)


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


@pytest.fixture(scope='module')
def processors():
  with np.load(os.path.join(HERE, 'processors.npz')) as f:
    return dict(f)


PROCESSORS = {
  'repetition_penalty': dict(repetition_penalty=1.3),
  'temperature': dict(temperature=0.7),
  'top_k': dict(temperature=1.0, top_k=5),
  'top_p': dict(temperature=1.0, top_p=0.8),
  'min_p': dict(temperature=1.0, min_p=0.1),
}
PROCESSORS['all'] = dict(
  pair for one in (*PROCESSORS.values(), dict(temperature=0.7))
  for pair in one.items()
)  # fmt: skip


def as_sampled(config, logits, previous):
  """Logits as `sampling.choose_tokens` samples from them."""
  V = logits.shape[1]
  choice = Sampler.from_config(config)
  written = jnp.zeros(logits.shape, bool)
  written = written.at[jnp.arange(len(logits))[:, None], previous].set(True)
  none = jnp.zeros(len(logits), jnp.int32)
  past = sampling.History(
    none, jnp.zeros((len(logits), 0), jnp.int32), written, None
  )
  return sampling.adjust_logits(choice, past, jnp.asarray(logits), V - 1)


@pytest.mark.parametrize('name', PROCESSORS)
def test_logits_are_processed_as_by_transformers(processors, name):
  """Each alone, and in its order.

  Faults seen: top_p of all logits where top_k has left some out; no
  temperature.
  """
  got = as_sampled(
    Config(**PROCESSORS[name]), processors['logits'], processors['previous_ids']
  )
  np.testing.assert_array_equal(np.isneginf(got), np.isneginf(processors[name]))
  kept = np.isfinite(processors[name])
  np.testing.assert_allclose(
    np.asarray(got)[kept], processors[name][kept], rtol=1e-6
  )


def test_ties_at_the_limit_are_all_kept(processors):
  logits = processors['ties_logits']
  got = as_sampled(
    Config(temperature=1.0, top_k=5), logits, np.zeros((4, 1), int)
  )
  want = np.isneginf(processors['ties_top_k'])
  np.testing.assert_array_equal(np.isneginf(got), want)


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(max_tokens=0), 'max_tokens = 0: expected a whole number'),
    (dict(top_k=True), 'top_k = True: expected a whole number'),
    (dict(temperature=-1.0), 'temperature = -1.0: expected a number'),
    (dict(min_p=1.5), 'min_p = 1.5: expected a number from 0 to 1'),
    (
      dict(top_p=1.5),
      'top_p = 1.5: expected a number above 0 and of at most 1',
    ),
    (
      dict(repetition_penalty=0),
      'repetition_penalty = 0: expected a number above 0',
    ),
  ],
)
def test_a_setting_out_of_range_is_named(changes, message):
  with pytest.raises(ValueError, match=message):
    Config(**changes)


def test_banned_sequences_end_where_the_table_ends():
  """Padded in front, to a power of two of rows and of length.

  Fault seen: padded behind.
  """
  sampler = Sampler.from_config(Config(), [[5], [6, 7, 8], [9]])
  assert sampler.banned.tolist() == [
    [-1, -1, -1, 5], [-1, 6, 7, 8], [-1, -1, -1, 9], [-1] * 4
  ]  # fmt: skip
  assert Sampler.from_config(Config()).banned.shape == (0, 1)


def test_a_prefix_with_text_is_no_beginning_of_a_text():
  """Faults seen: a stop string in the prefix counts; special ids as text."""
  stops = np.array([[0, 0, 1, 3], [1, 1, 1, 3], [1, 1, 1, 3], [3, 3, 3, 3]])
  sampler = Sampler.from_config(Config(), (), stops)
  prefix = jnp.array([[0, 0, 0], [0, 1, 0], [0, 2, 0], [0, 3, 2], [0, 0, 3]])
  lengths = jnp.array([1, 2, 2, 3, 3])
  history = sampling.initial_history(None, sampler, prefix, lengths)
  assert history.state.tolist() == [0, 0, 1, 1, 1]
  none = Sampler.from_config(Config())
  assert sampling.initial_history(None, none, prefix, lengths).state is None


def test_a_row_stops_at_a_stop_string_or_without_room():
  """Fault seen: one token too many."""
  stops = np.zeros((4, 8), np.int32)
  sampler = Sampler.from_config(Config(max_tokens=3), (), stops)
  history = sampling.History(
    jnp.array([2, 3, 1]), jnp.zeros((3, 0)), None, jnp.array([0, 1, 3])
  )
  stopped = sampling.has_stopped(sampler, history)
  assert stopped.tolist() == [False, True, True]


@pytest.mark.parametrize(
  'name, allowed, refused',
  [
    ('max_tokens', [1, 2**31 - 1], [0, 2**31, 1.5]),
    ('min_tokens', [0, 2**31 - 1], [-1, 2**31, 0.5]),
    ('beams', [1, 2**31 - 1], [0, 2**31]),
    ('length_penalty', [-1.5, 0, 2.0], [float('nan'), float('inf')]),
    ('temperature', [0, 0.5, 9.0], [-0.1]),
    ('top_k', [0, 2**31 - 1], [-1, 2**31]),
    ('top_p', [0.1, 1], [0, 1.1]),
    ('min_p', [0, 1], [-0.1, 1.1]),
    ('repetition_penalty', [0.1, 9.5], [0, -1]),
    ('seed', [0, 2**31], [-1, 0.5]),
    ('early_stopping', [True, False, 'never'], [2, 'always']),
    ('no_repeat_ngram_size', [0, 2**31 - 1], [-1, 2**31, 0.5]),
    ('encoder_no_repeat_ngram_size', [0, 3], [-1, True]),
    ('forced_eos', [True, False], [1, 'x']),
    ('prompt_lookup_num_tokens', [0, 255], [-1, 256, 0.5]),
  ],
)
def test_the_bounds_of_settings(name, allowed, refused):
  for value in allowed:
    assert getattr(Config(**{name: value}), name) == value
  for value in refused:
    with pytest.raises(ValueError, match=f'{name} = '):
      Config(**{name: value})


def test_a_model_s_own_settings_count_where_none_were_given():
  """None is as if not given; a default that was given is a setting."""
  own = dict(beams=5, max_tokens=199, length_penalty=0.6)
  assert Config().with_defaults(own) == Config(**own)
  none = Config(beams=None, temperature=None, early_stopping=None)
  assert none == Config() and none.given == set()
  assert none.with_defaults(own) == Config(**own)
  assert Config(beams=1, max_tokens=64).with_defaults(own) == Config(
    length_penalty=0.6
  )
  # Who samples wants no beams, and who wants beams does not sample.
  sampled = Config(temperature=0.5).with_defaults(own)
  assert (sampled.beams, sampled.max_tokens) == (1, 199)
  searched = Config(beams=2).with_defaults(dict(temperature=1.0, top_k=50))
  assert (searched.temperature, searched.top_k) == (0, 50)
  # Nor are there drafts for beams.
  assert (
    not Config(beams=2)
    .with_defaults(dict(prompt_lookup_num_tokens=9))
    .prompt_lookup_num_tokens
  )
  with pytest.raises(ValueError, match='prompt_lookup_num_tokens = 9'):
    Config(prompt_lookup_num_tokens=9).with_defaults(own)
  twice = sampled.with_defaults(own)
  assert twice == sampled and twice.given == sampled.given
  assert Config(8, 2).list_given() == {'max_tokens': 8, 'min_tokens': 2}
  assert pickle.loads(pickle.dumps(searched)).given == searched.given


def test_text_of_settings_is_that_of_earlier_versions():
  """It is hashed in .part files."""
  assert str(Config()) == (
    'Config(max_tokens=64, min_tokens=0, beams=1, results=1, '
    'length_penalty=1.0, early_stopping=False, temperature=0.0, top_k=0, '
    'top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=0)'
  )
  # Drafts change no output.
  assert str(Config(prompt_lookup_num_tokens=15)) == str(Config())
  later = Config(no_repeat_ngram_size=3, forced_eos=True)
  assert str(later) == str(Config())[:-1] + (
    ', no_repeat_ngram_size=3, forced_eos=True)'
  )


def test_as_many_results_as_there_can_be():
  assert Config(beams=3, results=3).results == 3
  assert Config(temperature=0.5, results=9).results == 9
  for settings in (dict(beams=3, results=4), dict(results=2)):
    with pytest.raises(ValueError, match='expected at most beams'):
      Config(**settings)


@pytest.mark.parametrize(
  'settings, sampled, cut, repeats',
  [
    ({}, False, False, False),
    (dict(temperature=0.1), True, False, False),
    (dict(top_k=1), False, True, False),
    (dict(top_p=0.9), False, True, False),
    (dict(min_p=0.1), False, True, False),
    (dict(repetition_penalty=1.1), False, False, True),
    (dict(repetition_penalty=0.9), False, False, True),
  ],
)
def test_only_what_is_asked_for_is_compiled(settings, sampled, cut, repeats):
  sampler = Sampler.from_config(Config(**settings))
  assert (sampler.sampled, sampler.cut, sampler.repeats) == (
    sampled, cut, repeats
  )  # fmt: skip
  assert sampler.max_tokens == 64 and sampler.max_tokens.dtype == np.int32
  assert sampler.top_p.dtype == np.float32 and sampler.stops is None


def test_tables_of_sequences_have_sizes_of_powers_of_two():
  for count, size in ((1, 1), (2, 2), (3, 4), (4, 4), (5, 8)):
    rows = [[7] * (n + 1) for n in range(count)]
    assert Sampler.from_config(Config(), rows).banned.shape == (size, size)


def history_of(prefix, lengths, written=(), repeats=1.0, banned=(), stops=None):
  """The history of rows that have a prefix and have written some tokens."""
  config = Config(repetition_penalty=repeats, min_tokens=2, max_tokens=3)
  sampler = Sampler.from_config(config, banned, stops)
  model = types.SimpleNamespace(config=types.SimpleNamespace(vocab_size=8))
  past = sampling.initial_history(
    model, sampler, jnp.array(prefix), jnp.array(lengths)
  )
  for token in written:
    past = sampling.append_token(sampler, past, jnp.array(token))
  return sampler, past


def test_a_history_looks_back_on_prefix_and_tokens():
  """Faults seen: padding of a prefix taken for written; tails of padding."""
  prefix, lengths = [[1, 2, 3], [4, 0, 0]], [3, 1]
  stops = np.array([[0, 1, 0, 0, 0, 0, 0, 0], [0, 1, 2, 0, 0, 0, 0, 0],
                    [0] * 8, [3] * 8], np.int32)  # fmt: skip
  ban = [[1, 2, 3, 4]]
  _, past = history_of(prefix, lengths, repeats=2.0, banned=ban, stops=stops)
  assert past.tail.tolist() == [[1, 2, 3], [-1, -1, 4]]
  assert np.argwhere(past.written).tolist() == [[0, 1], [0, 2], [0, 3], [1, 4]]
  assert past.count.tolist() == [0, 0] and past.state.tolist() == [1, 0]
  _, past = history_of(
    prefix, lengths, [[1, 5], [2, 6]], repeats=2.0, banned=ban, stops=stops
  )
  assert past.tail.tolist() == [[3, 1, 2], [4, 5, 6]]
  assert past.count.tolist() == [2, 2] and past.state.tolist() == [2, 0]
  assert np.argwhere(past.written[1])[:, 0].tolist() == [4, 5, 6]
  _, past = history_of(prefix, lengths, [[1, 5]])
  assert past.written is None and past.state is None
  assert past.tail.shape == (2, 0)


def test_sequences_are_banned_where_they_would_end():
  """And an end before min_tokens; penalties by the sign of a logit."""
  logits = jnp.array([[1.0, -1, 2, -2, 3, -3, 4, 0.5]] * 2)
  banned = [[4], [2, 3], [9, 3, 5]]
  sampler, past = history_of([[9, 2], [3, 0]], [2, 1], banned=banned)
  out = np.asarray(sampling.process_logits(sampler, past, logits, 7))
  assert np.argwhere(np.isneginf(out)).tolist() == [
    [0, 3], [0, 4], [0, 7], [1, 4], [1, 7]
  ]  # fmt: skip
  sampler, past = history_of(
    [[9, 2], [3, 0]], [2, 1], [[3, 1], [0, 1]], 2.0, banned
  )
  out = np.asarray(sampling.process_logits(sampler, past, logits, 7))
  assert np.argwhere(np.isneginf(out)).tolist() == [[0, 4], [1, 4]]
  rest = [0.5, -1, 1, -4, 0, -3, 4, 0.5], [1, -2, 2, -4, 0, -3, 4, 0.5]
  np.testing.assert_array_equal(np.delete(out, 4, 1), np.delete(rest, 4, 1))


def test_the_first_id_is_an_id_like_others():
  """Faults seen: 0 in a sequence taken for any token, or never banned."""
  logits, banned = jnp.zeros((2, 8)), [[0, 6], [5, 5], [0]]
  sampler, past = history_of([[1, 5], [1, 0]], [2, 2], banned=banned)
  out = np.asarray(sampling.process_logits(sampler, past, logits, 7))
  assert np.argwhere(np.isneginf(out)).tolist() == [
    [0, 0], [0, 5], [0, 7], [1, 0], [1, 6], [1, 7]
  ]  # fmt: skip


def repeats(ids: list[int], read: list[int], n: int) -> set[int]:
  """Returns the ids that would end an n-gram of `read` again behind `ids`."""
  begun = ids[len(ids) + 1 - n :] if len(ids) >= n - 1 else None
  return {
    read[i + n - 1]
    for i in range(len(read) - n + 1)
    if read[i : i + n - 1] == begun
  }


@pytest.mark.parametrize('n', [1, 2, 3, 5])
def test_n_grams_are_not_repeated(n):
  """Of the prefix, of what was written, and of what the encoder read.

  Beside a banned sequence, which looks back less far.
  """
  rng = np.random.default_rng(n)
  R, V = 6, 5
  sizes = np.array([1, 2, 3, 4, 4, 2])
  prefix = rng.integers(0, V - 1, (R, 4))
  source, segments = rng.integers(0, V - 1, (R, 7)), np.ones((R, 7), int)
  for i in range(R):
    source[i, 7 - i :], segments[i, 7 - i :] = 0, 0
  logits = jnp.asarray(rng.standard_normal((R, V)), jnp.float32)
  choices = {
    'own': Config(no_repeat_ngram_size=n),
    'encoder': Config(encoder_no_repeat_ngram_size=n),
  }
  for name, config in choices.items():
    sampler = Sampler.from_config(config, [[3, 2, 1]])
    past = sampling.initial_history(
      None, sampler, jnp.array(prefix), jnp.array(sizes), 4 + 8,
      (jnp.array(source), jnp.array(segments)),
    )  # fmt: skip
    rows = [row[:size].tolist() for row, size in zip(prefix, sizes)]
    for _ in range(8):
      out = np.asarray(sampling.process_logits(sampler, past, logits, V - 1))
      for i, row in enumerate(rows):
        read = row if name == 'own' else source[i][segments[i] > 0].tolist()
        want = repeats(row, read, n) | ({1} if row[-2:] == [3, 2] else set())
        assert {*np.flatnonzero(np.isneginf(out[i]))} == want
        kept = np.isfinite(out[i])
        np.testing.assert_array_equal(out[i][kept], logits[i][kept])
      token = rng.integers(0, V - 1, R)
      past = sampling.append_token(sampler, past, jnp.array(token))
      rows = [[*row, int(x)] for row, x in zip(rows, token)]


def test_the_last_token_may_be_the_end_only():
  """Even where it is banned; forced ids count."""
  sampler = Sampler.from_config(
    Config(max_tokens=3, min_tokens=9, forced_eos=True)
  )
  past = sampling.initial_history(
    None, sampler, jnp.array([[1, 4]] * 2), jnp.array([2, 2]),
    forced=jnp.array([0, 1]),
  )  # fmt: skip
  logits = jnp.zeros((2, 8))
  for row, count in ((1, 1), (0, 2)):
    past = sampling.append_token(sampler, past, jnp.array([3, 3]))
    out = np.asarray(sampling.process_logits(sampler, past, logits, 7))
    assert np.flatnonzero(np.isfinite(out[row])).tolist() == [7]
    assert past.counted[row] == 2 and past.count[row] == count
    assert not sampling.has_stopped(sampler, past)[row]


def test_programs_without_n_grams_look_no_further_back():
  """So they are those of before, see system/programs_test.py."""
  for config, reach in (
    (Config(), 1), (Config(no_repeat_ngram_size=3), 40),
    (Config(encoder_no_repeat_ngram_size=4), 3),
  ):  # fmt: skip
    assert Sampler.from_config(config, [[1, 2]]).reach(40) == reach


def test_the_likeliest_token_and_its_log_probability():
  """By the model: neither penalties nor bans change what is told."""
  logits = jnp.array([[0.0, 1, 2, 5, 0, 0, 0, 9]])
  sampler, past = history_of([[3]], [1], repeats=10.0)
  token, log_probability = sampling.choose_tokens(
    sampler, past, None, logits, 7
  )
  assert token.tolist() == [2] and token.dtype == jnp.int32
  want = 2 - np.log(np.exp(np.asarray(logits[0], np.float64)).sum())
  np.testing.assert_allclose(log_probability, [want], rtol=1e-6)


def test_all_of_the_probability_leaves_nothing_out():
  """Fault seen: with top_p = 1, tokens whose share is 0 in float32 cut."""
  logits = jnp.array([[0.0, -300, -400, -500]])
  sampler = Sampler.from_config(Config(temperature=1.0, top_k=3))
  out = np.asarray(sampling.truncate_logits(sampler, logits))
  assert out.tolist() == [[0, -300, -400, -np.inf]]


def test_the_best_is_the_first_of_several():
  """Fault seen: the last of equal values, or none where all are -inf."""
  rng = np.random.default_rng(0)
  ties = rng.integers(0, 9, (40, 3000)).astype(np.float32)
  ties[0], ties[1], ties[2] = -np.inf, 2.0, np.nan
  ties[3, 50:], ties[4, -1], ties[5, 700] = -np.inf, 99, np.nan
  best = jax.jit(sampling.find_best)(ties)
  assert best.dtype == jnp.int32
  np.testing.assert_array_equal(best, np.argmax(ties, -1))
  prime = jax.jit(sampling.find_best)(ties[:, :2999])
  np.testing.assert_array_equal(prime, np.argmax(ties[:, :2999], -1))


def test_the_log_probability_of_a_token_is_log_softmaxs():
  logits = jax.random.normal(jax.random.key(0), (5, 300)) * 9
  token = jnp.array([0, 299, 7, 150, 3])
  want = jax.nn.log_softmax(logits)[jnp.arange(5), token]
  picked = jax.jit(sampling.pick_log_probability)(logits, token)
  np.testing.assert_allclose(picked, want, rtol=1e-6)
