"""Rows of different settings, against `sampling` with one Config for all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.inference import sampling
from atm.inference.sampling import Config, Sampler
from atm.serve import row_sampling
from atm.serve.generation_request import GenerationRequest

V, T, S, END, BANNED, TOP = 23, 16, 9, 2, (4, 3), 5
R = 8


def draw_request(rng) -> GenerationRequest:
  """Returns a request with settings of which each is often the default."""
  often = lambda value, default: value if rng.random() < 0.4 else default
  ids = lambda n: tuple(rng.integers(0, V, n).tolist())
  stops = np.zeros((4, V), np.int32)
  stops[0], stops[1, 5], stops[1, 7], stops[-1] = 1, 3, 2, 3
  stops[0, :4] = 0
  config = Config(
    max_tokens=int(rng.integers(1, 9)),
    min_tokens=often(int(rng.integers(5)), 0),
    temperature=often(float(rng.choice([0.3, 1.0, 1.7])), 0.0),
    top_k=often(int(rng.integers(1, 30)), 0),
    top_p=often(float(rng.uniform(0.2, 1)), 1.0),
    min_p=often(float(rng.uniform(0, 0.3)), 0.0),
    repetition_penalty=often(float(rng.uniform(0.5, 2)), 1.0),
    seed=int(rng.choice([0, 7, 2**31 - 1, 2**62])),
    no_repeat_ngram_size=often(int(rng.choice([2, 3, T + 5])), 0),
    encoder_no_repeat_ngram_size=often(int(rng.choice([1, 20])), 0),
    forced_eos=often(True, False),
  )
  prefix = ids(rng.choice([1, 4]))  # few shapes, which compile
  return GenerationRequest(
    ids=ids(rng.choice([5, S])),
    prefix=prefix,
    config=config,
    forced=int(rng.integers(len(prefix))) if config.max_tokens > 4 else 0,
    stop_table=often(stops, None),
    banned=tuple(ids(n) for n in (3, 1, 2)[: often(3, 0)]),
    number=int(rng.choice([0, 5, -3, 2**40 + 1])),
  )


@jax.jit
def step(settings, stops, history, logits, given):
  """Writes a token to every row; returns its history, and what it chose by."""
  token, chosen = row_sampling.choose_row_tokens(
    settings, history, logits, END, given
  )
  processed = row_sampling.process_row_logits(settings, history, logits, END)
  is_open = jnp.ones(len(given), bool)
  history = row_sampling.append_row_token(stops, history, token, is_open)
  stopped = sampling.has_stopped(settings, history)
  return history, (token, chosen, processed, stopped)


def write(settings, stops, history, logits, given) -> list:
  """Writes a token for each of logits to every row."""
  history = jax.tree.map(jnp.asarray, row_sampling.begin_rows(history, V))
  out = []
  for x in logits:
    history, row = step(settings, stops, history, x, given)
    out.append(row)
  return out


def write_alone(request, result, logits):
  """Writes three tokens to one row, by `sampling`."""
  sampler = Sampler.from_config(
    request.config, request.banned, request.stop_table
  )
  prefix, ids = jnp.array([request.prefix]), jnp.array([request.ids])
  model = dataclasses.make_dataclass('M', ['config'])(
    dataclasses.make_dataclass('C', ['vocab_size'])(V)
  )
  history = sampling.initial_history(
    model, sampler, prefix, jnp.array([prefix.shape[1]]), T,
    (ids, jnp.ones_like(ids)), jnp.array([request.forced]),
  )  # fmt: skip
  key = jax.random.key(request.config.program_seed)
  number = np.asarray([request.number], np.int64) % 2**31
  for i in (np.int32(number[0]), result):
    key = jax.random.fold_in(key, i)
  for step in jnp.asarray(logits):
    token, chosen = sampling.choose_tokens(
      sampler, history, key[None], step[None], END
    )
    processed = sampling.process_logits(sampler, history, step[None], END)
    history = sampling.append_token(sampler, history, token)
    stopped = sampling.has_stopped(sampler, history)
    yield token[0], chosen[0], processed[0], stopped[0]


def make_rows(requests, results):
  """Returns rows of requests, and a table with their stop strings."""
  stops, settings, histories = [np.zeros((1, V), np.int32)], [], []
  for request, result in zip(requests, results):
    start = end = 0
    if (table := request.stop_table) is not None:
      start = sum(map(len, stops))
      stops.append(start + table)
      end = start + len(table) - 1
    settings.append(
      row_sampling.make_settings(
        request, result, request.config.max_tokens, BANNED, end or -1
      )
    )
    histories.append(row_sampling.make_history(request, T, S, start))
  size = 4 * R + 1
  stops = np.concatenate(stops)
  stops = np.pad(stops, ((0, size - len(stops)), (0, 0)))
  rows = map(row_sampling.stack_rows, (settings, histories))
  return *rows, stops


def test_each_row_is_chosen_as_by_its_own_settings():
  """One program, whatever the rows ask for."""
  rng = np.random.default_rng(0)
  requests = [draw_request(rng) for _ in range(R)]
  results = rng.integers(0, 4, R)
  settings, history, stops = make_rows(requests, results)
  logits = rng.standard_normal((3, R, V)).astype(np.float32) * 3
  got = write(settings, stops, history, logits, np.full(R, -1, np.int32))
  for i, request in enumerate(requests):
    want = write_alone(request, results[i], logits[:, i])
    for ours, row in zip(got, want):
      for a, b in zip(ours, row):
        np.testing.assert_allclose(a[i], b, rtol=1e-6, err_msg=str(request))
  assert step._cache_size() == 1


@pytest.mark.parametrize(
  'settings',
  [
    dict(temperature=1.0, top_k=1),
    dict(temperature=1.0, top_p=0.2),
    dict(temperature=1.0, min_p=0.9),
    dict(repetition_penalty=0.1),
  ],
)
def test_one_row_asks_for_one_thing(settings):
  """And another for a ban of the first id."""
  rng = np.random.default_rng(2)
  plain = GenerationRequest((3, 4), (1,))
  one = dataclasses.replace(plain, config=Config(**settings))
  other = dataclasses.replace(plain, banned=((0,),))
  requests = [plain] * (R - 2) + [other, one]
  settings, history, stops = make_rows(requests, [0] * R)
  logits = rng.standard_normal((3, R, V)).astype(np.float32)
  logits[:, R - 2, 0] = 9
  given = np.where(np.arange(R) == 1, 0, -1).astype(np.int32)
  got = write(settings, stops, history, logits, given)
  for ours, row in zip(got, write_alone(one, 0, logits[:, -1])):
    for a, b in zip(ours, row):
      np.testing.assert_allclose(a[-1], b, rtol=1e-6)
  for token, chosen, processed, _ in got:
    assert token[1] == 0 and np.isneginf(processed[R - 2, 0])
    assert token[R - 2] > 0 and chosen[R - 2] < -1


def test_rows_that_ask_for_nothing_have_their_logits():
  """Whatever others ask for: to the bit, as greedy choice has them."""
  rng = np.random.default_rng(1)
  requests = [draw_request(rng) for _ in range(R)]
  plain = [GenerationRequest((3, 4), (1,)) for _ in requests]
  requests = [x for pair in zip(plain, requests) for x in pair][:R]
  settings, history, stops = make_rows(requests, [0] * R)
  logits = rng.standard_normal((3, R, V)).astype(np.float32)
  given = np.where(np.arange(R) == 2, 7, -1).astype(np.int32)
  for step, (token, chosen, processed, _) in zip(
    logits, write(settings, stops, history, logits, given)
  ):
    np.testing.assert_array_equal(processed[::2], step[::2])
    want = np.where(given >= 0, given, step.argmax(-1))
    np.testing.assert_array_equal(token[::2], want[::2])
    logs = jax.nn.log_softmax(step)[np.arange(R), token]
    np.testing.assert_allclose(chosen, logs, rtol=1e-6)


def test_closed_rows_write_nothing():
  settings, history, stops = make_rows(
    [draw_request(np.random.default_rng(i)) for i in range(R)], [0] * R
  )
  history = row_sampling.begin_rows(history, V)
  is_open, token = jnp.arange(R) % 2 == 0, jnp.full(R, 7)
  new = row_sampling.append_row_token(stops, history, token, is_open)
  for a, b in zip(jax.tree.leaves(history), jax.tree.leaves(new)):
    np.testing.assert_array_equal(a[1::2], b[1::2])
  assert (new.tail[::2, -1] == 7).all() and new.written[::2, 7].all()
  assert (new.count == is_open).all()


def test_the_likeliest_are_told_where_a_row_asks():
  logs = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3]] * 2))
  ask = lambda top: row_sampling.stack_rows([
    row_sampling.make_settings(
      GenerationRequest((0,), (0,), top=x), 0, 1, BANNED
    )
    for x in (0, top)
  ])  # fmt: skip
  ids, values = row_sampling.find_top(ask(2), logs, 3)
  assert ids.tolist() == [[1, 3, 2]] * 2
  np.testing.assert_allclose(values[1], np.log([0.4, 0.3, 0.2]), rtol=1e-6)
  ids, values = row_sampling.find_top(ask(0), logs, 3)
  assert not ids.any() and not values.any()


def test_what_rows_have_no_room_for_is_named():
  request = GenerationRequest((0,), (0,), top=4)
  check = lambda **x: row_sampling.check_limits(
    dataclasses.replace(request, **x), BANNED, 5
  )
  check(banned=((1, 2, 3),) * 4, top=5)
  for wrong, message in (
    (dict(banned=((1,),) * 5), 'banned has 5 sequences.*at most 4'),
    (dict(banned=((1,) * 4,)), 'a sequence of 4 ids: expected at most 3'),
    (dict(top=6), 'top = 6: expected 0 to 5'),
    (dict(top=-1), 'top = -1'),
  ):
    with pytest.raises(ValueError, match=message):
      check(**wrong)


def test_an_output_has_the_room_that_is_left():
  request = lambda **x: GenerationRequest(
    (0,), (0, 1, 2), Config(max_tokens=6), **x
  )
  assert row_sampling.limit_tokens(request(), 48) == 6
  assert row_sampling.limit_tokens(request(), 8) == 5
  assert row_sampling.limit_tokens(request(forced=2), 8) == 6
  with pytest.raises(ValueError, match='a prefix of 2 tokens'):
    row_sampling.limit_tokens(request(), 3)
  with pytest.raises(ValueError, match='max_tokens = 6: expected 7'):
    row_sampling.limit_tokens(request(forced=6), 8)


def test_a_text_has_begun_where_a_prefix_has_text():
  """As `sampling.initial_history` has it, from the pool's state on."""
  stops = np.array([[0, 0, 1, 3], [1, 1, 1, 3], [1, 1, 1, 3], [3, 3, 3, 3]])
  state = lambda *prefix: int(
    row_sampling.make_history(
      GenerationRequest((0,), prefix, stop_table=stops), T, S, 5
    ).state
  )
  assert [state(0), state(0, 1), state(0, 2), state(0, 3)] == [5, 5, 6, 6]


def test_each_way_to_stop_early_is_a_number_of_its_own():
  numbers = {
    int(
      row_sampling.make_settings(
        GenerationRequest((0,), (0,), Config(early_stopping=x)), 0, 1, BANNED
      ).early_stopping
    )
    for x in (False, True, 'never')
  }
  assert len(numbers) == 3


@pytest.mark.parametrize(
  ('request_', 'says'),
  [
    (GenerationRequest((1, 23), (1,)), 'ids has the id 23: expected 0 to 22'),
    (GenerationRequest((1,), ()), 'prefix has 0 tokens'),
    (GenerationRequest((1,), (1,), targets=(-1,)), 'targets'),
    (GenerationRequest((1,), (1,), banned=((2,), (99,))), r'banned\[1\]'),
  ],
)
def test_ids_that_a_model_does_not_have_are_refused(request_, says):
  with pytest.raises(ValueError, match=says):
    row_sampling.check_ids_of(request_, V)
