"""Programs that decode: those that `atm infer` runs."""

import dataclasses
import functools

import jax
import pytest

from atm.inference import api, bucketing, generate
from atm.parallel import sharding
from atm.parallel.sharding import Rules
from atm.plan import decode_plan

from plan_runs import (
  BEAMS,
  GREEDY,
  INPUTS,
  LENGTHS,
  SAMPLED,
  job_of,
  on_device,
  silent,
  tiny,
  zeros_model,
)
from plan_runs import TENSOR as MESH


@pytest.fixture(scope='module')
def loaded():
  """A model of zeros."""
  return zeros_model()


def halved(loaded):
  """In bfloat16; the fixture's own parameters stay."""
  params = jax.tree.map(lambda x: x + 0, loaded.params)
  return api.cast_to_bfloat16(dataclasses.replace(loaded, params=params))


def run_of(loaded, config, monkeypatch, rows: int = 8):
  """(function, arguments, named ones) that decoding a batch would call."""
  seen = []

  def call(*given, real=bucketing.select_program):
    seen.append(real(*given))
    raise InterruptedError

  with monkeypatch.context() as patch, pytest.raises(InterruptedError):
    patch.setattr(bucketing, 'select_program', call)
    inputs = [[3 + i] * INPUTS for i in range(rows)]
    loaded.complete(inputs, config=config, batch_size=rows)
  return seen[0]


@pytest.mark.parametrize(
  'config, weights',
  [(GREEDY, None), (SAMPLED, None), (BEAMS, 'bfloat16')],
)
def test_the_program_is_that_of_infer(loaded, monkeypatch, config, weights):
  """The same text.

  Faults seen: another room for tokens; rows on every device; activations in
  float32 beside weights in bfloat16.
  """
  real = halved(loaded) if weights else loaded
  run, given, named = run_of(real, config, monkeypatch)
  job = job_of(config, weights)
  with sharding.use_mesh(MESH(), Rules()):
    lowered = run.lower(*given, **named)
  planned_ = job.trace(job.batch(8)).lower()
  assert planned_.as_text() == lowered.as_text()


def planned(**changes):
  given = dict(
    lengths=LENGTHS, model_config=tiny(), make_mesh=MESH, batch_size=8,
    say=silent,
  )  # fmt: skip
  return decode_plan.plan_rows(**{**given, **changes})


def test_temporaries_are_those_of_the_real_program(loaded, monkeypatch):
  run, given, named = run_of(loaded, GREEDY, monkeypatch)
  with sharding.use_mesh(MESH(), Rules()):
    analysis = run.lower(*given, **named).compile().memory_analysis()
  said = planned()['memory']
  assert said['heap'] == analysis.temp_size_in_bytes
  assert said['peak'] == analysis.peak_memory_in_bytes
  numbers = 64  # bytes of scalars, as how many tokens are asked for
  given = said['parameters'] + said['batch']
  assert 0 <= analysis.argument_size_in_bytes - given < numbers
  rest = said['peak'] - given - said['cache']
  assert said['temporaries'] == max(0, rest)


def test_bytes_are_those_of_the_real_shards(loaded, monkeypatch):
  """Faults seen: whole arrays counted; one result of each input."""
  _, (net, params, choice), named = run_of(loaded, SAMPLED, monkeypatch)
  with sharding.use_mesh(MESH(), Rules()):
    rows = generate.start_decoding(net, params, choice, **named)
  said = planned(config=SAMPLED)
  assert said['memory']['parameters'] == on_device(params)
  assert said['memory']['cache'] == on_device(rows.caches)
  row = sum(x.nbytes for x in jax.tree.leaves(rows.caches)) // 8
  assert said['cache_row_bytes'] == row
  assert said['cache_row_bytes_a_chip'] == row / 4  # of tensor
  given = ('tokens', 'segments', 'prefix', 'lengths', 'numbers')
  assert said['memory']['batch'] == on_device([named[k] for k in given])


def test_a_batch_of_any_size_is_one_that_infer_runs():
  """Fault seen: full batches filled up to a power of two."""
  source = functools.partial(bucketing.encoder_shape, tiny(), MESH(), 9)
  assert source(24, 24) == (24, 16)
  assert source(5, 24) == (8, 16) and source(17, 24) == (24, 16)
  assert source(1, 1) == (2, 16)  # two data shards
  assert bucketing.decoder_shape(tiny(), 1, 100) == (1, 64, 47)


def test_flops_of_the_encoder_are_those_of_a_count_by_hand():
  c = tiny()
  D, F, L = c.d_model, c.encoder_ff, c.encoder_layers
  by_hand = (
    2 * 5 * L * (INPUTS * (4 * D * D + 2 * D * F) + 2 * INPUTS * INPUTS * D)
  )
  assert job_of(GREEDY).encode_flops(5, INPUTS) == by_hand
