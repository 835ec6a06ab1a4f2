"""Memory of a program that decodes, known before it is compiled whole.

In a process of its own, as far as quick.py lets the compiler go. A tenth of the
time of a large model's.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile

import jax

from atm.parallel import mesh as mesh_lib
from atm.plan import compile, decode_programs, hardware

# What the compiler adds: the program, which is not there yet (40 MiB of a 20b's
# loop over tokens), and some room of its own.
RESERVED = 64 * 2**20


def bytes_of(job: decode_programs.Job, rows: int) -> int:
  """Bytes of a chip that a batch takes, gaps between arrays included.

  A hundredth more than `peak_memory_in_bytes` of the whole compilation, and
  known of programs that are too large for it.

  Raises:
    RuntimeError: the compiler failed; its first line.
  """
  context = multiprocessing.get_context('spawn')  # libtpu does not fork
  ours, theirs = context.Pipe()
  with tempfile.TemporaryDirectory(prefix='atm_plan_') as folder:
    process = context.Process(
      target=_child, args=(theirs, folder, spec(job), rows)
    )
    process.start()
    theirs.close()
    try:
      found = ours.recv()
    except EOFError:
      found = 'its process ended'
    finally:
      process.kill()
      process.join()
  if isinstance(found, str):
    raise RuntimeError(f'a batch of {rows} did not compile: {found}')
  return found + RESERVED


def spec(job: decode_programs.Job) -> dict:
  """What another process makes the same job of."""
  return dict(
    kind=job.kind,
    model=job.net.config,
    weights=str(jax.tree.leaves(job.params)[0].dtype),
    config=job.config,
    longest=job.longest,
    rules=job.rules,
    topology=job.target.pod.name,
    mesh=dict(job.target.mesh.shape),
  )


def job_of(made: dict) -> decode_programs.Job:
  """The inverse of `spec`."""
  pod = hardware.pod(made['topology'])
  mesh = mesh_lib.make_mesh(**made['mesh'], devices=hardware.devices(pod))
  net, params = decode_programs.abstract_model(
    made['model'], made['weights'], mesh, made['rules']
  )
  return decode_programs.Job(
    made['kind'], net, params, made['config'], made['longest'], made['rules'],
    hardware.Target(mesh, pod),
  )  # fmt: skip


def _child(pipe, folder: str, made: dict, rows: int) -> None:
  """Sends bytes, or what is wrong; ends whatever the compiler still does."""
  try:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_enable_compilation_cache', False)
    job = job_of(made)
    lowered = job.traced(job.batch(rows)).lower()
    compiles = lambda lowered, dump: lowered.compile(compiler_options=dump)
    made = compile.half_way(folder, lowered, compiles)
    pipe.send(made.memory_analysis().peak_memory_in_bytes)
  except Exception as e:
    pipe.send(next(iter(str(e).splitlines()), '') or repr(e))
  os._exit(0)
