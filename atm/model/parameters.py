"""Abstract parameters and checks of their sizes against the mesh."""

from __future__ import annotations

import jax
import optax

from atm.parallel.sharding import Rules, check_divides
from atm.train import step as step_lib


def abstract_params(model, mesh, rules: Rules) -> dict:
  """`abstract_state(...).params`, without an optimizer.

  Raises:
    ValueError: a size does not divide by the mesh.
  """
  check_mesh(mesh, rules, model.config)
  boxed = jax.eval_shape(lambda: step_lib._init(model, optax.identity(), 0))
  return step_lib._placed(boxed, mesh, rules).params


def check_mesh(mesh, rules: Rules, config) -> None:
  """Raises ValueError where a model.Config's size does not divide."""
  bound = lambda name: (f'Config.{name}', getattr(config, name))
  width = bound('d_model')
  sizes = {'embed': width, 'hidden': width, 'vector': width}
  check_divides(mesh, rules, {**sizes, 'vocab': bound('vocab_size')})
  for name in ('positions', 'token_types', 'position_offset'):
    check_divides(mesh, rules, {'position': bound(name)})
  for stack in ('encoder', 'decoder'):
    sizes = {'heads': 'heads', 'mlp': 'ff', 'layers': 'layers'}
    named = {axis: bound(f'{stack}_{size}') for axis, size in sizes.items()}
    check_divides(mesh, rules, named)
