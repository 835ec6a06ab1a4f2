"""Memory of a program that decodes, known before it is compiled whole.

The compiler places all arrays in memory long before it is done, but has no
option to stop there: it writes where they lie to a folder, and the process that
compiles ends when it has. A tenth of the time of a large model's.
"""

from __future__ import annotations

import glob
import multiprocessing
import os
import re
import tempfile
import threading
import time

import jax

from atm import chips, serving, sharding

# Of xla_dump_to, by libtpu 0.0.42.
REPORT = '*.after_optimizations-memory-usage-report.txt'
AFTER = '*.after_optimizations_after_buffer_assignment.txt'
_TOTAL = re.compile(r'Memory Space: default .*\nTotal bytes: (\d+)')
# What the compiler adds: the program, which is not there yet (40 MiB of a 20b's
# loop over tokens), and some room of its own.
RESERVED = 64 * 2**20


def bytes_of(job: serving.Job, rows: int) -> int:
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


def spec(job: serving.Job) -> dict:
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


def job_of(made: dict) -> serving.Job:
  """The inverse of `spec`."""
  pod = chips.pod(made['topology'])
  mesh = sharding.mesh(**made['mesh'], devices=chips.devices(pod))
  net, params = serving.abstract_model(
    made['model'], made['weights'], mesh, made['rules']
  )
  return serving.Job(
    made['kind'], net, params, made['config'], made['longest'], made['rules'],
    chips.Target(mesh, pod),
  )  # fmt: skip


def _child(pipe, folder: str, made: dict, rows: int) -> None:
  """Sends bytes, or what is wrong; ends whatever the compiler still does."""
  try:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_enable_compilation_cache', False)
    job = job_of(made)
    pipe.send(_placed(job.traced(job.batch(rows)), folder))
  except Exception as e:
    pipe.send(next(iter(str(e).splitlines()), '') or repr(e))
  os._exit(0)


def _placed(traced, folder: str) -> int | str:
  dump = {'xla_dump_to': folder, 'xla_dump_hlo_as_text': True}
  lowered, failed = traced.lower(), []

  def compiles():
    try:
      lowered.compile(compiler_options=dump)
    except Exception as e:
      failed.append(next(iter(str(e).splitlines()), '') or repr(e))

  thread = threading.Thread(target=compiles, daemon=True)
  thread.start()
  there = lambda name: glob.glob(os.path.join(folder, name))
  while thread.is_alive() and not there(AFTER):
    time.sleep(0.02)
  # Too little memory is no failure here: the report says how much it takes.
  if not there(REPORT):
    return failed[0] if failed else 'the compiler wrote no report of memory'
  with open(there(REPORT)[0]) as f:
    return int(_TOTAL.search(f.read())[1])
