"""Slots of the device: what an admission and a call may change of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.inference import generate
from atm.model.transformer import AlexaTM
from atm.serve import slots
from atm.serve.engine_sizes import EngineSizes
from atm.serve.generation_request import GenerationRequest
from atm.serve.stop_pool import StopStates

SIZES = EngineSizes(
  slots=3, max_input=8, max_output=6, most_steps=4, top=2, stop_states=4,
  banned=(2, 2),
)  # fmt: skip


def test_a_row_has_what_a_request_gives():
  request = GenerationRequest((5, 6), (1, 7), targets=(8, 9))
  row = slots.make_row(request, 0, SIZES, 0, None)
  assert row.ids.tolist() == [1, 7, 8, 9, 0, 0, 0] and row.length == 4
  assert row.told == 2 and row.is_scored
  stops = StopStates(np.zeros((2, 4)), start=5, count=3)
  request = GenerationRequest((5, 6), (1, 7))
  row = slots.make_row(request, 1, SIZES, 0, stops)
  assert not row.is_scored and row.settings.result == 1
  assert row.settings.stop_end == 7 and row.history.state == 5
  assert row.settings.max_tokens == 4  # what there is room for
  assert len(slots.fill_rows([row, row], 3).length) == 3


@pytest.fixture(scope='module')
def net(byte_model):
  """(AlexaTM, its parameters, an empty state)."""
  net = AlexaTM(byte_model.config)
  params = generate.prepare_params(net, byte_model.params)
  make = jax.jit(lambda: slots.empty_state(net, params, SIZES))
  return net, params, make()


@pytest.fixture(scope='module')
def admitted(net):
  """The state with inputs of 7 and 2 ids in slots 2 and 0."""
  model, params, state = net
  admit = jax.jit(functools.partial(slots.admit, model, params))
  row = lambda ids: slots.make_row(
    GenerationRequest(ids, (1,)), 0, SIZES, model.config.pad_id, None
  )
  tokens = np.full((2, 8), model.config.pad_id, np.int32)
  tokens[0, :7], tokens[1, :2] = 5, 6
  rows = slots.fill_rows([row((5,) * 7), row((6, 6))], 3)
  arguments = tokens, np.array([7, 2]), 2, np.array([0, 1, 0])
  return admit(state, *arguments, np.array([2, 0, 3]), rows)


def test_an_admission_fills_its_slots_alone(net, admitted):
  _, _, state = net
  assert admitted.source.sum(1).tolist() == [2, 0, 7]
  assert admitted.row.length.tolist() == [1, 1, 1]
  for cache, before in zip(admitted.caches, state.caches):
    assert not cache.cross_keys[1].any() and cache.cross_keys[2].any()
    np.testing.assert_array_equal(cache.self_keys, before.self_keys)


def test_steps_write_to_open_rows_within_their_limit(net, admitted):
  model, params, _ = net
  stops = jnp.zeros((4, model.config.vocab_size), jnp.int32)
  take = jax.jit(
    lambda state, is_open, limit: slots.take_steps(
      model, params, state, stops, is_open, limit, SIZES, (3, 6, 8)
    )
  )
  is_open = np.array([False, False, True])
  state, steps = take(admitted, is_open, 3)
  count = int(steps.count)
  assert count == 3 or steps.ended[count - 1, 2] != slots.OPEN
  assert (steps.token[:count, 2] >= 0).all()
  assert (steps.token[:, :2] == -1).all() and (steps.token[count:] == -1).all()
  assert state.position.tolist() == [0, 0, count]
  written = state.row.ids[2, 1 : int(state.row.length[2])]
  told = [x for x in steps.token[:count, 2] if x != model.config.end_id]
  assert written.tolist() == told
  np.testing.assert_array_equal(state.row.ids[:2], admitted.row.ids[:2])


def test_a_part_of_the_caches_is_put_back_where_it_was(net):
  _, _, state = net
  caches = [
    dataclasses.replace(x, self_keys=x.self_keys + 1) for x in state.caches
  ]
  part = slots.cut_caches(caches, 2, 4, 5)
  assert part[0].self_keys.shape[0] == 2 and part[0].cross_keys.shape[3] == 5
  cache, before = slots.paste_caches(state.caches, part)[0], state.caches[0]
  np.testing.assert_array_equal(
    cache.self_keys[:2, :, :, :4], before.self_keys[:2, :, :, :4] + 1
  )
  assert not cache.self_keys[2].any() and not cache.self_keys[..., 4:].any()
  np.testing.assert_array_equal(cache.cross_keys, before.cross_keys)
