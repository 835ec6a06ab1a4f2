"""Compares what XLA compiles with the same program without its fusions.

jaxlib 0.10.2 computed rows of products wrongly on CPUs, without a word. A run
that computes compiles two small programs of odd sizes as it compiles its own,
and ends where they disagree with their plain forms. What passed is remembered
beside the compiled programs.

B batch, S source and T target positions, V vocabulary.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jaxlib
import numpy as np

from atm import fileio
from atm.model import parameters, quantized
from atm.model.attention import KERNELS
from atm.model.config import ModelConfig
from atm.model.transformer import AlexaTM
from atm.parallel import distributed, xla_options

# More than 2^15 positions, heads three wide, nothing that divides another.
ROWS, SOURCE, TARGET = 4691, 7, 9
SMALL_ROWS = 40_000
SIZES = dict(
  vocab_size=97, d_model=9, encoder_layers=1, decoder_layers=1,
  encoder_heads=3, decoder_heads=1, encoder_ff=7, decoder_ff=5, positions=11,
  loss_chunk=5,
)  # fmt: skip
# What else of a run's model the small one has.
KEPT = (
  'ties', 'embed_scale', 'logits_bias', 'norm', 'norm_eps', 'norm_float32',
  'scores_float32', 'dtype', 'remat', 'attention', 'activation',
  'embedding_norm', 'position_embedding',
)  # fmt: skip
# Those of them that the release does not know are left out.
PLAIN_OPTIONS = {
  xla_options.YNN_FUSIONS: '',
  'xla_cpu_use_fusion_emitters': False,
  'xla_backend_optimization_level': 0,
}
# Of the largest value. Without fusions float32 differs by 5e-5 on CPUs;
# accelerators multiply float32 in fewer bits.
TOLERANCES = {('cpu', 'float32'): 2e-3}
TOLERANCE = 0.1
_passed: set[str] = set()


@dataclasses.dataclass
class CheckedProgram:
  """A function of arrays; `plain` is its form in float32 for accelerators."""

  name: str
  call: Callable
  plain: Callable
  arguments: tuple


def check_compiler(
  config: ModelConfig,
  trains: bool = True,
  options: Mapping | None = None,
  int8: bool = False,
) -> None:
  """Compares small programs with their plain forms, once for a compiler.

  To be called by all processes together.

  Args:
    config: of the run's model; the small one has its dtype, ties, norm, ...
    trains: compare the loss and its gradients; False: the loss.
    options: the run's own, see `xla_options.compile_program`.
    int8: the model's matrices are in it, and so are the small one's.

  Raises:
    ValueError: they differ; names the release and what to do.
    distributed.OtherProcessError: in another process.
  """
  check = functools.partial(
    _check_once, config, trains, dict(options or {}), int8
  )
  distributed.run_main_process_first(check)


def _check_once(
  config: ModelConfig, trains: bool, options: dict, int8: bool
) -> None:
  device = jax.local_devices()[0]
  if int8:
    options |= xla_options.list_int8_options(device.platform)
  small = shrink_config(config)
  facts = {
    **describe_compiler(device),
    'options': {name: str(value) for name, value in options.items()},
    'model': dataclasses.asdict(small),
    'trains': trains,
    **({'int8': True} if int8 else {}),
  }
  key = fileio.hash_json(facts)
  path = verdict_path(key)
  if key in _passed or os.path.exists(path):
    return
  dtype = 'int8' if int8 else small.dtype
  for program in make_programs(small, trains, device, int8):
    check_program(program, device, options, dtype)
  _passed.add(key)
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fileio.write_json(path, facts)
  except OSError:
    pass  # the next process checks again


def describe_compiler(device) -> dict:
  """Returns what a verdict holds for: releases, device, processor, flags."""
  processor = ''
  if device.platform == 'cpu' and os.path.exists('/proc/cpuinfo'):
    with open('/proc/cpuinfo') as f:
      flags = (x for x in f if x.startswith(('flags', 'Features')))
      processor = next(flags, '').strip()
  return {
    'jaxlib': jaxlib.__version__,
    'platform': device.platform,
    'kind': device.device_kind,
    'runtime': device.client.platform_version,
    'processor': processor,
    'flags': [os.environ.get(x) for x in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')],
  }


def verdict_path(key: str) -> str:
  """Returns where a verdict is kept: beside the compiled programs."""
  folder = jax.config.jax_compilation_cache_dir
  if not folder or '://' in folder:
    folder = os.path.expanduser(xla_options.CACHE_FOLDER)
  return os.path.join(folder, f'atm-compiler-passed-{key[:32]}.json')


# --- The programs


def shrink_config(config: ModelConfig) -> ModelConfig:
  """Returns odd sizes with a config's numerics."""
  kept = {name: getattr(config, name) for name in KEPT}
  if kept['attention'] in KERNELS:  # kernels of even sizes
    kept['attention'] = 'auto'
  return ModelConfig(**SIZES, **kept)


def make_programs(
  small: ModelConfig, trains: bool, device, int8: bool = False
) -> list[CheckedProgram]:
  """Returns the programs: a model's step, and products with a small matrix."""
  plain = dataclasses.replace(small, dtype='float32', attention='einsum')
  draws = np.random.default_rng(0)
  params = draw_params(small, draws)
  if int8:
    params = jax.device_get(quantized.quantize_params(params))
  matrix = draws.standard_normal((3, 3), np.float32)
  vectors = draws.standard_normal((SMALL_ROWS, 3), np.float32)
  # Each was computed wrongly by a release that computed the other rightly.
  sums, squares = (
    differentiate(jax.vmap(function, (None, 0)), False)
    for function in (
      lambda matrix, row: (matrix @ row).sum(),
      lambda matrix, row: ((matrix @ row) ** 2).sum(),
    )
  )
  step, plain_step = (
    differentiate(functools.partial(row_losses, AlexaTM(sizes)), trains)
    for sizes in (small, plain)
  )
  batch = make_batch(draws, ROWS, SOURCE, TARGET, small.vocab_size)
  return [
    CheckedProgram('sums of a small product', sums, sums, (matrix, vectors)),
    CheckedProgram(
      'rows of a small product', squares, squares, (matrix, vectors)
    ),
    CheckedProgram('a small model', step, plain_step, (params, batch)),
  ]


def draw_params(config: ModelConfig, draws: np.random.Generator) -> dict:
  """Returns random parameters, biases and norms among them."""
  boxed = jax.eval_shape(lambda: parameters.init_params(AlexaTM(config), 0))
  return jax.tree.map(
    lambda x: 0.3 * draws.standard_normal(x.shape, np.float32),
    nn.unbox(boxed),
  )


def differentiate(rows: Callable, trains: bool) -> Callable:
  """Returns a function of the same arguments: (rows, gradients by the first).

  Without `trains` the gradients are left out.
  """

  def total(first, second):
    values = rows(first, second)
    return values.sum(), values

  def both(first, second):
    gradients, values = jax.grad(total, has_aux=True)(first, second)
    return values, gradients

  return both if trains else lambda first, second: (rows(first, second), {})


def row_losses(model: AlexaTM, params: dict, batch: dict) -> jax.Array:
  """Returns the loss of every batch row, [B]."""
  variables = {'params': params}
  return model.apply(variables, batch, False, method=model.loss)['loss']


def make_batch(
  draws: np.random.Generator, B: int, S: int, T: int, V: int
) -> dict[str, np.ndarray]:
  """Returns a random batch with ragged rows, as `batches.Batches` makes."""

  def side(length):
    n = draws.integers(1, length + 1, (B, 1))
    inside = (np.arange(length) < n).astype(np.int32)
    return draws.integers(3, V, inside.shape, np.int32) * inside, inside

  source, source_segments = side(S)
  target, segments = side(T)
  return {
    'encoder_input_tokens': source,
    'encoder_segment_ids': source_segments,
    'decoder_input_tokens': np.roll(target, 1, 1) * segments,
    'decoder_target_tokens': target,
    'decoder_segment_ids': segments,
    'decoder_loss_weights': segments.astype(np.float32),
  }


# --- The comparison


def check_program(
  program: CheckedProgram, device, options: dict, dtype: str
) -> None:
  """Raises ValueError where a program disagrees with its plain form."""
  arguments = jax.device_put(program.arguments, device)
  lowered = jax.jit(program.call).lower(*arguments)
  compiled = xla_options.compile_program(lowered, device, options)
  got = jax.device_get(compiled(*arguments))
  if device.platform == 'cpu':
    plain = xla_options.compile_known(lowered, PLAIN_OPTIONS)
    want = jax.device_get(plain(*arguments))
  else:
    want = run_plain(program, device)
  tolerance = TOLERANCES.get((device.platform, dtype), TOLERANCE)
  if wrong := count_wrong(got, want, tolerance):
    raise ValueError(
      f'jaxlib {jaxlib.__version__} computes wrongly on {device.platform} '
      f'({device.device_kind}): {wrong[0]:,} of {wrong[1]:,} numbers of '
      f'{program.name} are not those of its plain form; {advise(device)}'
    )


def run_plain(program: CheckedProgram, device):
  """Runs the plain form in float32: on the CPU, or where there is none here."""
  try:
    device, options = jax.local_devices(backend='cpu')[0], PLAIN_OPTIONS
  except RuntimeError:  # JAX_PLATFORMS names others only
    options = {}
  arguments = jax.device_put(program.arguments, device)
  with jax.default_matmul_precision('float32'):
    lowered = jax.jit(program.plain).lower(*arguments)
  plain = xla_options.compile_known(lowered, options)
  return jax.device_get(plain(*arguments))


def count_wrong(got, want, tolerance: float) -> tuple[int, int] | None:
  """Counts numbers of (rows, gradients) that differ; None where none does."""
  wrong = total = 0
  for part, reference in zip(got, want, strict=True):
    leaves = jax.tree.leaves(reference)
    # A gradient that is zero but for rounding is measured by the others.
    least = 0.01 * max((np.abs(x).max() for x in leaves), default=0)
    for x, y in zip(jax.tree.leaves(part), leaves, strict=True):
      x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
      near = np.abs(x - y) <= tolerance * max(np.abs(y).max(), least)
      wrong, total = wrong + int((~near).sum()), total + x.size
  return (wrong, total) if wrong else None


def advise(device) -> str:
  """Returns what a user can do about a compiler that computes wrongly."""
  release = jaxlib.__version__
  another = (
    'install another release, such as that of requirements/lock-*.txt: '
    f"pip install -U 'jax!={release}' 'jaxlib!={release}'"
  )
  if device.platform == 'cpu' and release in xla_options.BROKEN_FUSIONS:
    flag = f'--{xla_options.YNN_FUSIONS}='
    return f"{another}; or set XLA_FLAGS='{flag}' before JAX starts"
  return another
