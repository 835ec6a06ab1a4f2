"""Compiles a program in part or whole, and reports what overflows."""

from __future__ import annotations

import glob
import os
import tempfile
import threading
import time
import types

import jax

from atm.parallel import xla_options
from atm.parallel import xla_options as xla_options_lib
from atm.plan import (
  hardware,
  memory,
)

DUMPED = '*.after_codegen.txt'  # of xla_dump_to: the program as as_text has it


def compile_or_overflow(traced, target: hardware.Target, options):
  """(compiled, None), or (None, what the compiler said of its memory).

  Of a program that keeps arrays in the host's memory the analysis adds those to
  the device's; the compiler's report does not.
  """
  with tempfile.TemporaryDirectory(prefix='atm_plan_') as folder:
    offloads = target.pod and memory.offloads(traced.jaxpr.jaxpr)
    dump = {'xla_dump_to': folder, 'xla_dump_hlo_as_text': True}
    options = {**(options or {}), **(dump if offloads else {})}
    try:
      compiled = xla_options_lib.compile_program(
        traced.lower(), target.device, options
      )
    except jax.errors.JaxRuntimeError as e:
      if overflow := memory.overflow(str(e)):
        return None, overflow
      raise
    if not offloads:
      return compiled, None
    said = types.SimpleNamespace(
      temp_size_in_bytes=None,
      peak_memory_in_bytes=memory.reported(folder),
      host_temp_size_in_bytes=compiled.memory_analysis().host_temp_size_in_bytes,
    )
    on_device = types.SimpleNamespace(
      as_text=compiled.as_text, memory_analysis=lambda: said
    )
    return on_device, None


def program_text(compiled, traced, target: hardware.Target, options) -> str:
  """The compiled program's text, if need be as a second compilation dumps it.

  A libtpu newer than JAX's own compiles, but its programs cannot be read back.
  """
  try:
    return compiled.as_text()
  except (jax.errors.JaxRuntimeError, NotImplementedError):
    with tempfile.TemporaryDirectory(prefix='atm_plan_') as folder:
      dump = {'xla_dump_to': folder, 'xla_dump_hlo_as_text': True}
      xla_options_lib.compile_program(
        traced.lower(), target.device, {**(options or {}), **dump}
      )
      found = glob.glob(os.path.join(folder, DUMPED))
      if not found:
        raise
      with open(found[0]) as f:
        return f.read()


# Of xla_dump_to, by libtpu 0.0.42: what is read, and what is written after it.
TEXT = '*.after_optimizations.txt'
AFTER = '*.after_optimizations_after_buffer_assignment.txt'


class Stopped:
  """What a `jax.stages.Compiled` says, of a compilation that went half way.

  Its memory is `memory.reported`'s.
  """

  def __init__(self, folder: str):
    with open(_only(folder, TEXT)) as f:
      self._text = f.read()
    self._total = memory.reported(folder)

  def as_text(self) -> str:
    return self._text

  def memory_analysis(self):
    return types.SimpleNamespace(
      temp_size_in_bytes=None,
      peak_memory_in_bytes=self._total,
      host_temp_size_in_bytes=None,
    )


def _only(folder: str, pattern: str) -> str | None:
  """The path of the one file; None if it is not there yet."""
  return next(iter(glob.glob(os.path.join(folder, pattern))), None)


def stopped(folder: str, traced, target, options) -> tuple[Stopped, None]:
  """As `compile.compile_or_overflow`, of which it is the first part."""
  compiles = lambda lowered, dump: xla_options.compile_program(
    lowered, target.device, {**(options or {}), **dump}
  )
  return half_way(folder, traced.lower(), compiles), None


def half_way(folder: str, lowered, compiles) -> Stopped:
  """A compilation until its arrays have their places in memory.

  The compiler goes on in a thread and writes to the folder: the process had
  better end, and the folder go after it.

  Args:
    folder: an empty one.
    lowered: what is compiled.
    compiles: called with it and with more compiler options.
  """
  dump = {'xla_dump_to': folder, 'xla_dump_hlo_as_text': True}
  failed = []

  def run():
    try:
      compiles(lowered, dump)
    except Exception as e:
      failed.append(e)

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  while thread.is_alive() and not _only(folder, AFTER):
    time.sleep(0.02)
  # Too little memory is no failure here: the report says how much it takes.
  if failed and not _only(folder, memory.REPORT):
    raise failed[0]
  return Stopped(folder)
