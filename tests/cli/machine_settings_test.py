"""A run's own config.gin decides nothing of the machine of the next start."""

import os

import pytest

import gin
from atm.cli import commands, gin_config, main
from atm.parallel import distributed, mesh

# What a run of two processes of four devices each wrote, in part.
WRITTEN = """
import atm_tasks
MODEL_DIR = 'run'
TASK_FEATURE_LENGTHS = {'inputs': 48, 'targets': 48}
BATCH_SIZE = 8
TRAIN_STEPS = 4
mesh.data = 2
mesh.fsdp = 4
mesh.tensor = 2
start.cpu_devices = 3
start.distributed = 'auto'
start.timeout = 5
"""


OWN = {'compilation_cache': None}  # of pretrain.gin


@pytest.fixture
def start(tmp_path, monkeypatch):
  """Starts `atm pretrain` with WRITTEN and more; returns (mesh, start)."""
  monkeypatch.chdir(tmp_path)
  os.makedirs('run/checkpoints')

  def call(*arguments, name='config.gin', run='pretrain'):
    with open(f'run/{name}', 'w') as f:
      f.write(WRITTEN)
    bound = []

    def see():
      bound[:] = (
        gin_config.get_bindings(mesh.make_mesh),
        gin_config.get_bindings(distributed.start_jax),
      )

    monkeypatch.setitem(commands.RUNS, run, see)
    # Which file binds what is forgotten, as what is bound.
    monkeypatch.setattr(gin_config, '_applied', [*gin_config._applied])
    with gin.unlock_config():
      gin.clear_config()
      main.run_command([run, f'--gin_file=run/{name}', *arguments])
    return bound

  return call


def test_of_config_gin_no_process_and_a_mesh_that_fits(start, capsys):
  """Fault seen: 'product 16 does not fit 4 devices', of a run of two."""
  assert start() == [dict(slice=1, data=1, fsdp=4, tensor=2), OWN]
  said = capsys.readouterr().err
  assert said == (
    'atm: the mesh of ./run/config.gin (slice 1 x data 2 x fsdp 4 x tensor 2) '
    'does not fit 8 device(s) and becomes slice 1 x data 1 x fsdp 4 x tensor 2;'
    ' sharding.mesh.* set another\n'
  )


def test_what_is_given_besides_stands(start, capsys):
  own = dict(data=8, fsdp=1, tensor=1)
  bindings = [f'--gin.sharding.mesh.{k}={v}' for k, v in own.items()]
  found = start(*bindings, '--gin.sharding.start.cpu_devices=8')
  assert found == [own, {**OWN, 'cpu_devices': 8}]
  one = start('--gin.sharding.mesh.data=1')[0]
  assert one == dict(data=1, fsdp=4, tensor=2)
  assert start('--gin_file=pods/cpu8.gin')[1] == {**OWN, 'cpu_devices': 8}
  assert not capsys.readouterr().err


def test_a_file_of_the_users_own_binds_all(start):
  with pytest.raises(ValueError, match="start.distributed = 'auto'"):
    start(name='mine.gin')


def test_a_plan_is_of_the_machine_that_the_run_was_on(start):
  sizes, places = start(run='plan')
  assert sizes == dict(data=2, fsdp=4, tensor=2)
  assert places == dict(cpu_devices=3, distributed='auto', timeout=5)
