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

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from atm import fileio
from atm.messages import quote

SUMS = 'checksums'
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}
PIECE, SMALL_PIECE = 2**22, 2**14  # words


class DamageError(ValueError):
  """A checkpoint does not hold what was saved."""


# --- Arrays


def _mix(x):
  """Maps 32-bit words one to one: MurmurHash3's fmix32 (public domain)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def _sum_mixed(words, position, where=None) -> jax.Array:
  """Returns the two sums, uint32 [2], of words mixed with their positions."""
  # Odd numbers: 2^32 over the golden ratio, and one of xxHash's primes.
  first = _mix(words ^ (position * jnp.uint32(0x9E3779B9)))
  mixed = first, _mix(first + jnp.uint32(0x85EBCA77))
  return jnp.stack([jnp.sum(x, dtype=jnp.uint32, where=where) for x in mixed])


def _sum(x: jax.Array) -> jax.Array:
  """Returns the checksum, uint32 [2], of an array of any shape."""
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize])
  words = words.astype(jnp.uint32)
  position = jnp.zeros(words.shape, jnp.uint32)
  for axis in range(words.ndim):
    stride = math.prod(words.shape[axis + 1 :]) % 2**32
    iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    position += iota * jnp.uint32(stride)
  return _sum_mixed(words, position)


@functools.cache
def _jit_sums(mesh):
  """Returns a jitted function: N arrays -> uint32 [N, 2] on all of `mesh`."""
  out = None if mesh is None else NamedSharding(mesh, PartitionSpec())
  return jax.jit(
    lambda arrays: jnp.stack([_sum(x) for x in arrays]), out_shardings=out
  )


@jax.jit
def _sum_of_piece(words, first, count) -> jax.Array:
  """Returns the sum of the first `count` words, from position `first` on."""
  index = jnp.arange(len(words), dtype=jnp.uint32)
  return _sum_mixed(words, index + first, index < count)


def _sum_on_host(array: np.ndarray) -> np.ndarray:
  """Computes `_sum` in pieces of two sizes: two programs serve all shapes."""
  words = np.ascontiguousarray(array).reshape(-1).view(_WORDS[array.itemsize])
  size = PIECE if len(words) > SMALL_PIECE else SMALL_PIECE
  total = np.zeros(2, np.uint32)
  for first in range(0, len(words), size):
    piece = words[first : first + size].astype(np.uint32)
    count = np.uint32(len(piece))
    piece = np.pad(piece, (0, size - len(piece)))
    total += np.asarray(_sum_of_piece(piece, np.uint32(first % 2**32), count))
  return total


def format_path(path) -> str:
  """Returns a path of JAX's as text, as in `params/encoder/layers/...`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def flatten_named(tree) -> dict:
  """Returns the leaves of a tree by `format_path`."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {format_path(path): leaf for path, leaf in leaves}


def format_array_type(array) -> str:
  """Returns an array's dtype and shape, as in `float32[32,64]`."""
  shape = ','.join(map(str, array.shape))
  return f'{np.dtype(array.dtype).name}[{shape}]'


def parse_array_type(text: str) -> jax.ShapeDtypeStruct:
  """Returns shape and dtype of what `format_array_type` wrote."""
  dtype, _, shape = text.removesuffix(']').partition('[')
  sizes = tuple(int(n) for n in shape.split(',') if n)
  return jax.ShapeDtypeStruct(sizes, np.dtype(dtype))


def compute_checksums(arrays: Mapping) -> dict[str, str]:
  """Returns `float32[32,64] 0123456789abcdef` for every array."""
  # JAX's arrays are summed on their devices by one program compiled for them
  # all, NumPy's a piece at a time.
  placed = {k: x for k, x in arrays.items() if not isinstance(x, np.ndarray)}
  sums = {k: _sum_on_host(x) for k, x in arrays.items() if k not in placed}
  if placed:
    shardings = [getattr(x, 'sharding', None) for x in placed.values()]
    meshes = {s.mesh for s in shardings if isinstance(s, NamedSharding)}
    mesh = meshes.pop() if len(meshes) == 1 else None
    sums |= zip(placed, np.asarray(_jit_sums(mesh)(list(placed.values()))))
  return {
    key: '{} {:08x}{:08x}'.format(format_array_type(x), *sums[key])
    for key, x in arrays.items()
  }


def verify_checksums(arrays: Mapping, expected: Mapping[str, str]) -> None:
  """Raises DamageError unless the arrays have these checksums."""
  sums = compute_checksums(arrays)
  wrong = [name for name in sums if sums[name] != expected.get(name)]
  if wrong:
    more = f' (and {len(wrong) - 1} more)' if len(wrong) > 1 else ''
    raise DamageError(f'{wrong[0]}{more} differs from its checksum')


# --- JSON


def seal_meta(meta: dict, sums: Mapping[str, str]) -> dict:
  """Returns `meta` with the arrays' checksums, and a hash of it all."""
  return fileio.seal_json({**meta, SUMS: dict(sums)})


def unseal_meta(sealed: dict) -> tuple[dict, dict | None]:
  """Returns (meta, checksums or None); raises DamageError if it changed."""
  if not isinstance(sealed, dict):
    raise DamageError(f'meta is {quote(sealed)}: expected an object')
  # Two names, so that one damaged name cannot make it look unsealed.
  meta = {k: v for k, v in sealed.items() if k not in (fileio.SEAL, SUMS)}
  if fileio.SEAL not in sealed and SUMS not in sealed:
    return meta, None
  whole = {k: v for k, v in sealed.items() if k != fileio.SEAL}
  if sealed.get(fileio.SEAL) != fileio.hash_json(whole) or SUMS not in sealed:
    raise DamageError('meta differs from its own hash')
  sums = fileio.get_key(sealed, SUMS, dict, 'meta')
  for name in sums:
    parse_array_type(fileio.get_key(sums, name, str, 'meta').split(' ')[0])
  return meta, sums
