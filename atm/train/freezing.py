"""Parameters that a run leaves as they are, by patterns on their paths: FREEZE.

'encoder' or 'decoder/*/bias' freezes whole arrays: they have neither a gradient
nor a state of the optimizer. 'encoder/layers/0-5' freezes layers of a stack,
whose arrays hold all of its layers: their gradients are computed with those of
the others, and left out.
"""

import dataclasses
import fnmatch
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from atm.messages import did_you_mean, quote

_LAYERS = re.compile(r'(.*\blayers)/(\d+)(?:-(\d+))?(?:/(.*))?')
SEPARATOR = '/'


@dataclasses.dataclass(frozen=True)
class LayerRange:
  """Layers `first` to `last` of the arrays that a pattern matches."""

  pattern: str
  first: int
  last: int


@functools.lru_cache(maxsize=64)
def parse_layers(pattern: str) -> LayerRange | None:
  """Returns the layers that a pattern names; None where it names arrays."""
  found = _LAYERS.fullmatch(pattern)
  if found is None:
    return None
  stack, first, last, rest = found.groups()
  array = stack if rest is None else f'{stack}/{rest}'
  return LayerRange(array, int(first), int(first if last is None else last))


def matches_path(pattern: str, path: str) -> bool:
  """Tells whether a pattern matches a path, or what the path is below."""
  match = fnmatch.fnmatchcase
  return match(path, pattern) or match(path, f'{pattern}{SEPARATOR}*')


def is_frozen(path: str, patterns: tuple[str, ...]) -> bool:
  """Tells whether the whole array at a path stays as it is."""
  return any(
    parse_layers(x) is None and matches_path(x, path) for x in patterns
  )


def _flatten(tree: dict) -> dict[str, object]:
  return traverse_util.flatten_dict(tree, sep=SEPARATOR)


def split_frozen(tree: dict, patterns: tuple[str, ...]) -> tuple[dict, dict]:
  """Splits parameters into those that stay as they are, and the others."""
  if not patterns:
    return {}, tree
  parts: tuple[dict, dict] = {}, {}
  for path, x in _flatten(tree).items():
    parts[not is_frozen(path, patterns)][path] = x
  kept, trained = (
    traverse_util.unflatten_dict(x, sep=SEPARATOR) for x in parts
  )
  return kept, trained


def merge_trees(a: dict, b: dict) -> dict:
  """Returns the leaves of two nested dicts, `b`'s where both have one."""
  both = {**a, **b}
  inner = {k for k in {*a} & {*b} if isinstance(b[k], dict)}
  return both | {k: merge_trees(a[k], b[k]) for k in inner}


def keep_layers(new: dict, old: dict, patterns: tuple[str, ...]) -> dict:
  """Returns `new` with the frozen layers of `old`."""
  ranges = [x for x in map(parse_layers, patterns) if x is not None]
  if not ranges:
    return new
  olds = _flatten(old)

  def choose(path, x):
    frozen = np.zeros(len(x), bool) if x.ndim else None
    for part in ranges:
      if matches_path(part.pattern, path):
        frozen[part.first : part.last + 1] = True
    if frozen is None or not frozen.any():
      return x
    mask = frozen.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(mask, olds[path], x)

  chosen = {path: choose(path, x) for path, x in _flatten(new).items()}
  return traverse_util.unflatten_dict(chosen, sep=SEPARATOR)


def leave_out_frozen(
  tx: optax.GradientTransformation, patterns: tuple[str, ...]
) -> optax.GradientTransformation:
  """Gives an optimizer no state of whole arrays that stay as they are."""
  trained = lambda tree: split_frozen(tree, patterns)[1]

  def update(updates, state, params=None):
    return tx.update(updates, state, params and trained(params))

  return optax.GradientTransformation(lambda x: tx.init(trained(x)), update)


def check_frozen(patterns: tuple[str, ...], params: dict) -> None:
  """Raises ValueError where a pattern matches nothing, or all is frozen."""
  arrays = _flatten(params)
  for pattern in patterns:
    layers = parse_layers(pattern)
    array = pattern if layers is None else layers.pattern
    found = [path for path in arrays if matches_path(array, path)]
    if not found:
      heads = {SEPARATOR.join(path.split(SEPARATOR)[:n]) for path in arrays
               for n in range(1, path.count(SEPARATOR) + 2)}  # fmt: skip
      raise ValueError(
        f'FREEZE: {quote(pattern)} matches no parameter.'
        + did_you_mean(array, heads)
      )
    if layers is not None:
      count = min(arrays[path].shape[0] for path in found)
      if not layers.first <= layers.last < count:
        raise ValueError(
          f'FREEZE: {quote(pattern)}: expected layers from 0 to {count - 1}'
        )
  if patterns and all(is_frozen(path, patterns) for path in arrays):
    raise ValueError(f'FREEZE = {quote(patterns)} leaves nothing to train')


def count_frozen(patterns: tuple[str, ...], params: dict) -> int:
  """Returns how many numbers are in whole arrays that stay as they are."""
  kept, _ = split_frozen(params, patterns)
  return sum(x.size for x in jax.tree.leaves(kept))
