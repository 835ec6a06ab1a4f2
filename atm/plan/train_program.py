"""The training step as a run would make it, of abstract arrays; its FLOPs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax.interpreters import partial_eval

from atm.data import task_registry
from atm.model import config as config_lib
from atm.model import flops, transformer
from atm.parallel import sharding, xla_options
from atm.parallel.sharding import NamedSharding, Rules
from atm.train import freezing, lora_base, optimizer, step


@dataclasses.dataclass(frozen=True)
class TrainStep:
  """A run's training step, the one that trains all parameters."""

  config: config_lib.ModelConfig  # of the model
  tx: optax.GradientTransformation
  # Arguments of `step.train_step`: abstract, with shardings; and named ones.
  state: step.State
  batch: dict
  options: dict
  mesh: jax.sharding.Mesh
  rules: Rules
  # With adapters: the parameters that they are of.
  base: dict | None = None

  @classmethod
  def of(cls, given: Mapping, mesh: jax.sharding.Mesh) -> TrainStep:
    """Makes the step of a run, given the settings of `train_plan.plan`."""
    config, rules = given['model_config'], given['rules']
    if freezes := given['freeze_encoder_steps'] > 0:
      config.check_encoder('FREEZE_ENCODER_STEPS')
    if given['prompt_loss']:
      config.check_prompt_loss()
    tx = optimizer.make_optimizer(
      given['optimizer_config'], freezes, given['freeze']
    )
    lengths = task_registry.Lengths.of(given['lengths'])
    B, packed = given['batch_size'], given['packed']
    net, lora = transformer.AlexaTM(config), given['lora']
    state = step.abstract_state(net, tx, mesh, rules, lora)
    freezing.check_frozen(given['freeze'], state.params)
    base = lora and lora_base.abstract_base(
      net, mesh, rules, given['lora_base_dtype']
    )
    batch = abstract_batch(B, lengths, mesh, rules, packed)
    names = (
      'seed', 'z_loss', 'micro_batches', 'lora', 'freeze', 'prompt_loss',
    )  # fmt: skip
    options = {name: given[name] for name in names}
    return cls(config, tx, state, batch, options, mesh, rules, base)

  @property
  def params(self) -> int:
    """Number of parameters, those of adapters included."""
    return self.trained + sum(x.size for x in jax.tree.leaves(self.base))

  @property
  def trained(self) -> int:
    """Number of parameters that are trained."""
    return sum(x.size for x in jax.tree.leaves(self.state.params))

  @property
  def arguments(self) -> tuple:
    """What the step is called with."""
    return self.state, self.batch, *(() if self.base is None else (self.base,))

  def trace(self) -> jax.stages.Traced:
    """Traces the step as training jits it; takes a second or two."""
    with sharding.use_mesh(self.mesh, self.rules):
      jitted = xla_options.jit_update(self._update(self.config), self.state)
      return jitted.trace(*self.arguments)

  def counted_flops(self) -> float:
    """Counts model FLOPs over the step's traced products."""
    # Traced without remat and with plain attention, which compute nothing
    # twice, and as one device would run it.
    plain = dataclasses.replace(self.config, remat='none', attention='einsum')
    arguments = jax.tree.map(without_sharding, self.arguments)
    traced = jax.make_jaxpr(self._update(plain))(*arguments)
    return flops.jaxpr_flops(remove_dead_code(traced.jaxpr))

  def _update(self, config: config_lib.ModelConfig):
    net = transformer.AlexaTM(config)
    return functools.partial(
      step.train_step, net, self.tx, frozen=False, **self.options
    )


def abstract_batch(
  B: int, lengths: task_registry.Lengths, mesh, rules: Rules, packed: bool
) -> dict:
  """Returns shapes of a batch of `batches.Batches`, placed as in training."""
  placed = NamedSharding(mesh, rules.spec('batch'))
  like = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct(
    shape, dtype, sharding=placed
  )
  batch = {'objective': like(B)}
  # Rows of several documents have positions of their own.
  kinds = ('input_tokens', 'segment_ids', *(('positions',) * packed))
  for side, length in zip(('encoder', 'decoder'), lengths.both):
    for kind in kinds:
      batch[f'{side}_{kind}'] = like(B, length)
  batch['decoder_target_tokens'] = like(B, lengths.targets)
  weights = like(B, lengths.targets, dtype=jnp.float32)
  return batch | {'decoder_loss_weights': weights}


def without_sharding(x) -> jax.ShapeDtypeStruct:
  """Returns an abstract array's shape and dtype alone."""
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def hardware_flops(jaxpr) -> dict[str, float]:
  """Counts FLOPs that are computed, remat's included; in kernels, of them."""
  jaxpr = remove_dead_code(jaxpr)
  everything = flops.jaxpr_flops(jaxpr)
  outside = flops.jaxpr_flops(jaxpr, kernels=False)
  return {'hardware_flops': everything, 'kernel_flops': everything - outside}


def remove_dead_code(jaxpr):
  """Removes what nothing reads from a jaxpr, as XLA does."""
  return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]
