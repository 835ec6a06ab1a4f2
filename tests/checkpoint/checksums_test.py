"""Checksums: the same on every mesh, another for every change."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from atm.checkpoint import checksums
from atm.parallel import mesh as mesh_lib

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}


def mix(x):
  """MurmurHash3's fmix32 in Python's integers."""
  x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
  x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
  return x ^ (x >> 16)


def by_hand(array) -> str:
  """The checksum of an array, one word after the other."""
  words = np.asarray(array).reshape(-1).view(WORDS[array.dtype.itemsize])
  first = [mix(int(w) ^ (i * 0x9E3779B9) % 2**32) for i, w in enumerate(words)]
  second = [mix((x + 0x85EBCA77) % 2**32) for x in first]
  return f'{sum(first) % 2**32:08x}{sum(second) % 2**32:08x}'


def checksum(array) -> str:
  return checksums.compute_checksums({'x': jnp.asarray(array)})['x'].split()[1]


@pytest.mark.parametrize(
  'dtype', ['float32', 'bfloat16', 'float16', 'int32', 'uint8', 'bool']
)
@pytest.mark.parametrize('shape', [(), (0,), (7,), (3, 5), (2, 4, 8)])
def test_it_is_the_sum_that_is_described(rng, dtype, shape):
  array = jnp.asarray(rng.normal(size=shape) * 50).astype(dtype)
  want = f'{checksums.format_array_type(array)} {by_hand(array)}'
  assert checksums.compute_checksums({'x': array})['x'] == want
  assert checksums.compute_checksums({'x': np.asarray(array)})['x'] == want


def test_a_number_of_64_bits_is_two_words(rng):
  """NumPy's, and JAX's where they are enabled."""
  array = rng.normal(size=(3, 5))
  want = f'float64[3,5] {by_hand(array)}'
  assert checksums.compute_checksums({'x': array})['x'] == want
  with jax.enable_x64():
    assert checksums.compute_checksums({'x': jnp.asarray(array)})['x'] == want


@pytest.mark.parametrize('size', [0, 15, 16, 17, 64, 65, 128, 200])
def test_pieces_on_the_host_sum_to_the_same(rng, monkeypatch, size):
  """Fault seen: every piece counted from position 0."""
  monkeypatch.setattr(checksums, 'SMALL_PIECE', 16)
  monkeypatch.setattr(checksums, 'PIECE', 64)
  array = rng.normal(size=(size,)).astype(np.float32)
  assert checksums.compute_checksums({'x': array})['x'].split()[1] == by_hand(
    array
  )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_it_does_not_depend_on_the_mesh(rng, dtype):
  """Fault seen: positions counted within a device's part (shard_map)."""
  array = jnp.asarray(rng.normal(size=(16, 24)), dtype)
  want = by_hand(array)
  for sizes in ({'data': 8}, {'fsdp': 8}, {'data': 2, 'fsdp': 2, 'tensor': 2}):
    mesh = mesh_lib.make_mesh(**{'data': 1, **sizes})
    for spec in (P(), P('fsdp'), P('tensor', 'fsdp'), P(('data', 'fsdp'))):
      placed = jax.device_put(array, NamedSharding(mesh, spec))
      assert checksum(placed) == want, (sizes, spec)


def test_every_change_shows(rng):
  """Faults seen: weights all 1 (exchanged numbers pass); odd weights by
  position without mixing (two flipped signs pass)."""
  array = rng.normal(size=(64,)).astype(np.float32)
  want, words = checksum(array), array.view(np.uint32)
  seen = {want}
  for bit in range(32):
    flipped = words.copy()
    flipped[5] ^= np.uint32(1 << bit)
    seen.add(checksum(flipped.view(np.float32)))
    flipped[9] ^= np.uint32(1 << bit)
    seen.add(checksum(flipped.view(np.float32)))
  swapped = array.copy()
  swapped[[3, 4]] = swapped[[4, 3]]
  seen |= {checksum(swapped), checksum(np.roll(array, 1)), checksum(-array)}
  assert len(seen) == 1 + 2 * 32 + 3
  # Nothing is not the same as zeros, nor a zero more.
  assert len({checksum(np.zeros(n, np.float32)) for n in range(4)}) == 4


def test_positions_of_more_than_32_bits_are_taken_modulo():
  """Strides of an array of 12 GiB, of which nothing is made."""
  for shape in [(3, 2**32), (3, 2**32 + 5), (2, 2**31)]:
    like = jax.ShapeDtypeStruct(shape, jnp.uint8)
    assert jax.eval_shape(checksums._sum, like).shape == (2,)


def test_a_difference_is_named():
  arrays = {f'params/{n}': jnp.full((3,), n, jnp.float32) for n in range(4)}
  sums = checksums.compute_checksums(arrays)
  checksums.verify_checksums(arrays, sums)
  sums['params/2'] = sums['params/3'] = sums['params/1']
  with pytest.raises(
    checksums.DamageError, match=r'params/2 \(and 1 more\) diff'
  ):
    checksums.verify_checksums(arrays, sums)


def test_no_bit_of_a_sealed_meta_flips_unseen():
  """Faults seen: the checksums left out of the hash; one name that tells a
  sealed meta from an old one."""
  meta = {'data': {'step': 5, 'mixture': 'नमस्ते'}, 'log': {'sum': 0.1}}
  sealed = checksums.seal_meta(meta, {'params/x': 'float32[] 0123'})
  assert checksums.unseal_meta(sealed) == (meta, {'params/x': 'float32[] 0123'})
  text = json.dumps(sealed).encode()
  for bit in range(8 * len(text)):
    damaged = bytearray(text)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
      found = checksums.unseal_meta(json.loads(damaged))
    except ValueError:  # DamageError is one
      continue
    assert found == checksums.unseal_meta(sealed), bytes(damaged)


def test_what_was_never_sealed_is_known_as_such():
  assert checksums.unseal_meta({'data': 1}) == ({'data': 1}, None)
  assert checksums.unseal_meta({}) == ({}, None)
