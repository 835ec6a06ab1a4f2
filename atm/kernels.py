"""Cycles of Pallas kernels, which the compiler schedules but does not estimate.

The compiler can write the schedule of every operation: bundles of instructions,
one a cycle, `libtpu` 0.0.42. A kernel's are those of one cell of its grid, with
every branch and the loops that Mosaic unrolled; loops that it did not are
counted once. Cores of a chip share the grid where a dimension of it is parallel
and the chip's cores are one device. Waiting for memory is in none of it.
"""

from __future__ import annotations

import base64
import functools
import glob
import math
import os
import re
import tempfile

from jax._src.interpreters import mlir
from jax._src.lib import tpu
from jaxlib.mlir import ir

from atm import chips, hlo

# What it takes for the compiler to write schedules, before it is loaded.
_LABEL = 'final_hlo-static'
_FLAGS = (
  '--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true '
  f'--xla_jf_dump_llo_pass_label_regex={_LABEL}'
)
_FILE = re.compile(rf'^\d+-(.+)-\d+-{_LABEL}')
_BUNDLE = re.compile(r'^\d+( \d+)+\s*$', re.M)
_BODY = re.compile(r'"body":"([^"]+)"')
_GRID = re.compile(r'iteration_bounds = array<i64: ([\d, ]+)>')
_PARALLEL = '#tpu.dimension_semantics<parallel>'
CALL = 'custom_call_target="tpu_custom_call"'
WAIT = 1.3  # what waiting for memory may make of a kernel's time: assumed


@functools.cache
def listen() -> tempfile.TemporaryDirectory:
  """The folder that libtpu, not loaded yet, will write schedules to."""
  folder = tempfile.TemporaryDirectory(prefix='atm_kernels_')
  asked = os.environ.get('LIBTPU_INIT_ARGS', '')
  flags = _FLAGS.format(folder=folder.name)
  os.environ['LIBTPU_INIT_ARGS'] = f'{asked} {flags}'.strip()
  return folder


def cycles(program: hlo.Program, pod: chips.Pod) -> dict[str, float]:
  """Cycles of one run of each kernel by its instruction's name.

  Of the program compiled last; none where a kernel's schedule is not known. Of
  kernels that are the same the compiler schedules one.
  """
  bodies = {
    line.name: _BODY.search(line.rest)[1]
    for line, _, _ in program.running()
    if CALL in line.rest
  }
  bundles = _schedules()
  known = {
    body: bundles[name] * cells(body, pod.chip.cores)
    for name, body in bodies.items()
    if name in bundles
  }
  if not set(bodies.values()) <= set(known):
    return {}
  return {name: known[body] for name, body in bodies.items()}


def _schedules() -> dict[str, int]:
  """Bundles by instruction's name, of what was compiled since the last call."""
  found = {}
  for path in sorted(glob.glob(os.path.join(listen().name, '*'))):
    if name := _FILE.match(os.path.basename(path)):
      with open(path) as f:
        found[name[1]] = len(_BUNDLE.findall(f.read()))
    os.remove(path)
  return found


def cells(body: str, cores: int) -> float:
  """Cells of a kernel's grid that one core computes.

  Args:
    body: its Mosaic module, as the custom call has it.
    cores: of a device.
  """
  context = mlir.JaxIrContext()
  context.append_dialect_registry(mlir.upstream_dialects)
  context.load_all_available_dialects()
  tpu.register_dialect(context)
  context.allow_unregistered_dialects = True
  with context:
    module = str(ir.Module.parse(base64.b64decode(body)))
  grid = _GRID.search(module)
  total = math.prod(map(int, grid[1].split(','))) if grid else 1
  return total / (cores if _PARALLEL in module else 1)
