"""Checksums of arrays, the same on every mesh, and of JSON.

Orbax hands out flipped bits as if nothing had happened. So a checkpoint keeps a
checksum of every array, taken of the arrays themselves before they are written,
and compared with what is read back.

An array is taken as words of 32 bits (a 16-bit number is a word, one of 64 bits
two). Each word is mixed with its position in the whole array, and the results
are added modulo 2^32, twice with different mixing: 64 bits. Integer addition
has no order, so neither the mesh nor the device matters; a changed word always
changes the sum, exchanged or shifted words do but for one case in 2^64. Mixing
matters: in a sum of words times odd weights two flipped signs cancel.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

SEAL, SUMS = 'sha256', 'checksums'
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}
PIECE, SMALL_PIECE = 2**22, 2**14  # words


class DamageError(ValueError):
  """A checkpoint does not hold what was saved."""


# --- Arrays


def _mix(x):
  """A bijection of 32-bit words: MurmurHash3's fmix32 (public domain)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def _mixed(words: jax.Array, place: jax.Array) -> list[jax.Array]:
  """Two mixed words for each word and its position."""
  # Odd numbers: 2^32 over the golden ratio, and one of xxHash's primes.
  first = _mix(words ^ (place * jnp.uint32(0x9E3779B9)))
  return [first, _mix(first + jnp.uint32(0x85EBCA77))]


def _sum(x: jax.Array) -> jax.Array:
  """uint32 [2] of an array of any shape."""
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize])
  words = words.astype(jnp.uint32)
  place = jnp.zeros(words.shape, jnp.uint32)
  for axis in range(words.ndim):
    stride = math.prod(words.shape[axis + 1 :]) % 2**32
    iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    place += iota * jnp.uint32(stride)
  mixed = _mixed(words, place)
  return jnp.stack([jnp.sum(x, dtype=jnp.uint32) for x in mixed])


@functools.cache
def _summer(mesh):
  """A jitted function: arrays -> uint32 [N, 2], on every device of `mesh`."""
  out = None if mesh is None else NamedSharding(mesh, PartitionSpec())
  return jax.jit(
    lambda arrays: jnp.stack([_sum(x) for x in arrays]), out_shardings=out
  )


@jax.jit
def _sum_of_piece(words, first, count) -> jax.Array:
  """uint32 [2] of the first `count` words, which begin at position `first`."""
  index = jnp.arange(len(words), dtype=jnp.uint32)
  mixed = _mixed(words, index + first)
  inside = [jnp.where(index < count, x, 0) for x in mixed]
  return jnp.stack([jnp.sum(x, dtype=jnp.uint32) for x in inside])


def _sum_on_host(array: np.ndarray) -> np.ndarray:
  """`_sum` in pieces of few sizes: one program for arrays of all shapes."""
  words = np.ascontiguousarray(array).reshape(-1).view(_WORDS[array.itemsize])
  size = PIECE if len(words) > SMALL_PIECE else SMALL_PIECE
  total = np.zeros(2, np.uint32)
  for first in range(0, len(words), size):
    piece = words[first : first + size].astype(np.uint32)
    count = np.uint32(len(piece))
    piece = np.pad(piece, (0, size - len(piece)))
    total += np.asarray(_sum_of_piece(piece, np.uint32(first % 2**32), count))
  return total


def path_name(path) -> str:
  """A path of JAX's as text, as in `params/encoder/layers/...`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def flatten_named(tree) -> dict:
  """The leaves of a tree by `path_name`."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {path_name(path): leaf for path, leaf in leaves}


def array_type(array) -> str:
  """An array's dtype and shape, as in `float32[32,64]`."""
  shape = ','.join(map(str, array.shape))
  return f'{np.dtype(array.dtype).name}[{shape}]'


def parse_array_type(text: str) -> jax.ShapeDtypeStruct:
  """Returns shape and dtype of what `array_type` wrote."""
  dtype, _, shape = text.removesuffix(']').partition('[')
  sizes = tuple(int(n) for n in shape.split(',') if n)
  return jax.ShapeDtypeStruct(sizes, np.dtype(dtype))


def compute_checksums(
  arrays: Mapping[str, jax.Array | np.ndarray],
) -> dict[str, str]:
  """`float32[32,64] 0123456789abcdef` for every array, where they lie.

  JAX's arrays are summed on their devices by one program compiled for them all,
  NumPy's a piece at a time.
  """
  on_host = {k: x for k, x in arrays.items() if isinstance(x, np.ndarray)}
  texts = {
    key: _text(x, _sum_on_host(x)) for key, x in on_host.items()
  } | _on_devices({k: x for k, x in arrays.items() if k not in on_host})
  return {key: texts[key] for key in arrays}


def _on_devices(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
  if not arrays:
    return {}
  found = [getattr(x, 'sharding', None) for x in arrays.values()]
  meshes = {s.mesh for s in found if isinstance(s, NamedSharding)}
  mesh = meshes.pop() if len(meshes) == 1 else None
  sums = np.asarray(_summer(mesh)(list(arrays.values())))
  return {key: _text(x, s) for (key, x), s in zip(arrays.items(), sums)}


def _text(array, sums: np.ndarray) -> str:
  return f'{array_type(array)} {sums[0]:08x}{sums[1]:08x}'


def verify_checksums(arrays: Mapping, wanted: Mapping[str, str]) -> None:
  """Raises DamageError unless the arrays have these checksums."""
  found = compute_checksums(arrays)
  wrong = [name for name in found if found[name] != wanted.get(name)]
  if wrong:
    more = f' (and {len(wrong) - 1} more)' if len(wrong) > 1 else ''
    raise DamageError(f'{wrong[0]}{more} differs from its checksum')


# --- JSON


def _digest(value: dict) -> str:
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def seal_meta(meta: dict, sums: Mapping[str, str]) -> dict:
  """`meta` with the arrays' checksums, and a hash of it all."""
  whole = json.loads(json.dumps({**meta, SUMS: dict(sums)}))
  return {**whole, SEAL: _digest(whole)}


def unseal_meta(sealed: dict) -> tuple[dict, dict | None]:
  """(meta, checksums); checksums are None where it was never sealed.

  Raises:
    DamageError: it is not what was sealed. One damaged name cannot make it look
      unsealed: there are two.
  """
  meta = {k: v for k, v in sealed.items() if k not in (SEAL, SUMS)}
  if SEAL not in sealed and SUMS not in sealed:
    return meta, None
  whole = {k: v for k, v in sealed.items() if k != SEAL}
  if sealed.get(SEAL) != _digest(whole) or SUMS not in sealed:
    raise DamageError('meta differs from its own hash')
  return meta, sealed[SUMS]
