"""Programs of models that exist are those they were, to the letter.

A change that is meant to change them writes their hashes anew:
`PYTHONPATH=tests python tests/system/programs_test.py`.
"""

import functools
import hashlib
import json
import os

import jax
import numpy as np
import pytest

from atm.model.transformer import AlexaTM
from atm.parallel import sharding, xla_options
from atm.parallel.sharding import Rules
from atm.plan import decode_programs, hardware
from atm.train import optimizer, step

import conftest
import plan_runs

PATH = os.path.join(os.path.dirname(__file__), '../golden/programs.json')
# One of each family that has weights, and the paper's own.
CONFIGS = {
  'paper': dict(dtype='bfloat16', remat='save_widened'),
  'released': dict(
    ties='decoder_head', norm='uncentred', position_offset=2, token_types=1,
    logits_bias=True, unroll=2,
  ),
  'blenderbot': dict(
    ties='all', embed_scale=True, logits_bias=True, dropout=0.1, pad_id=0
  ),
}  # fmt: skip
TPU = jax.sharding.AbstractDevice('TPU v5 lite', num_cores=1, platform='tpu')


def lower_step(config) -> str:
  """Returns the text of a training step on two by four devices."""
  net, mesh = AlexaTM(config), plan_runs.FSDP()
  tx = optimizer.make_optimizer(plan_runs.ADAMW)
  state = step.abstract_state(net, tx, mesh, Rules())
  batch = conftest.batch(np.random.default_rng(0), 8, 7, 5)
  placed = sharding.shard_batch(batch, mesh, Rules())
  with sharding.use_mesh(mesh, Rules()):
    update = functools.partial(step.train_step, net, tx)
    return xla_options.jit_update(update, state).lower(state, placed).as_text()


def trace_for_tpus(config) -> str:
  """Returns the jaxpr of a loss and its gradient for a TPU."""
  net = AlexaTM(config)
  batch = conftest.batch(np.random.default_rng(0), 8, 7, 5)
  target = jax.sharding.AbstractMesh((8,), ('data',), abstract_device=TPU)
  state = step.abstract_state(
    net, optimizer.make_optimizer(plan_runs.ADAMW), plan_runs.FSDP(), Rules()
  )
  loss = lambda params: net.apply(
    {'params': params}, batch, False, method=net.loss
  )['loss'].sum()
  plain = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  with jax.sharding.use_abstract_mesh(target):
    params = jax.tree.map(plain, state.params)
    return str(jax.make_jaxpr(jax.grad(loss))(params))


def lower_decoding(config, search) -> str:
  """Returns the text of the program that decodes a batch of eight rows."""
  target = hardware.Target(plan_runs.TENSOR(), None)
  job = decode_programs.DecodeJob(
    config, None, Rules(), target, 'decode', search, plan_runs.INPUTS
  )
  return job.trace(job.batch(8)).lower().as_text()


PROGRAMS = {
  'step': lower_step,
  'step for TPUs': trace_for_tpus,
  'greedy': functools.partial(lower_decoding, search=plan_runs.GREEDY),
  'sampled': functools.partial(lower_decoding, search=plan_runs.SAMPLED),
  'beams': functools.partial(lower_decoding, search=plan_runs.BEAMS),
}


def hash_programs(name: str) -> dict[str, str]:
  """Returns {program: the hash of its text} of one of CONFIGS."""
  config = plan_runs.tiny(**CONFIGS[name])
  return {
    program: hashlib.sha256(make(config).encode()).hexdigest()[:16]
    for program, make in PROGRAMS.items()
    if name == 'paper' or program not in ('greedy', 'sampled')
  }


@pytest.mark.parametrize('name', CONFIGS)
def test_programs_are_those_they_were(name):
  with open(PATH) as f:
    known = json.load(f)
  if known['jax'] != jax.__version__:
    pytest.skip(f'texts of jax {known["jax"]}, not of {jax.__version__}')
  assert hash_programs(name) == known[name]


def main() -> None:
  """Writes the hashes of today's programs."""
  hashes = {name: hash_programs(name) for name in CONFIGS}
  with open(PATH, 'w') as f:
    json.dump({'jax': jax.__version__, **hashes}, f, indent=1)
    f.write('\n')


if __name__ == '__main__':
  main()
