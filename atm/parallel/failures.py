"""A process of a run that fails ends the others, with its own exit status.

Launchers start a run again unless its status is 2, a mistake of the user's. A
process that is left alone may fail in any way, or hang until JAX misses the
other, minutes later. So the first that fails shows its status to all.
"""

import contextlib
import sys
import threading
import time

from atm.parallel import distributed

SHOWN = 'failed'
POLL_S = 1.0
HEAR_S = 4.0  # for a process to hear of another's end by its own error
UNKNOWN = 1  # of another process that went without a word


def show_failure(status: int) -> None:
  """Shows the others the status with which this process fails."""
  with contextlib.suppress(Exception):  # process 0, who keeps it, has gone
    distributed.publish(SHOWN, status)


def find_failure() -> tuple[int, int] | None:
  """Returns (process, status) of another that failed; None: there is none."""
  with contextlib.suppress(Exception):  # as above
    shown = distributed.collect_published(SHOWN)
    shown.pop(distributed.process_share()[0], None)
    return min(shown.items(), default=None)
  return None


def wait_for_failure() -> tuple[int, int] | None:
  """Waits for another that has failed to show it; see `find_failure`."""
  end = time.monotonic() + HEAR_S
  while (found := find_failure()) is None and time.monotonic() < end:
    time.sleep(0.1)
  return found


def watch_others() -> None:
  """Lets the failure of another process end this one, from here on.

  To be called when devices are there, which the number of processes is of.
  """
  if distributed.process_share()[1] > 1:
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(over,), daemon=True)
    watcher.start()
    distributed.call_before_leaving(lambda: _stop(watcher, over))


def _stop(watcher: threading.Thread, over: threading.Event) -> None:
  """Ends the watch: a question under way when JAX leaves aborts the process."""
  over.set()
  if watcher is not threading.current_thread():
    watcher.join(HEAR_S)


def _watch(over: threading.Event) -> None:
  while (found := find_failure()) is None:
    if over.wait(POLL_S):
      return
  if over.wait(HEAR_S):
    return
  with contextlib.suppress(OSError, ValueError):  # nobody reads it
    print(f'atm: error: {format_failure(found)}', file=sys.stderr, flush=True)
  distributed.exit_process(found[1])


def format_failure(found: tuple[int, int]) -> str:
  """Formats the line of a process that ends for another's failure."""
  return (
    f'process {found[0]} of this run failed, and says why itself; this one '
    f'ends with the same exit status, {found[1]}'
  )
