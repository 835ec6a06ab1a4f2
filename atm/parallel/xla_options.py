"""XLA's compiler options by platform and device kind, and its cache."""

import os
import re
from collections.abc import Callable, Mapping

import jax
import jaxlib

from atm.messages import did_you_mean, quote
from atm.parallel import compilation_cache

# Parameter all-gathers and gradient reduce-scatters overlap with computation.
# libtpu 0.0.42 and jaxlib 0.10.2 know the names; neither a TPU nor a GPU was
# at hand to time them.
PLATFORM_OPTIONS = {
  # A quarter less memory than the concurrent schedule, in the same time on two
  # cores.
  'cpu': {'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED'},
  'tpu': {
    'xla_enable_async_all_gather': True,
    'xla_tpu_enable_async_collective_fusion': True,
    'xla_tpu_enable_async_collective_fusion_fuse_all_gather': True,
    'xla_tpu_enable_async_collective_fusion_multiple_steps': True,
    'xla_tpu_overlap_compute_collective_tc': True,
    'xla_tpu_enable_data_parallel_all_reduce_opt': True,
    'xla_tpu_data_parallel_opt_different_sized_ops': True,
  },
  'gpu': {
    'xla_gpu_enable_latency_hiding_scheduler': True,
    'xla_gpu_enable_pipelined_all_gather': True,
    'xla_gpu_enable_pipelined_reduce_scatter': True,
    'xla_gpu_enable_pipelined_all_reduce': True,
    'xla_gpu_enable_while_loop_double_buffering': True,
  },
}
# A CPU's fusions with kernels of YNNPACK. jaxlib 0.10 computes rows of some
# wrongly; 0.10.2 and 0.11.0 crash in others, too, and setup.py excludes them.
YNN_FUSIONS = 'xla_cpu_experimental_ynn_fusion_type'
BROKEN_FUSIONS = ('0.10.0', '0.10.1', '0.10.2', '0.11.0')
# Of programs with int8 products. On a CPU YNNPACK alone has kernels for them:
# else XLA writes the weights out in int32, and takes up to twelve times as
# long. A product by itself is none of the fusions that are broken.
INT8_OPTIONS = {YNN_FUSIONS: 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT'}
CACHE_FOLDER = '~/.cache/atm/xla'
VMEM_LIMIT = 'xla_tpu_scoped_vmem_limit_kib'
_UNKNOWN = re.compile(r"No such compile option: '(\w+)'")
_VMEM = re.compile(
  r'memory space vmem.*?%([\w.-]+) = .*size (\S+) and limit (\S+)', re.S
)
# By device kind, in addition: KiB of its vector memory that one fusion may
# take. Products in larger tiles than libtpu's own limit allows take 84% to 90%
# of the cycles, by its own count for 20b, and compile for minutes more; v5e's
# take more again at 98304. There is room then for reduce-scatters inside of
# products, too, which v4 has not: it compiles them to 16.3 of 16 MiB.
KIND_OPTIONS = {
  kind: {
    VMEM_LIMIT: kib,
    'xla_enable_async_reduce_scatter_fusion': True,
    'xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter': True,
  }
  for kind, kib in {
    'TPU v5 lite': '65536', 'TPU v5e': '65536',
    'TPU v5': '32768', 'TPU v5p': '32768',
    'TPU v6 lite': '98304', 'TPU v6e': '98304',
    'TPU7x': '49152',
  }.items()
}  # fmt: skip


def check_options(name: str, options) -> dict | None:
  """Returns options of XLA by name, or None; raises ValueError otherwise."""
  if options is None:
    return None
  if not isinstance(options, Mapping):
    raise ValueError(
      f"{name} = {quote(options)}: expected {{'xla_...': value}}"
    )
  for option, value in options.items():
    if not isinstance(option, str) or not isinstance(
      value, bool | str | int | float
    ):
      raise ValueError(
        f'{name}[{quote(option)}] = {quote(value)}: expected the name of an '
        'option, and True, False, a number or a text'
      )
  return dict(options)


def jit_update(update: Callable, state):
  """Jits update(state, batch) -> (the next state, metrics) as training runs it.

  `state` is a pytree of arrays, or of shapes with shardings.
  """
  # Donated, so that the next state takes its memory, and its shardings.
  placed = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(update, donate_argnums=0, out_shardings=(placed, None))


def compile_program(
  lowered: jax.stages.Lowered, device, changes: Mapping | None = None
) -> jax.stages.Compiled:
  """Compiles a program with the options of its devices.

  Args:
    lowered: of a jitted function.
    device: one of its devices; only the platform and kind are read.
    changes: options added to PLATFORM_OPTIONS and KIND_OPTIONS, or replacing
      them.

  Raises:
    ValueError: XLA does not know an option, or not this value of it; or an
      operation takes more vector memory than the options let it.
  """
  known = PLATFORM_OPTIONS.get(device.platform, {}) | KIND_OPTIONS.get(
    device.device_kind, {}
  )
  options = {**known, **(changes or {})}
  try:
    return compile_known(lowered, options, changes or ())
  except jax.errors.JaxRuntimeError as e:
    if full := _VMEM.search(str(e)):
      given = f' = {options[VMEM_LIMIT]}' if VMEM_LIMIT in options else ''
      raise ValueError(
        f'XLA_OPTIONS: {VMEM_LIMIT}{given}: {full[1]} takes {full[2]} of a '
        f"TPU's vector memory, and may have {full[3]}"
      ) from None
    complaint = str(e).partition('INVALID_ARGUMENT: ')[2]
    unknown = _UNKNOWN.match(complaint)
    if not unknown and 'setting option' not in complaint:
      raise
    raise ValueError(
      f'XLA_OPTIONS = {dict(changes or {})!r}: XLA says: {complaint}'
      + (did_you_mean(unknown[1], known) if unknown and known else '')
      + (
        f' Is it for other devices than {device.platform}? XLA_OPTIONS=None '
        'leaves it out'
        if unknown
        else ''
      )
    ) from None


def compile_known(
  lowered: jax.stages.Lowered, options: Mapping, needed=()
) -> jax.stages.Compiled:
  """Compiles with those of the options that this release knows.

  Raises JaxRuntimeError where it does not know one that is `needed`.
  """
  options = dict(options)
  while True:
    try:
      return lowered.compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as e:
      unknown = _UNKNOWN.search(str(e))
      if not unknown or unknown[1] in needed or unknown[1] not in options:
        raise
      del options[unknown[1]]


def list_int8_options(platform: str) -> dict:
  """Returns compiler options for programs with int8 products."""
  # Other releases use YNNPACK's kernels as they are.
  broken = jaxlib.__version__ in BROKEN_FUSIONS
  return dict(INT8_OPTIONS) if platform == 'cpu' and broken else {}


def set_flags() -> None:
  """Turns fusions off where the release breaks them; before JAX starts.

  A user's own value of the flag stands. XLA ends a process over a flag that it
  does not know, these releases know it.
  """
  flags = os.environ.get('XLA_FLAGS', '')
  if jaxlib.__version__ in BROKEN_FUSIONS and YNN_FUSIONS not in flags:
    os.environ['XLA_FLAGS'] = f'{flags} --{YNN_FUSIONS}='.strip()


def set_compilation_cache() -> None:
  """Keeps compiled programs across runs, by default below ~/.cache/atm."""
  # JAX's own environment variables come first.
  for name, value in (
    ('jax_compilation_cache_dir', os.path.expanduser(CACHE_FOLDER)),
    # JAX's default is 1 s; a start has dozens of programs of a tenth of that.
    ('jax_persistent_cache_min_compile_time_secs', 0.1),
  ):
    if not os.environ.get(name.upper()):
      jax.config.update(name, value)
  compilation_cache.install()
