"""Checks atm on one GPU, and measures it: ten minutes, and a table to paste.

- attention: cuDNN's in bfloat16 beside einsum's in float32, values and
  gradients, packed rows, of the encoder, the decoder and between both; einsum
  in bfloat16 for comparison, and the time of both. With dropout (einsum, as
  models compute it then) the device's beside the CPU's, of the same draws.
- training: five steps of a small model beside the CPU's, float32 with dropout
  and bfloat16.
- decoding: ids of a small model beside the CPU's; tokens a second of `base`.
- base, large: share of the card's peak (MFU) of a training step, and the most
  memory in use beside the compiler's forecast, which `atm plan` prints.

  make test-gpu

Needs pip install 'atm-jax[cuda12]'. Each part is a process of its own, as JAX
keeps most of the card's memory. Exit status 1: a check failed.

Not run on a GPU by us: a test runs all of it in a smaller form on a CPU, where
XLA computes what cuDNN would.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

# Rows, length, heads and their size; rows and length of base and large.
ATTENTION = dict(B=4, T=1024, H=16, K=64)
SMALL = dict(
  vocab_size=1024, d_model=128, encoder_layers=2, decoder_layers=2,
  encoder_heads=2, decoder_heads=2, encoder_ff=512, decoder_ff=512,
)  # fmt: skip
ROWS, LENGTH, NEW, STEPS = 64, 512, 128, 10
FILES = {'base': 'models/base.gin', 'large': 'models/large.gin'}
# Largest difference, as a share of the largest number. bfloat16 has 8 bits; the
# order of sums alone makes 1e-2 of the gradients of long rows.
NEAR = {'float32': 1e-3, 'bfloat16': 2e-2}


def check(what: str, error: float, limit: float) -> dict:
  """Returns a row of the table: a difference, and whether it is small."""
  return {
    'what': what,
    'figure': f'{error:.1e} (at most {limit:.0e})',
    'passed': bool(error <= limit),
  }


def far(got, want) -> float:
  """Returns the largest difference as a share of the largest number."""
  import numpy as np

  got, want = (np.asarray(x, np.float32) for x in (got, want))
  return float(np.abs(got - want).max() / np.abs(want).max())


def seconds(call, repeats: int) -> float:
  """Returns the median time of a call that has run before."""
  import jax

  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - start)
  return statistics.median(times)


# --- Attention


def attention(device) -> list[dict]:
  """Compares cuDNN's attention with einsum's, and einsum's with the CPU's."""
  import functools

  import jax
  import jax.numpy as jnp
  import numpy as np

  from atm.model import attention as attention_lib

  kernel = 'cudnn' if device.platform == 'gpu' else 'xla'
  cudnn = functools.partial(attention_lib.cudnn_attention, kernel=kernel)
  B, T, H, K = ATTENTION.values()
  rng, rows = np.random.default_rng(0), []
  draw = lambda: rng.standard_normal((B, T, H, K)).astype(np.float32)
  # Two documents and padding in each row.
  cuts = np.sort(rng.integers(1, T, (B, 2)), axis=1)
  at = np.arange(T)[None]
  ids = np.where(at < cuts[:, :1], 1, np.where(at < cuts[:, 1:], 2, 0))
  given = [draw() for _ in range(4)]
  with jax.default_device(device):
    for kind in ('encoder', 'decoder', 'cross'):
      queries = np.roll(ids, 1, 0) if kind == 'cross' else ids
      mask = attention_lib.AttentionMask(
        jnp.asarray(queries), jnp.asarray(ids), causal=kind == 'decoder'
      )
      low = [jnp.asarray(x, jnp.bfloat16) for x in given]
      # Of the same numbers, in float32.
      want = differentiate(
        attention_lib.einsum_attention, mask, [x.astype('f') for x in low]
      )()
      ways = {'cuDNN': cudnn, 'einsum': attention_lib.einsum_attention}
      for name, way in ways.items():
        call = differentiate(way, mask, low)
        errors = [far(x, y) for x, y in zip(call(), want, strict=True)]
        took = seconds(call, STEPS)
        row = check(
          f'attention, {kind}: {name} bfloat16', max(errors), NEAR['bfloat16']
        )
        row['figure'] += f', {1e3 * took:.2f} ms'
        rows.append(row)
  got, want = (
    dropped(one, given, ids) for one in (device, jax.devices('cpu')[0])
  )
  error = max(far(x, y) for x, y in zip(got, want, strict=True))
  return [*rows, check('attention, dropout: CPU', error, NEAR['float32'])]


def differentiate(compute, mask, given):
  """Returns a call for attention's output and three gradients, jitted."""
  import jax
  import jax.numpy as jnp

  *inputs, pull = given
  # Queries that see no key are padding, and nothing reads them.
  inside = mask.mask().any(-1)[:, 0, :, None, None]

  def total(*inputs):
    out = jnp.where(inside, compute(*inputs, mask), 0)
    return (out * pull).sum(dtype=jnp.float32), out

  def both(*inputs):
    gradients, out = jax.grad(total, (0, 1, 2), has_aux=True)(*inputs)
    return out, *gradients

  exact = 'highest' if pull.dtype == jnp.float32 else None
  with jax.default_matmul_precision(exact):
    compiled = jax.jit(both).lower(*inputs).compile()
  return lambda: compiled(*inputs)


def dropped(device, given, ids) -> list:
  """Returns attention with dropout and its gradients, of one device."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp

  from atm.model import attention as attention_lib

  with jax.default_device(device):
    mask = attention_lib.AttentionMask(jnp.asarray(ids), jnp.asarray(ids))
    key = jax.random.key(3)
    drop = lambda x: nn.Dropout(0.1).apply(
      {}, x, deterministic=False, rngs={'dropout': key}
    )
    compute = lambda query, key, value, mask: (
      attention_lib.dot_product_attention(query, key, value, mask, dropout=drop)
    )
    return jax.device_get(
      differentiate(compute, mask, [jnp.asarray(x) for x in given])()
    )


# --- A small model: training and decoding beside the CPU's


def place(device, config):
  """Returns (mesh, rules, model) of one device."""
  from atm.model import transformer
  from atm.parallel import mesh as mesh_lib
  from atm.parallel import sharding

  mesh = mesh_lib.make_mesh(devices=[device])
  return mesh, sharding.Rules(), transformer.AlexaTM(config)


def training(device) -> list[dict]:
  """Compares losses and gradients' norms of five steps with the CPU's."""
  import jax

  rows = []
  for dtype, dropout in (('float32', 0.1), ('bfloat16', 0.0)):
    got, want = (
      train(one, dtype, dropout) for one in (device, jax.devices('cpu')[0])
    )
    what = f'training, {dtype}' + ', dropout' * bool(dropout)
    error = max(far(x, y) for x, y in zip(got, want, strict=True))
    rows.append(check(f'{what}: CPU', error, NEAR[dtype]))
  return rows


def train(device, dtype: str, dropout: float) -> list[list[float]]:
  """Returns losses and gradients' norms of five updates of a small model."""
  import jax
  import numpy as np

  from atm.model import compiler_check
  from atm.model import config as config_lib
  from atm.parallel import sharding, xla_options
  from atm.train import optimizer
  from atm.train import step as step_lib

  config = config_lib.ModelConfig(
    **SMALL, dtype=dtype, dropout=dropout, attention_dropout=dropout
  )
  mesh, rules, net = place(device, config)
  tx = optimizer.make_optimizer(optimizer.OptimizerConfig())
  state = step_lib.init_state(
    net, tx, 0, step_lib.abstract_state(net, tx, mesh, rules)
  )
  rng, result = np.random.default_rng(1), []
  batch = compiler_check.make_batch(rng, 8, 64, 48, config.vocab_size)
  batch['objective'] = np.zeros(8, np.int32)
  exact = 'highest' if dtype == 'float32' else None
  with sharding.use_mesh(mesh, rules), jax.default_matmul_precision(exact):
    batch = sharding.shard_batch(batch, mesh, rules)
    update = lambda state, batch: step_lib.train_step(net, tx, state, batch)
    lowered = xla_options.jit_update(update, state).lower(state, batch)
    compiled = xla_options.compile_program(lowered, device)
    for _ in range(5):
      state, sums = compiled(state, batch)
      loss = sums['sum/loss'] / sums['tokens/target']
      result.append((float(loss), float(sums['grad_norm'])))
  return [*map(list, zip(*result))]


def decoding(device) -> list[dict]:
  """Compares greedy ids with the CPU's; measures tokens a second of `base`."""
  import jax

  from atm.inference import api
  from atm.model import config as config_lib

  config = config_lib.ModelConfig(**SMALL, dtype='float32')
  with jax.default_matmul_precision('highest'):
    got, want = (
      decode(random_model(one, config), 16, 4)
      for one in (device, jax.devices('cpu')[0])
    )
  other = sum(x != y for a, b in zip(got, want) for x, y in zip(a, b))
  share = other / sum(map(len, want))
  rows = [check('decoding, float32: other ids than the CPU', share, 0.02)]
  model = api.cast_to_bfloat16(random_model(device, read_config('base')))
  decode(model, LENGTH, ROWS)  # compiles
  start = time.perf_counter()
  decode(model, LENGTH, ROWS)
  rate = ROWS * NEW / (time.perf_counter() - start)
  what = f'decoding, base: {ROWS} rows of {LENGTH}, {NEW} new'
  return [*rows, {'what': what, 'figure': f'{rate:,.0f} tokens/s'}]


def random_model(device, config):
  """Returns a Model with random parameters on a device."""
  import flax.linen as nn
  import jax

  from atm.inference import api
  from atm.model import parameters

  mesh, rules, net = place(device, config)
  placed = jax.sharding.NamedSharding(mesh, jax.P())
  params = jax.jit(
    lambda: nn.unbox(parameters.init_params(net, 0)), out_shardings=placed
  )()
  return api.Model(config, params, None, mesh, rules, 0)


def decode(model, length: int, rows: int) -> list[list[int]]:
  """Returns NEW ids of each of some random inputs."""
  import numpy as np

  from atm.inference import sampling

  draw = np.random.default_rng(2).integers
  inputs = draw(5, model.config.vocab_size, (rows, length)).tolist()
  config = sampling.Config(max_tokens=NEW, min_tokens=NEW)
  made = model.complete(inputs, config=config, batch_size=rows)
  return [list(map(int, one.ids)) for (one,) in made]


# --- base and large


def read_config(name: str):
  """Returns the model's sizes, as gin/models/ has them."""
  import gin
  from atm.cli import gin_config, main

  run, *settings = main.parse_arguments(
    ['pretrain', f'--gin_file={FILES[name]}', '--gin.MODEL_DIR="unused"']
  )
  with gin.unlock_config():
    gin.clear_config()
    gin_config.apply_config(*settings, run)
    return gin.get_configurable('model.Config')()


def measure(name: str, device) -> list[dict]:
  """Returns the step time and MFU of a model, and its memory."""
  import jax
  import numpy as np

  from atm.model import compiler_check, flops
  from atm.parallel import device_memory, peak_flops, sharding, xla_options
  from atm.train import optimizer
  from atm.train import step as step_lib

  config = read_config(name)
  mesh, rules, net = place(device, config)
  tx = optimizer.make_optimizer(optimizer.OptimizerConfig())
  abstract = step_lib.abstract_state(net, tx, mesh, rules)
  state = step_lib.init_state(net, tx, 0, abstract)
  batch = compiler_check.make_batch(
    np.random.default_rng(1), ROWS, LENGTH, LENGTH, config.vocab_size
  )
  batch['objective'] = np.zeros(ROWS, np.int32)
  with sharding.use_mesh(mesh, rules):
    batch = sharding.shard_batch(batch, mesh, rules)
    update = lambda state, batch: step_lib.train_step(net, tx, state, batch)
    lowered = xla_options.jit_update(update, state).lower(state, batch)
    compiled = xla_options.compile_program(lowered, device)
    times = []
    for _ in range(STEPS + 3):
      start = time.perf_counter()
      state, sums = compiled(state, batch)
      jax.block_until_ready(sums)
      times.append(time.perf_counter() - start)
  took = statistics.median(times[3:])
  rate = flops.train_flops(config, ROWS, LENGTH, LENGTH) / took
  peak = peak_flops.peak_flops() / jax.device_count()
  share = f', MFU {rate / peak:.1%}' if peak else ', peak FLOP/s not known'
  forecast = compiled.memory_analysis().peak_memory_in_bytes
  used = (device.memory_stats() or {}).get('peak_bytes_in_use')
  text = device_memory.format_bytes
  # What the initial state and the compiler's trials took counts, too.
  memory = f'{text(used)} in use' if used else 'memory in use not known'
  return [
    {
      'what': f'{name}: a step of {ROWS} x ({LENGTH} + {LENGTH})',
      'figure': f'{took:.3f} s, {rate / 1e12:.3g} TFLOP/s{share}',
      'passed': bool(np.isfinite(float(sums['sum/loss']))),
    },
    {
      'what': f'{name}: memory at the peak',
      'figure': f'{memory}, forecast {text(forecast)}',
      **({'passed': used < 1.25 * forecast} if used else {}),
    },
  ]


# --- All of it

PARTS = {
  'attention': attention,
  'training': training,
  'decoding': decoding,
  **{name: lambda device, name=name: measure(name, device) for name in FILES},
}


def work(part: str, platform: str) -> None:
  """Runs one part; prints its rows as a line of JSON."""
  import jax

  from atm.parallel import xla_options

  xla_options.set_flags()
  xla_options.set_compilation_cache()
  try:
    device = jax.devices(platform)[0]
  except RuntimeError:
    sys.exit(f'no {platform} here: JAX has {jax.default_backend()}')
  facts = {'device': device.device_kind, 'jax': jax.__version__}
  with contextlib.redirect_stdout(sys.stderr):
    rows = PARTS[part](device)
  print(json.dumps({**facts, 'rows': rows}))


def main() -> int:
  """Runs all parts; returns 1 where a check failed."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--only', nargs='+', choices=[*PARTS], default=[*PARTS])
  parser.add_argument('--platform', choices=['gpu', 'cpu'], default='gpu')
  parser.add_argument('--worker', choices=[*PARTS])
  args = parser.parse_args()
  if args.worker:
    work(args.worker, args.platform)
    return 0
  failed, begun = False, time.time()
  for number, part in enumerate(args.only):
    command = [
      sys.executable, os.path.abspath(__file__), '--worker', part,
      '--platform', args.platform,
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE)
    if done.returncode:
      print(f'| {part} | ended with status {done.returncode} | FAILED |')
      failed = True
      continue
    found = json.loads(done.stdout.splitlines()[-1])
    if number == 0:
      print(f'{found["device"]}, jax {found["jax"]}\n')
      print('| check | figure | |\n| --- | --- | --- |')
    for row in found['rows']:
      verdict = {True: 'passed', False: 'FAILED', None: ''}[row.get('passed')]
      failed |= verdict == 'FAILED'
      print(f'| {row["what"]} | {row["figure"]} | {verdict} |', flush=True)
  print(f'\n{(time.time() - begun) / 60:.1f} minutes')
  return int(failed)


if __name__ == '__main__':
  sys.exit(main())
