"""Compiles a program whole or partly, and reports what overflows."""

import dataclasses
import glob
import os
import pathlib
import tempfile
import threading
import time
import types
from collections.abc import Callable

import jax

from atm.parallel import xla_options
from atm.plan import hardware, memory

# Files of xla_dump_to, by libtpu 0.0.42: the program as as_text has it; before
# code is generated; and the file that is written after that one.
_CODE = '*.after_codegen.txt'
_SCHEDULED = '*.after_optimizations.txt'
_PLACED = '*.after_optimizations_after_buffer_assignment.txt'


def _compile(lowered, target: hardware.Target, options: dict | None, folder=''):
  """Compiles a lowered program, and dumps what the compiler has to a folder."""
  dump = {'xla_dump_to': folder, 'xla_dump_hlo_as_text': True} if folder else {}
  if options is None:
    return lowered.compile(compiler_options=dump or None)
  return xla_options.compile_program(lowered, target.device, options | dump)


def compile_or_overflow(
  traced, target: hardware.Target, options: dict | None
) -> tuple:
  """Returns (a `jax.stages.Traced` compiled, None), or (None, an overflow)."""
  # `options` are XLA_OPTIONS, beside those of training; None: none at all, as
  # `atm infer` compiles. An overflow is what `memory.parse_overflow` returns.
  with tempfile.TemporaryDirectory(prefix='atm_plan_') as folder:
    offloads = target.pod and memory.offloads(traced.jaxpr.jaxpr)
    try:
      compiled = _compile(
        traced.lower(), target, options, folder if offloads else ''
      )
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
  """Stands for a `jax.stages.Compiled`, its memory read off a dumped report."""

  as_text: Callable[[], str]
  peak: int  # bytes of a device
  host: int | None = None  # bytes in the host's memory

  def memory_analysis(self):
    return types.SimpleNamespace(
      temp_size_in_bytes=None,
      peak_memory_in_bytes=self.peak,
      host_temp_size_in_bytes=self.host,
    )


def _find(folder: str, pattern: str) -> str | None:
  """Returns the path of the one file; None if it is not there yet."""
  return next(iter(glob.glob(os.path.join(folder, pattern))), None)


def program_text(compiled, traced, target: hardware.Target, options) -> str:
  """Returns a compiled program's text; arguments as `compile_or_overflow`'s."""
  try:
    return compiled.as_text()
  except (jax.errors.JaxRuntimeError, NotImplementedError):
    # A libtpu newer than JAX's own compiles, but its programs cannot be read
    # back; a second compilation dumps the text.
    with tempfile.TemporaryDirectory(prefix='atm_plan_') as folder:
      _compile(traced.lower(), target, options, folder)
      if (path := _find(folder, _CODE)) is None:
        raise
      return pathlib.Path(path).read_text()


def compile_partly(
  folder: str, traced, target: hardware.Target, options: dict | None
) -> tuple[DumpedProgram, None]:
  """Compiles until the program is scheduled and its arrays are placed."""
  # A tenth of the compiler's work for a large model on a TPU. Memory and
  # collectives are those of the whole compilation, cycles are not known.
  # The compiler goes on in a thread and writes to the folder, which has to be
  # empty: the process had better end, and the folder go after it.
  lowered, errors = traced.lower(), []

  def run():
    try:
      _compile(lowered, target, options, folder)
    except Exception as e:
      errors.append(e)

  # XLA has no option to end there, but dumps as it goes.
  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  while thread.is_alive() and not _find(folder, _PLACED):
    time.sleep(0.02)
  # Too little memory is no failure here: the report says how much it takes.
  if errors and not _find(folder, memory.REPORT):
    raise errors[0]
  text = pathlib.Path(_find(folder, _SCHEDULED)).read_text()
  return DumpedProgram(lambda: text, memory.read_dumped_peak(folder)), None
