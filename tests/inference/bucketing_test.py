"""Few shapes, and few programs."""

import dataclasses
import functools
import threading
import time

import jax
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


def test_halves_of_a_batch_are_decoded_at_a_time(one_device, monkeypatch):
  monkeypatch.setattr(bucketing, 'count_cores', lambda: 2)
  together = threading.Barrier(2)

  def decode(rows):
    together.wait(30)  # for the other half
    return [10 * i for i in rows]

  run = functools.partial(bucketing.map_batches, decode, mesh=one_device)
  assert [*run([2, 0, 1, 3, 4, 6, 5, 7, 9, 8], 10)] == [
    ([2, 0, 1, 3, 4], [20, 0, 10, 30, 40]),
    ([6, 5, 7, 9, 8], [60, 50, 70, 90, 80]),
  ]
  rows = [*range(32)]
  assert [batch for batch, _ in run(rows, 16)] == [
    rows[i : i + 8] for i in (0, 8, 16, 24)
  ]


def test_few_rows_one_core_or_a_mesh_decode_whole_batches(
  one_device, monkeypatch
):
  main = threading.get_ident()

  def count(rows, mesh):
    found = bucketing.map_batches(
      lambda batch: threading.get_ident() == main and len(batch),
      [*range(rows)], 9, mesh,
    )  # fmt: skip
    return [size for _, size in found]

  monkeypatch.setattr(bucketing, 'count_cores', lambda: 2)
  assert count(7, one_device) == [7]
  assert count(20, mesh_lib.make_mesh(data=8)) == [9, 9, 2]
  monkeypatch.setattr(bucketing, 'count_cores', lambda: 1)
  assert count(20, one_device) == [9, 9, 2]


def test_an_error_of_a_half_reaches_the_caller(one_device, monkeypatch):
  """And batches that wait are left."""
  monkeypatch.setattr(bucketing, 'count_cores', lambda: 2)
  begun = []

  def decode(rows):
    begun.append(rows[0])
    time.sleep(0.02)
    raise ValueError(f'row {rows[0]}')

  with pytest.raises(ValueError, match='row 0'):
    [*bucketing.map_batches(decode, [*range(400)], 8, one_device)]
  assert len(begun) < 50


def test_a_program_of_two_threads_is_compiled_once(model, monkeypatch):
  """And what is written is what halves of their own write."""
  monkeypatch.setattr(bucketing, 'count_cores', lambda: 2)
  one = dataclasses.replace(
    model, mesh=mesh_lib.make_mesh(devices=jax.devices()[:1])
  )
  texts = [f'Article {i}' for i in range(8)]
  before = generate_lib.generate._cache_size()
  made = one.generate(texts, max_tokens=3, temperature=0.7, seed=3)
  assert generate_lib.generate._cache_size() == before + 1
  monkeypatch.setattr(bucketing, 'count_cores', lambda: 1)
  assert one.generate(texts, max_tokens=3, temperature=0.7, seed=3) == made
