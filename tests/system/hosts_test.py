"""Several processes on this machine are one run, and the run of one process.

Processes have simulated CPU devices and talk over loopback.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import gin
from atm.checkpoint import best_step, manager, paths
from atm.cli import gin_config, main
from atm.inference import api
from atm.parallel import mesh as mesh_lib
from atm.train import trainer

from tiny_runs import comparable

pytestmark = pytest.mark.processes

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENV = {
  **{k: v for k, v in os.environ.items() if 'proxy' not in k.lower()},
  'JAX_PLATFORMS': 'cpu',
  'PYTHONPATH': os.path.dirname(HERE),
}
# Reductions between processes add in another order than within one. Seen:
# losses 1.6e-6, parameters 2.6e-7 apart after 8 steps.
LOSSES, PARAMETERS = 1e-5, 1e-5
STEPS = 8


def free_port(low=0) -> int:
  """A port nobody listens on; of the range SLURM's are drawn from, with low."""
  for port in range(low, low + 4096) if low else [0]:
    with socket.socket() as probe:
      try:
        probe.bind(('127.0.0.1', port))
      except OSError:
        continue
      return probe.getsockname()[1]
  raise AssertionError('no free port')


def test_four_processes_as_slurm_starts_them(tmp_path):
  """Meeting, one going first, failing together, and the rows each feeds.

  Faults seen: rows by the number of the process; rows of the whole batch taken
  from a share of it; process 0 not waited for; a failure of process 2 not told;
  other settings not told.
  """
  port = free_port(61440)
  slurm = {
    'SLURM_JOB_ID': str(port - 61440),
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': '4',
  }
  running = [
    subprocess.Popen(
      [sys.executable, f'{HERE}/hosts_child.py', str(tmp_path)],
      env={**ENV, **slurm, 'SLURM_PROCID': str(n), 'SLURM_LOCALID': str(n)},
      stdout=subprocess.DEVNULL,
    )
    for n in range(4)
  ]
  assert [child.wait(timeout=120) for child in running] == [0] * 4
  seen = []
  for n in range(4):
    seen.append(json.loads((tmp_path / f'seen-{n}.json').read_text()))
  assert [s['share'] for s in seen] == [[n, 4] for n in range(4)]
  assert {s['made'] for s in seen} == {'once'}
  for n, s in enumerate(seen):
    others = 'OtherProcessError: process {}: no disk in {}'
    own = lambda k: f'OSError: no disk in {k}'
    assert s['first_fails'] == (others.format(0, 0) if n else own(0))
    assert s['third_fails'] == (own(2) if n == 2 else others.format(2, 2))
    assert s['ran'] == ([2] if n else [0, 2])
    assert s['same'] == 'none'
    assert 'process 3 has another seed than process 0' in s['another']
    assert all(f['right'] and not f['wrong'] for f in s['fed'])
  rows = [[f['rows'] for f in s['fed']] for s in seen]
  for number in (0, 1):
    assert [r[number] for r in rows] == np.arange(16).reshape(4, 4).tolist()
  halves = np.arange(16).reshape(2, 8).tolist()
  assert [r[2] for r in rows] == [halves[0], halves[0], halves[1], halves[1]]
  assert [r[3] for r in rows] == np.arange(16).reshape(4, 4).tolist()
  assert [r[4] for r in rows] == [list(range(16))] * 4


# --- The command


def settings(directory, words, mesh, steps, **more) -> list[str]:
  """A small pre-training run, as arguments of `atm`."""
  bound = {
    'MODEL_DIR': str(directory), 'VOCABULARY': words.path, 'ROW_PASSES': 1,
    'TASK_FEATURE_LENGTHS': {'inputs': 32, 'targets': 32}, 'BATCH_SIZE': 16,
    'TRAIN_STEPS': steps, 'LOG_EVERY': 1, 'SAVE_EVERY': 2, 'EVAL_EVERY': 4,
    # Keys' biases have no gradient but rounding's, which Adam would scale up.
    'optimizer.Config.eps': 1e-6, 'KEEP': None,
    'model.Config.vocab_size': words.size, 'trainer.train.eval_rows': 2,
    **{f'model.Config.{k}': 32 for k in
       ('d_model', 'encoder_ff', 'decoder_ff', 'positions')},
    **{f'model.Config.{k}': 1 for k in
       ('encoder_layers', 'decoder_layers', 'unroll')},
    **{f'sharding.mesh.{k}': v for k, v in mesh.items()},
    **more,
  }  # fmt: skip
  return [
    'pretrain',
    '--gin_file=models/tiny.gin',
    *(f'--gin.{name}={value!r}' for name, value in bound.items()),
  ]


def infer_settings(directory, prompts, output, **more) -> list[str]:
  """`atm infer` of a run, as arguments of `atm`."""
  bound = {
    'MODEL_DIR': str(directory), 'INPUT': str(prompts), 'OUTPUT': str(output),
    'MAX_TOKENS': 6, 'BATCH_SIZE': 4, 'sharding.mesh.data': 2,
    'sharding.mesh.tensor': 2, **more,
  }  # fmt: skip
  return ['infer', *(f'--gin.{k}={v!r}' for k, v in bound.items())]


def eval_settings(directory, output, **more) -> list[str]:
  """`atm eval` of a run: choices, and answers that are written."""
  bound = {
    'MODEL_DIR': str(directory), 'OUTPUT': str(output), 'BATCH_SIZE': 4,
    'TASKS': ('udhr_next_de', 'udhr_translate_en_de'), 'LIMIT': 5,
    'sharding.mesh.data': 2, 'sharding.mesh.tensor': 2, **more,
  }  # fmt: skip
  arguments = (f'--gin.{k}={v!r}' for k, v in bound.items())
  return ['eval', '--gin_file=suites/shipped.gin', *arguments]


class Processes:
  """A run of several processes; all of them are killed in the end."""

  def __init__(
    self, count, devices, directory, *args, timeout=300, make=settings, **more
  ):
    port = free_port()
    self.logs = [f'{directory}-{count}-{n}.log' for n in range(count)]
    self.running = []
    for n, log in enumerate(self.logs):
      place = {
        'coordinator': f'127.0.0.1:{port}', 'processes': count, 'process': n,
        'cpu_devices': devices // count, 'timeout': timeout,
      }  # fmt: skip
      place = {f'sharding.start.{k}': v for k, v in place.items()}
      arguments = make(directory, *args, **place, **more)
      with open(log, 'w') as f:
        self.running.append(
          subprocess.Popen(
            [sys.executable, '-m', 'atm.cli.main', *arguments],
            env=ENV,
            stdout=f,
            stderr=subprocess.STDOUT,
          )  # fmt: skip
        )

  def __enter__(self):
    return self

  def __exit__(self, *error):
    for process in self.running:
      process.send_signal(signal.SIGKILL)
    for process in self.running:
      process.wait()

  def log(self, n: int) -> str:
    with open(self.logs[n]) as f:
      return f.read()

  def until(self, true, seconds=300):
    """Waits; fails with the logs when a process has ended or time is over."""
    end = time.time() + seconds
    while not true():
      alive = all(process.poll() is None for process in self.running)
      if not alive or time.time() > end:
        logs = [self.log(n)[-2000:] for n in range(len(self.logs))]
        pytest.fail('\n=====\n'.join(logs))
      time.sleep(0.05)

  def wait(self, seconds=300) -> list[int]:
    return [process.wait(timeout=seconds) for process in self.running]


class Stop(Exception):
  """Raised where a run in this process is to be cut off."""


def alone(directory, words, mesh, stop_at=None, **more):
  """The run in this process, over as many of its devices as `mesh` has."""
  count = int(np.prod(list(mesh.values())))
  one = lambda: mesh_lib.make_mesh(**mesh, devices=jax.devices()[:count])

  def say(text):
    if stop_at is not None and text.startswith(f'step {stop_at}/'):
      raise Stop

  with gin.unlock_config():
    _, files, bindings, modules = main.parse_arguments(
      settings(directory, words, mesh, STEPS, **more)
    )
    gin_config.apply_config(files, bindings, modules)
    make_config = gin.get_configurable('trainer.train')
    trainer.train(make_config(make_mesh=one, say=say))
  gin.clear_config()


def assert_same_run(a, b):
  """Losses, token counts and parameters of two MODEL_DIRs agree."""
  for x, y in zip(comparable(a), comparable(b), strict=True):
    assert x.keys() == y.keys()
    for name in x:
      exact = name.startswith(('step', 'tokens', 'padding'))
      limit = 0 if exact else LOSSES
      assert abs(x[name] - y[name]) <= limit, (x['step'], name)
  data = [manager.CheckpointManager(str(d)).meta(STEPS)['data'] for d in (a, b)]
  assert data[0] == data[1]  # the rows' files too, who ever made them
  a, b = (api.load(str(d), STEPS).params for d in (a, b))  # on one device
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=PARAMETERS), a, b
  )


def saved(directory, step: int):
  """A function: whether the checkpoint of a step is there."""
  return lambda: os.path.isdir(f'{directory}/{paths.CHECKPOINTS}/{step}')


def drop_later_steps(directory, last: int) -> None:
  """Removes whole checkpoints that a fast machine saved before its end."""
  for path in (directory / paths.CHECKPOINTS).iterdir():
    if path.name.isdigit() and int(path.name) > last:
      shutil.rmtree(path)


@pytest.mark.parametrize('first', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_killed_and_resumed_with_other_processes(words, tmp_path, first):
  """2 or 4 processes, killed; then 1, cut off; then 2: the run of one process.

  Of 4, each holds a part of `tensor` and of `fsdp`. Faults seen: held-out sums
  of a process's own rows; metrics.jsonl written by all; all print; the report
  in process 0 waits for others in Orbax; where a process stood in config.gin.
  Early stopping ends all of them at STEPS.
  """
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  mesh = dict(data=1, fsdp=2, tensor=2)
  early = {'KEEP_BEST': 'eval/loss/clm', 'PATIENCE': 1, 'MIN_DELTA': 9.0,
           'TRAIN_STEPS': STEPS + 4}  # fmt: skip
  alone(whole, words, mesh, **early)
  with Processes(first, 4, parts, words, mesh, 1000) as run:
    run.until(saved(parts, 2))
  drop_later_steps(parts, 2)
  assert f'4 cpu device(s) of {first} processes' in run.log(0)
  assert not any(run.log(n) for n in range(1, first))
  with pytest.raises(Stop):
    alone(parts, words, mesh, stop_at=7, **early)
  with Processes(2, 4, parts, words, mesh, STEPS, **early) as run:
    assert run.wait() == [0, 0]
  assert f'step {STEPS} of {STEPS + 4}: stopped early' in run.log(0)
  best = [best_step.read_best(str(folder)) for folder in (whole, parts)]
  assert [(x.step, x.stopped_at) for x in best] == [(best[0].step, STEPS)] * 2
  assert 'resumed from step 6' in run.log(0) and 'loss.png' in run.log(0)
  assert run.log(1) == ''
  assert_same_run(whole, parts)
  assert 'Gloo' not in run.log(0)
  config = (parts / 'config.gin').read_text()
  assert 'start.cpu_devices' in config and 'start.process' not in config
  texts = ['Everyone', 'All human beings are', 'Jeder', 'a', 'よって']
  prompts, output = tmp_path / 'prompts.txt', tmp_path / 'output'
  prompts.write_text(''.join(text + '\n' for text in texts))
  with Processes(2, 4, parts, prompts, output, make=infer_settings) as run:
    assert run.wait() == [0, 0]
  assert run.log(1) == ''
  rows = [json.loads(line) for line in output.read_text().splitlines()]
  made = api.load(str(parts)).generate(texts, max_tokens=6)
  assert [row['output'] for row in rows] == made


@pytest.mark.slow
def test_processes_answer_a_suite_as_one(words, tmp_path):
  """Two processes of two devices each, and one of one."""
  run, mesh = tmp_path / 'run', dict(data=1, fsdp=2, tensor=2)
  alone(run, words, mesh)
  results = []
  for count, devices in ((2, 4), (1, 1)):
    output = tmp_path / f'out{count}'
    one = {} if count > 1 else {'sharding.mesh.data': 1,
                                'sharding.mesh.tensor': 1}  # fmt: skip
    with Processes(
      count, devices, run, output, make=eval_settings, **one
    ) as running:
      assert running.wait() == [0] * count
      assert not any(running.log(n) for n in range(1, count))
    results.append(json.loads((output / 'results.json').read_text()))
  for a, b in zip(*(found['tasks'] for found in results), strict=True):
    assert a['predictions'] == b['predictions']
    assert a['scores'] == b['scores']


@pytest.mark.slow
@pytest.mark.parametrize(
  'first, second, mesh',
  [
    (2, 4, dict(data=8)),
    (4, 2, dict(data=1, fsdp=8)),
    (2, 4, dict(data=2, fsdp=2, tensor=2)),
    (4, 2, dict(slice=2, data=1, fsdp=1, tensor=4)),
  ],
)
def test_any_processes_on_any_mesh(words, tmp_path, first, second, mesh):
  """Eight devices in 2 and 4 processes, killed, and resumed with the other."""
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  alone(whole, words, mesh)
  with Processes(first, 8, parts, words, mesh, 1000) as run:
    run.until(saved(parts, 4))
  drop_later_steps(parts, 4)
  with Processes(second, 8, parts, words, mesh, STEPS) as run:
    assert run.wait() == [0] * second
  assert 'resumed from step' in run.log(0)
  assert_same_run(whole, parts)


def test_a_coordinator_that_cannot_be_reached_is_one_line(words, tmp_path):
  """Fault seen: JAX's own wait, which aborts with a stack trace."""
  with Processes(2, 2, tmp_path / 'run', words, {}, 1, timeout=3) as run:
    run.running[0].kill()
    assert run.wait()[1] == 2
  lines = run.log(1).splitlines()
  assert len(lines) == 1 and lines[0].startswith('atm: error: ')
  assert re.search('cannot be reached .*after 3 s .*start.timeout', lines[0])
