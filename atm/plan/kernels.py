"""Cycles of Pallas kernels, for which the compiler has no estimate."""

# The compiler can write the schedule of every operation: bundles of
# instructions, one a cycle, `libtpu` 0.0.42. It has to be told before it is
# loaded, and takes minutes over those of a whole step. So the kernels of a
# program that is compiled are compiled again, each alone, in a process of their
# own.
#
# A kernel's bundles are those of one cell of its grid, with every branch and
# the loops that Mosaic unrolled; loops that it did not are counted once. Cores
# of a chip share the grid where a dimension of it is parallel and the chip's
# cores are one device. Cells that a causal mask hides whole run no branch, and
# are left out. Waiting for memory is in none of it.

import base64
import glob
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import jax
from jax._src.interpreters import mlir
from jax._src.lib import tpu
from jax.extend.core import Primitive
from jaxlib.mlir import ir

from atm.parallel import xla_options
from atm.plan import hardware, hlo

CALL = 'custom_call_target="tpu_custom_call"'
WAIT = 1.3  # what waiting for memory may make of a kernel's time: assumed
_LABEL = 'final_hlo-static'  # of the dump with schedules
_FLAGS = (
  '--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true '
  f'--xla_jf_dump_llo_pass_label_regex={_LABEL}'
)
_BUNDLE = re.compile(r'^\d+( \d+)+\s*$', re.M)
_CONFIG = '"custom_call_config":'
_TAKES = re.compile(r'operand_layout_constraints=\{((?:[^{}]|\{[^{}]*\})*)\}')
_GRID = re.compile(r'iteration_bounds = array<i64: ([\d, ]+)>')
_PARALLEL = '#tpu.dimension_semantics<parallel>'
_DTYPES = {
  'pred': 'bool', 's8': 'int8', 'u8': 'uint8', 's16': 'int16', 'u16': 'uint16',
  's32': 'int32', 'u32': 'uint32', 'bf16': 'bfloat16', 'f16': 'float16',
  'f32': 'float32', 'f8e4m3fn': 'float8_e4m3fn', 'f8e5m2': 'float8_e5m2',
}  # fmt: skip


def kernel_cycles(program: hlo.Program, pod: hardware.Pod) -> dict[str, float]:
  """Returns cycles of a run of each kernel by name; {}: not known."""
  calls = {
    line.name: parse_call(line)
    for line, _, _ in program.executed()
    if is_kernel_call(line)
  }
  distinct = {c['config']: c for c in calls.values()}
  bundles = schedule_calls(list(distinct.values()), pod.kind)
  each = {}
  for config, count in zip(distinct, bundles):
    body = json.loads(config)['custom_call_config']['body']
    cells = count_cells(body, pod.chip.cores, is_causal(distinct[config]))
    each[config] = count * cells
  return {name: each[c['config']] for name, c in calls.items() if each}


def is_kernel_call(line: hlo.Instruction) -> bool:
  """Tells whether an instruction calls a Pallas kernel."""
  return line.opcode == 'custom-call' and CALL in line.rest


def parse_call(line: hlo.Instruction) -> dict:
  """Parses a kernel's call so that it can be made again."""
  types = lambda text: [
    (_DTYPES[dtype], [int(n) for n in sides.split(',') if n])
    for dtype, sides in hlo.ARRAY.findall(text)
  ]
  at = line.rest.index(_CONFIG) + len(_CONFIG)
  config, _ = json.JSONDecoder().raw_decode(line.rest, at)
  return {
    # (dtype, sides) of its operands and results; its Mosaic module, in JSON.
    'takes': types(_TAKES.search(line.rest)[1]),
    'makes': types(line.shape),
    'config': json.dumps({'custom_call_config': config}),
  }


def schedule_calls(calls: list[dict], kind: str) -> list[int]:
  """Returns bundles of calls on a kind of chip; []: the compiler failed."""
  if not calls:
    return []
  with tempfile.TemporaryDirectory(prefix='atm_kernels_') as folder:
    asked = os.environ.get('LIBTPU_INIT_ARGS', '')
    flags = f'{asked} {_FLAGS.format(folder=folder)}'.strip()
    done = subprocess.run(
      [sys.executable, '-m', 'atm.plan.kernels', kind, folder],
      input=json.dumps(calls),
      env={**os.environ, 'LIBTPU_INIT_ARGS': flags, 'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
    )
  return json.loads(done.stdout) if done.returncode == 0 else []


def compile_alone(given: dict, kind: str, folder: str) -> int:
  """Returns bundles of a call, compiled here; libtpu dumps to the folder."""
  smallest = hardware.SHAPES[hardware.CHIPS[kind].sides].split()[0]
  devices = hardware.pod_devices(hardware.parse_pod(f'{kind}:{smallest}'))
  placed = jax.sharding.SingleDeviceSharding(devices[0])
  takes = [
    jax.ShapeDtypeStruct(sides, dtype, sharding=placed)
    for dtype, sides in given['takes']
  ]
  lowered = jax.jit(_rebuild_call(given)).lower(*takes)
  # As much vector memory as kernels have in a program, or they are refused.
  known = xla_options.KIND_OPTIONS.get(devices[0].device_kind, {})
  limit = {k: v for k, v in known.items() if k == xla_options.VMEM_LIMIT}
  compiled = xla_options.compile_known(lowered, limit)
  program = hlo.parse(compiled.as_text())
  (name,) = (
    line.name for line, _, _ in program.executed() if is_kernel_call(line)
  )
  (path,) = glob.glob(os.path.join(folder, f'*-{name}-*-{_LABEL}*'))
  bundles = len(_BUNDLE.findall(pathlib.Path(path).read_text()))
  for path in glob.glob(os.path.join(folder, '*')):
    os.remove(path)
  return bundles


def _rebuild_call(given: dict):
  """Returns a function that makes a call."""
  results = [
    jax.core.ShapedArray(sides, jax.numpy.dtype(dtype))
    for dtype, sides in given['makes']
  ]
  rows = lambda avals: [tuple(range(x.ndim))[::-1] for x in avals]

  def lower(ctx, *operands):
    return mlir.custom_call(
      'tpu_custom_call',
      result_types=[
        mlir.aval_to_ir_type(ctx.module_context, x) for x in ctx.avals_out
      ],
      operands=operands,
      backend_config=given['config'],
      operand_layouts=rows(ctx.avals_in),
      result_layouts=rows(ctx.avals_out),
    ).results

  primitive = Primitive('kernel')
  primitive.multiple_results = True
  primitive.def_abstract_eval(lambda *_: results)
  mlir.register_lowering(primitive, lower, platform='tpu')
  return lambda *operands: primitive.bind(*operands)


def is_causal(call: dict) -> bool:
  """Tells whether a call is of splash attention with a causal mask."""
  # Only such a kernel takes the positions of queries. They are the same in all
  # batch rows, and have no side for these.
  return any(
    dtype == 'int32' and len(sides) == 2 for dtype, sides in call['takes']
  )


def count_cells(body: str, cores: int, causal: bool = False) -> float:
  """Returns cells of a Mosaic module's grid that one core computes."""
  context = mlir.JaxIrContext()
  context.append_dialect_registry(mlir.upstream_dialects)
  context.load_all_available_dialects()
  tpu.register_dialect(context)
  context.allow_unregistered_dialects = True
  with context:
    module = str(ir.Module.parse(base64.b64decode(body)))
  grid = _GRID.search(module)
  sides = [int(n) for n in grid[1].split(',')] if grid else [1]
  # Queries and keys have as many blocks, of which the last side counts one.
  run = (sides[-1] + 1) / (2 * sides[-1]) if causal else 1
  return run * math.prod(sides) / (cores if _PARALLEL in module else 1)


if __name__ == '__main__':
  kind, folder = sys.argv[1:]
  calls = json.load(sys.stdin)
  print(json.dumps([compile_alone(given, kind, folder) for given in calls]))
