"""Several processes as one run: how they meet, and what one does for all.

Every host of a run is a process that runs the same program over its own
devices (a GPU may have a process of its own). They meet at a coordinator, which
process 0 serves; JAX's arrays then span all of them. This module adds what JAX
does not do: the main process goes first where files are made, and all processes
check that they are the same run.
"""

import atexit
import contextlib
import itertools
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax

from atm import fileio, storage
from atm.messages import (
  MOST_INT32,
  check_arguments,
  check_choice,
  check_count,
  check_index,
  check_number,
  check_path,
  check_text,
  one_line,
)
from atm.parallel import compilation_cache as shared_programs

T = TypeVar('T')
# Launchers' variables: the number of processes, and one that only a launched
# process has (a batch script has SLURM_NTASKS, too).
LAUNCHERS = {
  'SLURM': ('SLURM_NTASKS', 'SLURM_STEP_NODELIST'),
  'Open MPI': ('OMPI_COMM_WORLD_SIZE', 'OMPI_MCA_orte_hnp_uri'),
}
POLL_MS = 5_000  # Ctrl-C is not heard inside one wait of the client
SHUTDOWN_S = 10  # `failures` ends the others meanwhile
DISTRIBUTED = ('auto', 'off')
MOST_DEVICES = 4096  # simulated ones take memory and threads
_numbers = itertools.count()  # keys of the coordinator's store are set once
_before_leaving: list[Callable[[], None]] = []
_stage: str | None = None  # of this process: 'joining', then 'met'


class OtherProcessError(ValueError):
  """Another process of the run failed, and reports its own error."""


# --- Meeting


def count_cores() -> int:
  """Returns how many cores this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # macOS has none
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def detect_launcher() -> tuple[str, int]:
  """Returns (launcher, processes) by the environment; ('', 1) if none."""
  for name, (count, needed) in LAUNCHERS.items():
    number = os.environ.get(count, '')
    if needed in os.environ and number.isdigit() and int(number) > 1:
      return name, int(number)
  workers = os.environ.get('TPU_WORKER_HOSTNAMES', '').split(',')
  return ('TPU', len(workers)) if len(workers) > 1 else ('', 1)


def connect(coordinator, processes, process, timeout: int) -> None:
  """Joins the run and returns when all processes have; see `start_jax`."""
  global _stage
  if coordinator is not None:
    check_address(coordinator, process)
  method = None if coordinator is None else 'deactivate'
  error = []

  def join():
    try:
      jax.distributed.initialize(
        coordinator, processes, process, cluster_detection_method=method,
        # Past it JAX aborts the process with a stack trace; we are sooner.
        initialization_timeout=min(timeout + 600, MOST_INT32),
      )  # fmt: skip
    except Exception as e:
      error.append(e)

  _stage = 'joining'
  # In a thread: its wait could neither be interrupted nor end in an exception.
  thread = threading.Thread(target=join, daemon=True)
  thread.start()
  thread.join(timeout)
  if thread.is_alive():
    raise ValueError(_meeting_error(coordinator, processes, process, timeout))
  if error and coordinator is None:
    raise ValueError(
      "start.distributed = 'auto', but JAX finds no TPU pod slice, SLURM step "
      f'or Open MPI here ({one_line(error[0])}): set '
      'sharding.start.coordinator, processes and process'
    )
  if error:
    raise ValueError(
      f'start.coordinator = {coordinator!r}: {one_line(error[0])}'
    ) from error[0]
  _stage = 'met'


def check_address(address: str, process: int) -> None:
  """Raises ValueError unless `address` is 'host:port', free in process 0."""
  host, colon, port = address.rpartition(':')
  if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
    raise ValueError(
      f"start.coordinator = {address!r}: expected 'host:port': process 0's "
      'host, and a free port there'
    )
  if process:
    return
  with socket.socket(socket.AF_INET6 if socket.has_ipv6 else 0) as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind(('', int(port)))
    except OSError as e:
      raise ValueError(
        f'start.coordinator = {address!r}: port {port} is taken here '
        f'({e.strerror}): is an earlier run still alive? Else name another'
      ) from e


def _meeting_error(coordinator, processes, process, timeout: int) -> str:
  """Returns the message for processes that did not meet: who is missing."""
  if coordinator is None:
    return (
      f'the processes of this run did not meet within {timeout} s '
      '(sharding.start.timeout): is the same command running on every host?'
    )
  if process == 0:
    return (
      f'start.coordinator = {coordinator!r}: not all of the {processes} '
      f'processes came within {timeout} s (sharding.start.timeout)'
    )
  host, port = coordinator.rsplit(':', 1)
  try:
    socket.create_connection((host, int(port)), timeout=5).close()
  except OSError as e:
    why = f'cannot be reached ({e.strerror or e})'
  else:
    why = f'answers, but not all of the {processes} processes came'
  return (
    f'start.coordinator = {coordinator!r} {why}: process {process} gave up '
    f'after {timeout} s (sharding.start.timeout)'
  )


def has_joined() -> bool:
  """Tells whether this process has begun to join others."""
  return _stage is not None


def has_met() -> bool:
  """Tells whether all processes of the run have met."""
  return _stage == 'met'


def call_before_leaving(call: Callable[[], None]) -> None:
  """Has a function called before this process parts from the others."""
  _before_leaving.append(call)
  atexit.register(call)  # before JAX's, which was registered first


def exit_process(status: int) -> None:
  """Ends this process without waiting long for the others; alone: nothing."""
  # Python's own exit waits for all: minutes, where some hang in a collective.
  if not has_joined():
    return
  sys.stdout.flush()
  sys.stderr.flush()
  for call in _before_leaving:
    call()
  if has_met():
    # Together where all end for one reason, so that none sees another die.
    last = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    last.start()
    last.join(SHUTDOWN_S)
  os._exit(status)


# --- Acting as one


def uses_gloo() -> bool:
  """Tells whether this run is several processes' CPUs, joined by Gloo."""
  return has_joined() and jax.default_backend() == 'cpu'


def is_main_process() -> bool:
  """Tells whether this process, number 0, prints and writes for all."""
  return jax.process_index() == 0


def process_share() -> tuple[int, int]:
  """Returns (i, n): this process takes every n-th item, from the i-th."""
  return jax.process_index(), jax.process_count()


def run_main_process_first(make: Callable[[], T]) -> T:
  """Calls `make` in process 0, then in the others; all return together.

  For files that are made once and that all then find; where processes do not
  see the same files, each makes its own. Waits as long as it takes.

  Raises:
    OtherProcessError: `make` raised in another process.
  """
  client = _client()
  if client is None:
    return make()
  key, value, error = f'atm/first/{next(_numbers)}', None, None
  if is_main_process() or _get(client, key) == 'done':
    try:
      value = make()
    except Exception as e:
      error = e
  if is_main_process():
    client.key_value_set(key, 'failed' if error else 'done')
  outcomes = _exchange(client, f'{key}/outcome', error and one_line(error))
  if error:
    raise error
  for process, outcome in enumerate(outcomes):
    if outcome:
      raise OtherProcessError(f'process {process}: {outcome}')
  return value


def wait_for_all() -> None:
  """Waits until all processes have come here, however long it takes."""
  run_main_process_first(lambda: None)


def publish(name: str, value) -> None:
  """Shows the others a value that JSON can hold, in place of the one before.

  Waits for nobody, and may be called in any thread.
  """
  if (client := _client()) is not None:
    key = f'atm/shown/{name}/{jax.process_index()}'
    client.key_value_set(key, json.dumps(value), allow_overwrite=True)


def collect_published(name: str) -> dict[int, Any]:
  """Returns what each process has published under a name so far."""
  if (client := _client()) is None:
    return {}
  shown = client.key_value_dir_get(f'atm/shown/{name}')
  return {int(k.rpartition('/')[2]): json.loads(value) for k, value in shown}


def check_processes_agree(**facts) -> None:
  """Raises ValueError, in all processes, unless they have the same `facts`.

  Facts are whatever JSON can hold; the message names the process that differs.
  """
  client = _client()
  if client is None:
    return
  digests = {name: fileio.hash_json(value) for name, value in facts.items()}
  everyone = _exchange(client, f'atm/same/{next(_numbers)}', digests)
  for process, theirs in enumerate(everyone):
    differ = [name for name in facts if theirs[name] != everyone[0][name]]
    if differ:
      raise ValueError(
        f'process {process} has another {" and ".join(differ)} than process '
        '0: start all with the same files and the same settings'
      )


def _client():
  """Returns the coordination service's client; None in a run of one process."""
  # Private: jax.experimental.multihost_utils exchanges arrays, on devices.
  from jax._src import distributed

  if (client := distributed.global_state.client) is not None:
    return client if distributed.global_state.num_processes > 1 else None
  if jax.process_count() == 1:
    return None
  raise ValueError(
    f'these are the devices of {jax.process_count()} hosts: set '
    "sharding.start.distributed = 'auto', and run the same on all of them"
  )


def _get(client, key: str) -> str:
  """Returns the value of a key, however long it takes to be set."""
  while True:
    try:
      return client.blocking_key_value_get(key, POLL_MS)
    except jax.errors.JaxRuntimeError as e:
      if 'DEADLINE_EXCEEDED' not in str(e):
        raise


def _exchange(client, key: str, value) -> list:
  """Returns the `value` of every process, in order, sent as JSON."""
  client.key_value_set(f'{key}/{jax.process_index()}', json.dumps(value))
  return [
    json.loads(_get(client, f'{key}/{n}')) for n in range(jax.process_count())
  ]


# --- Starting


@check_arguments(
  cpu_devices=partial(
    check_number, 'start.cpu_devices', least=1, most=MOST_DEVICES,
    optional=True,
  ),
  distributed=partial(
    check_choice, 'start.distributed', known=DISTRIBUTED, optional=True
  ),
  coordinator=partial(
    check_text, 'start.coordinator', empty=False, optional=True
  ),
  processes=partial(check_count, 'start.processes', optional=True),
  process=partial(check_index, 'start.process', optional=True),
  timeout=partial(check_count, 'start.timeout'),
  compilation_cache=partial(check_path, 'COMPILATION_CACHE', optional=True),
)  # fmt: skip
def start_jax(
  cpu_devices: int | None = None,
  distributed: str | None = None,
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
  timeout: int = 300,
  compilation_cache: str | None = None,
) -> None:
  """Prepares JAX and joins other processes; call before a device is touched.

  Args:
    cpu_devices: simulate this many devices on this process's CPU; None leaves
      the platform's own.
    distributed: 'auto' joins the processes of a TPU pod slice (or several), a
      SLURM step or Open MPI, which JAX finds. 'off': this process is a run of
      its own, though a launcher started several. None: as `coordinator` says.
    coordinator: 'host:port' of process 0, to join the others by hand.
    processes: how many processes the run has, with `coordinator`.
    process: which of them this is, from 0, with `coordinator`.
    timeout: seconds to wait for the others.
    compilation_cache: a folder that all hosts see, also of gs:// or s3://,
      where compiled programs are kept, so that a restart compiles none; None:
      JAX_COMPILATION_CACHE_DIR, or ~/.cache/atm/xla of each machine.

  Raises:
    ValueError: settings that do not fit each other or the environment, devices
      that exist already in another number, or others that did not come.
  """
  check_start_settings(distributed, coordinator, processes, process)
  if cpu_devices is not None:
    # JAX refuses once its backend is up, which is fine if it has that many.
    with contextlib.suppress(RuntimeError):
      jax.config.update('jax_platforms', 'cpu')
      jax.config.update('jax_num_cpu_devices', cpu_devices)
  joins = distributed == 'auto' or coordinator is not None
  if joins and not jax.distributed.is_initialized():
    connect(coordinator, processes, process, timeout)
  folder = compilation_cache or os.environ.get('JAX_COMPILATION_CACHE_DIR', '')
  if compilation_cache or storage.is_remote(folder):
    shared_programs.share_programs(folder)
  if cpu_devices is not None and jax.local_device_count() != cpu_devices:
    raise ValueError(
      f'start.cpu_devices = {cpu_devices}, but JAX has already started with '
      f'{jax.local_device_count()} devices.'
    )


def check_start_settings(distributed, coordinator, processes, process) -> None:
  """Raises ValueError where settings of `start_jax` do not fit each other."""
  by_hand = {'processes': processes, 'process': process}
  given = [f'start.{k} = {v!r}' for k, v in by_hand.items() if v is not None]
  if coordinator is None and given:
    raise ValueError(f'{", ".join(given)} without start.coordinator')
  if coordinator is not None:
    if distributed is not None:
      raise ValueError(
        f'start.distributed = {distributed!r} and start.coordinator = '
        f'{coordinator!r}: set one of them'
      )
    ints = all(isinstance(v, int) for v in by_hand.values())
    if not ints or not 0 <= process < processes:
      raise ValueError(
        f'start.processes = {processes!r}, start.process = {process!r}: '
        'start.coordinator needs both, and process from 0 to processes - 1'
      )
  launcher, count = detect_launcher()
  if count > 1 and distributed is None and coordinator is None:
    # Each would train alone, in one and the same MODEL_DIR.
    raise ValueError(
      f'{launcher} started {count} processes, and each would be a run of its '
      "own: set sharding.start.distributed = 'auto' to join them, 'off' if "
      'that is meant'
    )
