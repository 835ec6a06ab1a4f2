"""The model's parameters: made, described without arrays, fitted to a mesh."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from atm.parallel.sharding import Rules, check_divides


def init_params(model, seed: int) -> dict:
  """Initialises an AlexaTM: float32 arrays in `nn.Partitioned` boxes."""
  return _init_params(model, jax.random.key(seed))


# Under `jax.jit` a model is traced once for all who ask for its parameters or
# their shapes; `inline` leaves the programs of those who call as they were.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _init_params(model, key: jax.Array) -> dict:
  """Initialises an AlexaTM by a random key."""
  ids = jnp.ones((1, 1), jnp.int32)  # shapes of inputs change no parameter
  return model.init(key, ids, ids, enable_dropout=False)['params']


def abstract_params(model, mesh, rules: Rules) -> dict:
  """Returns an AlexaTM's parameters as jax.ShapeDtypeStruct with shardings.

  Raises ValueError where a size does not divide by the mesh.
  """
  check_mesh(mesh, rules, model.config)
  boxed = jax.eval_shape(lambda: init_params(model, 0))
  return with_shardings(boxed, mesh, rules)


def is_box(x) -> bool:
  """Tells whether a leaf is an array in a box of logical axes."""
  return isinstance(x, nn.Partitioned)


def with_shardings(
  boxed, mesh, rules: Rules, axes_of: Callable = lambda path, box: box.names
):
  """Turns abstract arrays in boxes into jax.ShapeDtypeStruct with shardings.

  Arrays without a box are replicated; `axes_of` returns the logical axes of one
  in a box from its (path, box).
  """

  def leaf(path, x):
    logical = axes_of(path, x) if is_box(x) else ()
    x = nn.unbox(x)
    sharding = NamedSharding(mesh, rules.spec(*logical))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree_util.tree_map_with_path(leaf, boxed, is_leaf=is_box)


def check_mesh(mesh, rules: Rules, config) -> None:
  """Raises ValueError where a size of a ModelConfig does not divide."""
  bound = lambda name: (f'Config.{name}', getattr(config, name))
  width = bound('d_model')
  sizes = {'embed': width, 'hidden': width, 'vector': width}
  check_divides(mesh, rules, {**sizes, 'vocab': bound('vocab_size')})
  for name in (
    'positions', 'token_types', 'position_offset', 'encoder_position_offset'
  ):  # fmt: skip
    check_divides(mesh, rules, {'position': bound(name)})
  for stack in ('encoder', 'decoder')[not config.has_encoder :]:
    sizes = {'heads': 'heads', 'mlp': 'ff', 'layers': 'layers'}
    named = {axis: bound(f'{stack}_{size}') for axis, size in sizes.items()}
    check_divides(mesh, rules, named)
