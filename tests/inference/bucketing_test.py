"""Few shapes, and few programs."""

import functools

import pytest

from atm.inference import beam_search, bucketing, sampling
from atm.inference import generate as generate_lib
from atm.parallel import mesh as mesh_lib

from conftest import tiny


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


def test_shapes_are_powers_of_two_that_fit(one_device):
  """Faults seen: full batches filled up; room above Config.positions."""
  config = tiny()
  mesh = mesh_lib.make_mesh(data=4, tensor=2)
  shape = functools.partial(bucketing.encoder_shape, config)
  assert shape(one_device, 5, 3, 6) == (4, 16)
  assert shape(one_device, 17, 6, 6) == (6, 32)
  assert shape(one_device, 40, 1, 6) == (1, config.positions)
  assert shape(mesh, 5, 5, 6) == (8, 16)
  assert bucketing.decoder_shape(config, 3, 10) == (4, 16, 10)
  assert bucketing.decoder_shape(config, 40, 10) == (64, 8, 8)
  with pytest.raises(ValueError, match='a prefix of 47 tokens: expected at'):
    bucketing.decoder_shape(config, 48, 10)


def test_a_batch_is_padded_behind(one_device):
  """Faults seen: segments on padding; a row of padding without a start token,
  whose first prefix position would be -1."""
  config = tiny()
  rows, prefixes = [[5, 6], [7], [8]], [[1, 9, 4], [1], [1]]
  numbers = [0, 5, 2**31]
  batch, T, room = bucketing.pad_batch(
    config, one_device, rows, prefixes, numbers, 6, 8
  )
  pad, start = config.pad_id, config.start_id
  assert (T, room) == (8, 6) and batch['tokens'].shape == (4, 16)
  assert batch['tokens'][:, :3].tolist() == [
    [5, 6, pad], [7, pad, pad], [8, pad, pad], [pad] * 3
  ]  # fmt: skip
  assert batch['segments'].sum(1).tolist() == [2, 1, 1, 0]
  assert batch['prefix'].tolist()[0] == [1, 9, 4, pad]
  assert batch['prefix'][:, 0].tolist() == [1, 1, 1, start]
  assert batch['lengths'].tolist() == [3, 1, 1, 1]
  assert batch['numbers'].tolist() == [0, 5, 0, 0]


def test_beams_have_a_program_of_their_own():
  batch = dict(tokens=0, segments=1, prefix=2, lengths=3, numbers=4)
  select = functools.partial(
    bucketing.select_program, 'net', 'params', 'sampler', batch, T=8
  )
  run, given, named = select(config=sampling.Config(beams=3, results=2))
  assert run is beam_search.beam_search and given == (
    'net',
    'params',
    'sampler',
  )
  assert named == dict(
    tokens=0, segments=1, prefix=2, lengths=3, T=8, results=2, k=3
  )
  run, _, named = select(config=sampling.Config(seed=7))
  assert run is generate_lib.generate
  assert (named['numbers'], named['seed'], named['results']) == (4, 7, 1)
