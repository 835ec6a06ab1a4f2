"""Compiles a program in part or whole, and reports what overflows.

A compilation in part stops the compiler once it has scheduled the program and
placed its arrays in memory, a tenth of its work for a large model on a TPU:
memory and collectives are those of the whole compilation, cycles are not known.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import tempfile
import threading
import time
import types
from collections.abc import Callable

import jax

from atm.parallel import xla_options as xla_options_lib
from atm.plan import hardware, memory

# Files of xla_dump_to, by libtpu 0.0.42: the program as as_text has it; before
# code is generated; and the file that is written after that one.
_CODE = '*.after_codegen.txt'
_SCHEDULED = '*.after_optimizations.txt'
_PLACED = '*.after_optimizations_after_buffer_assignment.txt'


def compile_step(options: dict | None, lowered, target, dump: dict):
  """Compiles a training step with its XLA options; see `compile_or_overflow`.

  Args:
    options: XLA_OPTIONS, as `functools.partial` binds them.
    lowered, target, dump: see `compile_or_overflow`.
  """
  return xla_options_lib.compile_program(
    lowered, target.device, {**(options or {}), **dump}
  )


def compile_plainly(lowered, target, dump: dict):
  """Compiles without options, as `atm infer`; see `compile_or_overflow`."""
  return lowered.compile(compiler_options=dump or None)


def compile_or_overflow(
  traced, target: hardware.Target, compiles: Callable
) -> tuple:
  """Compiles a traced program, or finds how much memory is missing.

  Args:
    traced: a `jax.stages.Traced`.
    target: devices to compile for.
    compiles: `compile_plainly`, or a partial of `compile_step`; called with
      the lowered program, the target, and options that dump to a folder.

  Returns:
    (compiled, None), or (None, what `memory.parse_overflow` returns).
  """
  with tempfile.TemporaryDirectory(prefix='atm_plan_') as folder:
    offloads = target.pod and memory.offloads(traced.jaxpr.jaxpr)
    dump = _dump_to(folder) if offloads else {}
    try:
      compiled = compiles(traced.lower(), target, dump)
    except jax.errors.JaxRuntimeError as e:
      if overflow := memory.parse_overflow(str(e)):
        return None, overflow
      raise
    if not offloads:
      return compiled, None
    # The analysis adds arrays in the host's memory to the device's; the
    # compiler's report does not.
    host = compiled.memory_analysis().host_temp_size_in_bytes
    peak = memory.read_dumped_peak(folder)
    return DumpedProgram(compiled.as_text, peak, host), None


@dataclasses.dataclass(frozen=True)
class DumpedProgram:
  """Stands for a `jax.stages.Compiled`, its memory read off a dumped report.

  Attributes:
    as_text: returns the program's text.
    peak: bytes of a device.
    host: bytes in the host's memory; None: not known.
  """

  as_text: Callable[[], str]
  peak: int
  host: int | None = None

  def memory_analysis(self):
    return types.SimpleNamespace(
      temp_size_in_bytes=None,
      peak_memory_in_bytes=self.peak,
      host_temp_size_in_bytes=self.host,
    )


def _dump_to(folder: str) -> dict:
  return {'xla_dump_to': folder, 'xla_dump_hlo_as_text': True}


def _find(folder: str, pattern: str) -> str | None:
  """Returns the path of the one file; None if it is not there yet."""
  return next(iter(glob.glob(os.path.join(folder, pattern))), None)


def _read(path: str) -> str:
  with open(path) as f:
    return f.read()


def program_text(
  compiled, traced, target: hardware.Target, compiles: Callable
) -> str:
  """Returns the compiled program's text.

  Args:
    compiled: of `compile_or_overflow`.
    traced, target, compiles: its arguments.
  """
  try:
    return compiled.as_text()
  except (jax.errors.JaxRuntimeError, NotImplementedError):
    # A libtpu newer than JAX's own compiles, but its programs cannot be read
    # back; a second compilation dumps the text.
    with tempfile.TemporaryDirectory(prefix='atm_plan_') as folder:
      compiles(traced.lower(), target, _dump_to(folder))
      if (path := _find(folder, _CODE)) is None:
        raise
      return _read(path)


def compile_partly(
  folder: str, traced, target: hardware.Target, compiles: Callable
) -> tuple[DumpedProgram, None]:
  """Compiles until the program's arrays have their places in memory.

  The compiler goes on in a thread and writes to the folder: the process had
  better end, and the folder go after it. XLA has no option to end there.

  Args:
    folder: an empty one.
    traced, target, compiles: see `compile_or_overflow`, as what is returned.
  """
  lowered, errors = traced.lower(), []

  def run():
    try:
      compiles(lowered, target, _dump_to(folder))
    except Exception as e:
      errors.append(e)

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  while thread.is_alive() and not _find(folder, _PLACED):
    time.sleep(0.02)
  # Too little memory is no failure here: the report says how much it takes.
  if errors and not _find(folder, memory.REPORT):
    raise errors[0]
  text = _read(_find(folder, _SCHEDULED))
  peak = memory.read_dumped_peak(folder)
  return DumpedProgram(lambda: text, peak), None
