"""Starting JAX, and settings that do not fit; several processes: hosts_test."""

import os

import jax
import pytest

from atm.parallel import distributed


def test_start_refuses_another_number_of_devices():
  assert jax.device_count() == 8  # starts JAX
  with pytest.raises(ValueError, match='already started with 8'):
    distributed.start_jax(cpu_devices=4)
  distributed.start_jax(cpu_devices=8)


@pytest.mark.parametrize(
  'settings, message',
  [
    (dict(distributed='atuo'), "'atuo'.*Did you mean 'auto'"),
    (dict(distributed='auto', coordinator='a:1'), 'set one of them'),
    (dict(processes=2), 'start.processes = 2 without start.coordinator'),
    (dict(coordinator='a:1'), 'start.processes = None.*needs both'),
    (
      dict(coordinator='a:1', processes=2, process=2),
      'start.process = 2: .*from 0 to processes - 1',
    ),
    (
      dict(coordinator='host', processes=2, process=1),
      "coordinator = 'host': expected 'host:port'",
    ),
    (
      dict(timeout=0),
      'start.timeout = 0: expected a whole number of at least 1',
    ),
  ],
)
def test_start_names_what_does_not_fit(settings, message):
  with pytest.raises(ValueError, match=message):
    distributed.start_jax(**settings)


@pytest.mark.parametrize(
  'name, environment',
  [
    ('SLURM', {'SLURM_NTASKS': '4', 'SLURM_STEP_NODELIST': 'node[1-4]'}),
    ('TPU', {'TPU_WORKER_HOSTNAMES': 'a,b,c,d'}),
  ],
)
def test_copies_of_one_run_are_refused(monkeypatch, name, environment):
  """What a launcher started four times must not train four times in one
  MODEL_DIR by itself."""
  for variable, value in environment.items():
    monkeypatch.setenv(variable, value)
  with pytest.raises(ValueError, match=f"{name} started 4 .*'auto'.*'off'"):
    distributed.start_jax()
  distributed.start_jax(distributed='off')


@pytest.mark.parametrize(
  'environment, expected',
  [
    ({'SLURM_NTASKS': '4'}, ('', 1)),  # a batch script, of which there is one
    ({'SLURM_NTASKS': '1', 'SLURM_STEP_NODELIST': 'a'}, ('', 1)),
    (
      {'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_MCA_orte_hnp_uri': 'a'},
      ('Open MPI', 2),
    ),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, ('', 1)),
  ],
)
def test_launchers_are_known_by_their_environment(
  monkeypatch, environment, expected
):
  """Fault seen: SLURM_NTASKS taken for a step's."""
  for variable, value in environment.items():
    monkeypatch.setenv(variable, value)
  assert distributed.detect_launcher() == expected


def test_a_run_of_one_process_waits_for_nobody():
  """Nor does it end early. Fault seen: ended by `exit_process`."""
  assert distributed.run_main_process_first(lambda: 'made') == 'made'
  distributed.check_processes_agree(seed=1)
  distributed.exit_process(3)
  assert distributed.process_share() == (0, 1) and distributed.is_main_process()


def test_cores_are_those_of_the_process(monkeypatch):
  assert 1 <= distributed.count_cores() <= (os.cpu_count() or 1)
  monkeypatch.delattr(os, 'sched_getaffinity')  # as on macOS
  assert distributed.count_cores() == (os.cpu_count() or 1)
