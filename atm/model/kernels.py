"""Kernels of decoding on one CPU: those of native/, behind functions of arrays.

For each token a decoder multiplies few rows by each of its matrices, and reads
its caches. From 5 rows on XLA writes a matrix out anew for that, and caches it
reads with their padding: twice to three times as long. The kernels are compiled
for the processor at hand by its C compiler, once, into ~/.cache/atm. Without a
compiler XLA does it.

They compute in float32, and have no gradients.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import jaxlib

PANEL = 32  # outputs of a matrix that lie together; native/ has it, too
SOURCES = os.path.join(os.path.dirname(__file__), 'native')
HANDLERS = 'atm_product', 'atm_int8_product', 'atm_attention'
FOLDER = '~/.cache/atm/kernels'
COMPILER_FLAGS = (
  '-O3',
  '-march=native',
  '-ffp-contract=fast',
  '-shared',
  '-fPIC',
  '-w',
)
COMPILE_SECONDS = 60


def multiply(x, panels, b) -> jax.Array:
  """Returns x W + b, [N, B].

  Args:
    x: [N, A].
    panels: W [A, B] as [ceil(B / PANEL), A, PANEL].
    b: [B].
  """
  return _call('atm_product', (len(x), len(b)), x, panels, b)


def multiply_int8(x, panels, scale, totals, b) -> jax.Array:
  """Returns x W' + b, [N, B], of rows of x that are quantised for it.

  Each by its greatest magnitude, as `quantized.quantize_rows` does.

  Args:
    x: [N, A].
    panels: W [B, A] as int8 [ceil(B / PANEL), ceil(A / 4), PANEL, 4].
    scale, totals, b: [B]; by what each row of W is multiplied, its sum in
      int32, and the bias.
  """
  args = x, panels, scale, totals, b
  return _call('atm_int8_product', (len(x), len(b)), *args)


def attend(query, mask, *caches) -> jax.Array:
  """Returns softmax(q k' / sqrt(K)) v of queries [R, n, H, K], as large.

  Args:
    query: [R, n, H, K].
    mask: bool [B, n or 1, S], R a multiple of B: keys that may be attended to.
      Where a row has none, zeros are returned.
    caches: a group of rows after the other: its keys, [B, H, K, T] of each
      block of positions, then its values, [B, H, T, K]. T of all blocks are S
      together. The last group may have more rows.
  """
  return _call('atm_attention', query.shape, query, mask, *caches)


def _call(target: str, shape: tuple, *args) -> jax.Array:
  out = jax.ShapeDtypeStruct(shape, jnp.float32)
  return jax.ffi.ffi_call(target, out, vmap_method='sequential')(*args)


# --- The library


@functools.cache
def are_available() -> bool:
  """Tells whether there are kernels, which the first call compiles."""
  path = _find_library()
  try:
    library = path and ctypes.CDLL(path)
  except OSError:  # a disk that nothing may be executed from
    library = None
  if not library:
    return False
  for name in HANDLERS:
    handler = jax.ffi.pycapsule(library[name])
    jax.ffi.register_ffi_target(name, handler, 'cpu')
  return True


def _find_library() -> str | None:
  """Returns the path of the compiled kernel, or None where there is none."""
  compiler = _find_compiler()
  if compiler is None:
    return None
  sources = [_read_source(name) for name in sorted(os.listdir(SOURCES))]
  facts = (
    sources,
    compiler,
    COMPILER_FLAGS,
    jaxlib.__version__,
    _name_processor(),
  )
  name = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
  path = os.path.join(os.path.expanduser(FOLDER), f'{name}.so')
  return path if os.path.exists(path) or _compile(compiler, path) else None


def _read_source(name: str) -> bytes:
  with open(os.path.join(SOURCES, name), 'rb') as f:
    return f.read()


def _find_compiler() -> list[str] | None:
  """Returns the command of a C compiler: $CC, or cc, gcc or clang."""
  given = shlex.split(os.environ.get('CC', ''))
  commands = [given] if given else [['cc'], ['gcc'], ['clang']]
  return next((x for x in commands if shutil.which(x[0])), None)


def _name_processor() -> str:
  """Returns a text that is another where another kernel may be needed."""
  try:
    with open('/proc/cpuinfo') as f:
      flags = [x for x in f if x.startswith(('flags', 'Features'))]
  except OSError:
    flags = []
  return f'{platform.machine()} {platform.processor()} {"".join(flags[:1])}'


def _compile(compiler: list[str], path: str) -> bool:
  """Compiles the kernel; tells whether that succeeded."""
  folder = os.path.dirname(path)
  names = [x for x in sorted(os.listdir(SOURCES)) if x.endswith('.c')]
  sources = [os.path.join(SOURCES, name) for name in names]
  try:
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as own:
      made = os.path.join(own, 'made.so')
      include = f'-I{jax.ffi.include_dir()}'
      subprocess.run(
        [*compiler, *COMPILER_FLAGS, include, *sources, '-lm', '-o', made],
        check=True, capture_output=True, timeout=COMPILE_SECONDS,
      )  # fmt: skip
      os.replace(made, path)  # another process may have made it, too
  except (OSError, subprocess.SubprocessError):
    return False
  return True
