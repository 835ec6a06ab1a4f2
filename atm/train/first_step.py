"""How long a process took until its first step was done, and what it compiled.

A restart pays for it every time: see COMPILATION_CACHE.
"""

import os
import time
from collections.abc import Callable

import jax

from atm.parallel import compilation_cache, distributed

WAIT_S = 2  # for what the other processes tell


def process_age() -> float:
  """Returns the seconds since this process began; 0 where Linux is not."""
  try:
    with open('/proc/self/stat', 'rb') as f:
      ticks = int(f.read().rpartition(b')')[2].split()[19])
    with open('/proc/uptime') as f:
      return float(f.read().split()[0]) - ticks / os.sysconf('SC_CLK_TCK')
  except (OSError, ValueError, IndexError):
    return 0.0


def report_first_step(
  step: int, write: Callable[..., None], say: Callable[[str], None]
) -> None:
  """Tells how long every process took to its first step.

  Args:
    step: the number of that step, which is done.
    write: `Goodput.write`.
    say: prints a line.
  """
  compiled, cached = compilation_cache.count_programs()
  mine = {
    'process': jax.process_index(), 'seconds': round(process_age(), 2),
    'compiled': compiled, 'cached': cached,
  }  # fmt: skip
  distributed.publish('starts', mine)
  if not distributed.is_main_process():
    return
  found, end = {0: mine}, time.monotonic() + WAIT_S
  while len(found) < jax.process_count() and time.monotonic() < end:
    time.sleep(0.05)
    found |= distributed.collect_published('starts')
  starts = [found[process] for process in sorted(found)]
  write(step, starts=starts)
  total = {k: sum(s[k] for s in starts) for k in ('compiled', 'cached')}
  of = f' of {len(starts)} processes' if len(starts) > 1 else ''
  say(
    f'first step {max(s["seconds"] for s in starts):.1f} s after the start; '
    f'programs{of}: {total["compiled"]:,} compiled, {total["cached"]:,} read '
    'from a cache'
  )
