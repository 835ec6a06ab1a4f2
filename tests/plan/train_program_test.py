"""The step that is planned: its FLOPs and its batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atm.data import counter_rng, objectives, packing, task_registry
from atm.model import flops as flops_lib
from atm.model.lora import LoraConfig
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.plan import train_program

from conftest import tiny
from plan_runs import FSDP, run

B, S, T = 16, 20, 12


def test_remat_is_of_the_hardware_not_of_the_model():
  """Fault seen: what remat computes again counted as the model's."""
  flops = flops_lib.train_flops(tiny(), B, S, T)
  for micro_batches in (1, 2):
    given = run(
      lengths={'inputs': S, 'targets': T}, batch_size=B,
      model_config=tiny(remat='full'), micro_batches=micro_batches,
    )  # fmt: skip
    job = train_program.TrainStep.of(given, FSDP())
    assert job.counted_flops() == flops
    found = train_program.hardware_flops(job.trace().jaxpr.jaxpr)
    assert 1.2 < found['hardware_flops'] / flops < 4 / 3
    assert found['kernel_flops'] == 0


def test_splash_kernels_are_counted():
  """Forward of two products, backward as one kernel of five.

  Fault seen: one turn of the grid counted.
  """
  from atm.model.attention import AttentionMask, splash_attention

  b, L, H, K = 2, 2048, 3, 128  # two blocks each way
  x = jnp.zeros((b, L, H, K))
  ids = jnp.ones((b, L), jnp.int32)
  out = lambda *qkv: splash_attention(*qkv, AttentionMask(ids, ids)).sum()
  one = 2 * b * H * L * L * K
  count = lambda f: flops_lib.jaxpr_flops(jax.make_jaxpr(f)(x, x, x).jaxpr)
  assert count(out) == 2 * one
  gradient = jax.grad(out, argnums=(0, 1, 2))
  rows = 2 * b * H * L * K  # of out and its slope, beside the kernels
  assert count(gradient) == (2 + 5) * one + rows
  traced = jax.make_jaxpr(gradient)(x, x, x).jaxpr
  assert flops_lib.jaxpr_flops(traced, kernels=False) == rows


def test_a_batch_is_that_of_the_data():
  """Names, shapes and dtypes of an objective's rows, and its number, as
  `batches.make_examples` gives it. Fault seen: weights as integers."""
  tokens = np.arange(3, 3 + 4 * 20, dtype=np.int32).reshape(4, 20)
  length, ids = np.full(4, 20), packing.SpecialIds(0, 1, 2, 90, 91)
  keys = counter_rng.make_key(
    0, np.zeros(4, np.int64), np.zeros(4, int), np.arange(4)
  )
  rows = objectives.Denoise().examples(tokens, length, keys, ids, 32, 24)
  found = {k: (v.shape, v.dtype) for k, v in rows.items()}
  found['objective'] = (4,), np.int32
  sizes = task_registry.Lengths(32, 24)
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  like = train_program.abstract_batch(4, sizes, mesh, Rules(), packed=True)
  assert found == {k: (v.shape, v.dtype) for k, v in like.items()}
  alone = train_program.abstract_batch(4, sizes, mesh, Rules(), packed=False)
  assert like.keys() - alone.keys() == {
    'encoder_positions',
    'decoder_positions',
  }


def test_logits_of_the_prompt_are_planned():
  """Fault seen: `atm plan` did not know PROMPT_LOSS."""
  stack = dict(architecture='decoder_only', encoder_layers=0)
  settings = dict(
    lengths={'inputs': S, 'targets': T}, batch_size=B,
    model_config=tiny(**stack),
  )  # fmt: skip
  counts = []
  for prompt_loss in (False, True):
    given = run(**settings, prompt_loss=prompt_loss)
    job = train_program.TrainStep.of(given, FSDP())
    counts.append(job.counted_flops())
    flops = flops_lib.train_flops(
      tiny(**stack), B, S, T, prompt_loss=prompt_loss
    )
    assert counts[-1] == pytest.approx(flops, rel=0.05)
  config = tiny()
  assert counts[1] - counts[0] == 6 * B * S * config.d_model * config.vocab_size
  with pytest.raises(ValueError, match="PROMPT_LOSS = True.*'prefix_lm'"):
    given['model_config'] = tiny(**stack | {'architecture': 'prefix_lm'})
    train_program.TrainStep.of(given, FSDP())


def test_a_step_of_adapters_forms_no_gradient_of_the_base():
  """Faults: gradients of the base planned for; its bytes left out."""
  settings = dict(
    lengths={'inputs': S, 'targets': T}, batch_size=B,
    model_config=tiny(remat='full'),
  )  # fmt: skip
  lora = LoraConfig(rank=1, targets=('encoder/.*query',))
  given = run(**settings, lora=lora, lora_base_dtype='bfloat16')
  job = train_program.TrainStep.of(given, FSDP())
  flops = flops_lib.train_flops(tiny(), B, S, T, adapted=True)
  # Adapters of a thirty-second of the width add a little; the first layer's
  # inputs have no gradient.
  assert 0.95 < job.counted_flops() / flops < 1.05
  whole = train_program.TrainStep.of(run(**settings), FSDP())
  added = 2 * (32 + 32)
  assert job.params == whole.params + added
  moments = sum(x.size for x in jax.tree.leaves(job.state.opt_state))
  assert moments < 2 * added + 10
  assert job.base['lm_head'].dtype == jnp.bfloat16
