"""Runs that are killed: at random moments, or at named points inside a save.

Saves of a tiny model last milliseconds, so a fault is put in: Python's audit
events tell of every folder that is made, renamed or removed and of every file
that is opened, whichever library does it. A child that is to die at a point
kills itself, by SIGKILL, just before that event happens.

Importing everything takes seconds; so one process (`Nursery`) imports, touches
no device, and forks a child for every run.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time

TMP = r'\.orbax-checkpoint-tmp'
# Name -> events, each with a path; all but the last must have come before.
POINTS = {
  'begin': ('os.mkdir', rf'/\d+{TMP}$'),
  'begun': ('open', rf'/\d+{TMP}/_CHECKPOINT_METADATA$'),
  'items': ('os.mkdir', rf'/params{TMP}$'),
  'meta': ('open', rf'/meta{TMP}/metadata$'),
  'arrays': ('open', rf'/params{TMP}/array_metadatas/process_0$'),
  'params written': ('os.rename', rf'/params{TMP}$'),
  'params without meta': ('os.rename', rf'/meta{TMP}$'),
  'commit': ('os.rename', rf'/\d+{TMP}$'),
  'committed': ('shutil.rmtree', r'/checkpoints/\d+$'),
  'cleanup': (  # half-way through removing an old step
    'shutil.rmtree', r'/checkpoints/\d+$',
    'os.remove', r'^(_METADATA|process_0|manifest.ocdbt)$',
  ),
}  # fmt: skip
IN_A_SAVE = tuple(POINTS)
POINTS |= {
  'metrics': ('open', r'/metrics\.jsonl$'),
  'rewind': ('os.rename', r'/metrics\.jsonl\.partial-\d+$'),
  'config': ('os.rename', r'/config\.gin\.partial-\d+$'),
  'sweep': ('shutil.rmtree', rf'/\d+{TMP}$'),
}
# The same of a MODEL_DIR in an object store: a kind of call, and its path; see
# `storage.client.call`.
BUCKET_POINTS = {
  'begin': ('writing', r'/checkpoints/\d+/'),
  'begun': ('writing', r'/checkpoints/\d+/params/'),
  'meta': ('writing', r'/checkpoints/\d+/meta/'),
  'optimizer': ('writing', r'/checkpoints/\d+/optimizer/'),
  'commit': ('writing', r'/checkpoints/\d+/commit_success\.txt$'),
  'committed': ('removing', r'/checkpoints/\d+/commit_success\.txt$'),
  'cleanup': ('removing', r'/checkpoints/\d+/params/'),
  'lock': ('writing', r'/lock\.\d+$'),
  'metrics': ('writing', r'/metrics\.jsonl/'),
  'rewind': ('writing', r'/metrics\.jsonl/.*\.whole\.jsonl$'),
  'rewound': ('removing', r'/metrics\.jsonl/'),
  'config': ('writing', r'/config\.gin$'),
  'sweep': ('removing', r'/checkpoints/\d+/'),
}
IN_A_BUCKET_SAVE = (
  'begin', 'begun', 'meta', 'optimizer', 'commit', 'committed', 'cleanup'
)  # fmt: skip
SAVE_EVERY = 3  # steps, in runs that do not say otherwise
TORN = 'torn metrics'  # half a line of metrics.jsonl is written


# --- In a child


def die() -> None:
  os.kill(os.getpid(), signal.SIGKILL)


def die_at(point: str, nth: int) -> None:
  """Kills this process just before the nth time that it comes to a point."""
  if point == TORN:
    tear_metrics(nth)
    return
  told = POINTS[point]
  events = list(zip(told[::2], told[1::2]))
  left = [nth]

  def hook(name, arguments):
    if name != events[0][0] or not arguments:
      return
    text = arguments[0]
    if not isinstance(text, str | os.PathLike):
      return
    if name == 'open' and not set('wa') & set(arguments[1] or ''):
      return
    if re.search(events[0][1], os.fspath(text)):
      if len(events) > 1:
        events.pop(0)
        return
      left[0] -= 1
      if not left[0]:
        die()

  sys.addaudithook(hook)


def die_at_call(point: str, nth: int) -> None:
  """Kills this process just before the nth such call to an object store."""
  from atm.storage import copies, files

  doing, pattern = BUCKET_POINTS[point]
  left = [nth]

  def call(what, path, work):
    if what == doing and re.search(pattern, path):
      left[0] -= 1
      if not left[0]:
        die()
    return plain(what, path, work)

  plain, files.call, copies.call = files.call, call, call


def tear_metrics(nth: int) -> None:
  from atm.train import metric_writer

  left = [nth]

  def write(self, step, values):
    left[0] -= 1
    if not left[0]:
      with open(self.path, 'a') as f:
        f.write(json.dumps({'step': step, **values})[:20])
      die()
    whole(self, step, values)

  whole, metric_writer.MetricWriter.write = (
    metric_writer.MetricWriter.write,
    write,
  )


def child(run: dict) -> None:
  """One run of the loop; `run` is what `Nursery.start` was given."""
  log = os.open(run['log'], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
  os.dup2(log, 1)
  os.dup2(log, 2)
  import jax

  # What dies while it writes a program into the cache leaves half of it.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', run['cache'])
  if run['room']:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (run['room'], hard))
  if run['point']:
    remote = '://' in run['directory']
    (die_at_call if remote else die_at)(run['point'], run['nth'])
  if run['command']:
    from atm.cli import main

    sys.argv = ['atm']
    raise SystemExit(main.main(run['command']))
  train(run['directory'], run['rows'], **run['settings'])


def train(directory: str, rows: str, d_model: int = 32, **changes):
  import jax

  import atm_tasks
  from atm.model import config as config_lib
  from atm.parallel import mesh
  from atm.train import optimizer, trainer
  from atm.train.config import TrainConfig

  config = config_lib.ModelConfig(
    vocab_size=2048, d_model=d_model, encoder_layers=1, decoder_layers=1,
    encoder_heads=2, decoder_heads=2, encoder_ff=64, decoder_ff=64,
    positions=64, dtype='float32', dropout=0.1,
  )  # fmt: skip
  settings = dict(
    model_dir=directory, mixture='udhr', cache_dir=rows,
    lengths={'inputs': 32, 'targets': 32}, batch_size=8, train_steps=30,
    model_config=config,
    optimizer_config=optimizer.OptimizerConfig(
      learning_rate=1e-3, decay_steps=50
    ),
    make_mesh=lambda: mesh.make_mesh(devices=jax.devices()[:1]),
    log_every=1, eval_every=4, eval_rows=2, save_every=SAVE_EVERY, keep=2,
    configure_tasks=atm_tasks.configure,
    say=lambda text: print(text, flush=True),
  )  # fmt: skip
  return trainer.train(TrainConfig(**{**settings, **changes}))


def nursery() -> None:
  """Imports all, then forks a child for every line of JSON that it reads."""
  import seqio  # noqa: F401
  from array_record.python import array_record_module  # noqa: F401

  import atm_tasks  # noqa: F401
  from atm.parallel import xla_options
  from atm.train import trainer  # noqa: F401

  import conftest  # sets devices and the compilation cache

  xla_options.set_flags()  # as the command does
  conftest.collect_rarely()
  answers = os.fdopen(os.dup(1), 'w')
  print('ready', file=answers, flush=True)
  for line in sys.stdin:
    pid = os.fork()
    if not pid:
      code = 1
      try:
        child(json.loads(line))
        code = 0
      except SystemExit as e:
        code = e.code
      except KeyboardInterrupt:
        code = 130
      except BaseException:
        import traceback

        traceback.print_exc()
      finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(pid, file=answers, flush=True)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


# --- In the parent


@dataclasses.dataclass
class Ended:
  """How a child ended: its exit code (-9: killed), seconds, and lines."""

  code: int
  seconds: float
  lines: list[str]


class Nursery:
  """Starts runs one after another."""

  def __init__(self, folder: str, rows: str):
    """Logs go to `folder`; `rows` is the cache that all runs read."""
    self.folder, self.rows, self.count = folder, rows, 0
    here = os.path.dirname(os.path.abspath(__file__))
    self.errors = open(os.path.join(folder, 'nursery.log'), 'w')  # noqa: SIM115
    self.process = subprocess.Popen(
      [sys.executable, os.path.join(here, 'survive.py')],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self.errors,
      text=True,
      env={**os.environ, 'PYTHONPATH': f'{os.path.dirname(here)}:{here}'},
    )
    assert self._answer() == 'ready'

  def close(self) -> None:
    self.process.stdin.close()
    self.process.wait(60)
    self.errors.close()

  def __enter__(self):
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def _answer(self) -> str:
    return self.process.stdout.readline().strip()

  @contextlib.contextmanager
  def start(
    self,
    directory='',
    point=None,
    nth=1,
    command=None,
    room=0,
    cache=1e9,
    **settings,
  ):
    """A child at work; yields a `Child`, and waits for it.

    Args:
      directory: its MODEL_DIR.
      point, nth: see `die_at`.
      command: arguments of `atm`, instead of a directory and settings.
      room: no file may become larger, in bytes, as on a full disk.
      cache: seconds of compilation from which a program is kept; none is.
      **settings: of `train`.
    """
    self.count += 1
    log = os.path.join(self.folder, f'{self.count}.log')
    with contextlib.suppress(FileNotFoundError):
      os.remove(log)
    run = dict(
      directory=str(directory), rows=self.rows, point=point, nth=nth,
      command=command, room=room, cache=cache, settings=settings, log=log,
    )  # fmt: skip
    self.process.stdin.write(json.dumps(run) + '\n')
    self.process.stdin.flush()
    made = Child(int(self._answer()), log, time.perf_counter())
    try:
      yield made
    finally:
      code = int(self._answer())
      seconds = time.perf_counter() - made.began
      made.ended = Ended(code, seconds, made.lines())

  def run(self, *arguments, **named) -> Ended:
    with self.start(*arguments, **named) as made:
      pass
    return made.ended


@dataclasses.dataclass
class Child:
  """A run at work."""

  pid: int
  log: str
  began: float
  ended: Ended | None = None

  def lines(self) -> list[str]:
    if not os.path.exists(self.log):
      return []
    with open(self.log, errors='replace') as f:
      return f.read().splitlines()

  def wait_for(self, text: str, seconds: float = 120) -> None:
    """Until a line that begins with `text` is printed."""
    until = time.perf_counter() + seconds
    while not any(line.startswith(text) for line in self.lines()):
      assert time.perf_counter() < until, self.lines()
      time.sleep(0.01)

  def send(self, number: int) -> None:
    os.kill(self.pid, number)


def last_step(directory) -> int:
  """The last step in a run's metrics.jsonl."""
  from atm.train import metric_writer

  return max(
    (row['step'] for row in metric_writer.read_metrics(str(directory))),
    default=0,
  )


def saved_steps(directory) -> list[int]:
  """The steps that are listed, of a run that is not at work."""
  return [step for step, whole in list_steps(directory).items() if whole]


def list_steps(directory) -> dict[int, bool]:
  """Steps that have a folder -> whether they are listed, of a MODEL_DIR."""
  from atm import storage

  folder = os.path.join(directory, 'checkpoints')
  names = storage.list_names(folder) if storage.is_folder(folder) else []
  steps = sorted(int(name) for name in names if name.isdigit())
  return {
    step: not storage.is_remote(folder)
    or storage.exists(f'{folder}/{step}/commit_success.txt')
    for step in steps
  }


def is_inside_a_save(directory) -> bool:
  """Whether a step was half written or half removed when the run died."""
  if '://' in str(directory):
    return not all(list_steps(directory).values())
  folder = os.path.join(directory, 'checkpoints')
  names = os.listdir(folder) if os.path.isdir(folder) else []
  whole = {'params', 'optimizer', 'meta', '_CHECKPOINT_METADATA'}
  return any('checkpoint-tmp' in name for name in names) or any(
    not whole <= set(os.listdir(os.path.join(folder, name)))
    for name in names
    if name.isdigit()
  )


def state_of(directory, step: int) -> dict:
  """Every array of a checkpoint, by name, as Orbax reads it."""
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  from atm import storage

  found = {}
  for item in ('params', 'optimizer'):
    path = os.path.join(str(directory), 'checkpoints', str(step), item)
    path = storage.fetch(path)
    with ocp.StandardCheckpointer() as reader:
      tree = reader.restore(path)
    for key, value in jax.tree_util.tree_flatten_with_path(tree)[0]:
      found[item + jax.tree_util.keystr(key)] = np.asarray(value)
  return found


# --- Kills


@dataclasses.dataclass
class Tally:
  """What became of the kills.

  Attributes:
    kills: how many; inside: of them, while a step was half written or removed.
    resumes: processes that said from which step they went on, or finished.
    lost: steps done again, by kill.
    in_flight: of them, those done while the last save was being written.
    finished: runs that came to their end, bit for bit as the one not killed.
  """

  kills: int = 0
  inside: int = 0
  resumes: int = 0
  finished: int = 0
  lost: list[int] = dataclasses.field(default_factory=list)
  in_flight: list[int] = dataclasses.field(default_factory=list)


class Campaign:
  """Kills runs and starts them again, until each is as if never killed."""

  def __init__(self, nursery: Nursery, folder, seed: int, **settings):
    """Does one run that is not killed, to compare with."""
    self.nursery, self.folder, self.settings = nursery, str(folder), settings
    self.draw, self.tally, self.round = random.Random(seed), Tally(), 0
    self.points, self.in_a_save = POINTS, IN_A_SAVE
    if '://' in self.folder:
      self.points, self.in_a_save = BUCKET_POINTS, IN_A_BUCKET_SAVE
    self.whole = os.path.join(self.folder, 'whole')
    ended = nursery.run(self.whole, cache=0.1, **settings)
    assert ended.code == 0, ended.lines
    self.seconds = ended.seconds
    self.steps = saved_steps(self.whole)
    self._next_round()

  def _next_round(self) -> None:
    self.round += 1
    self.begun = 0  # a step whose save was under way when a process died
    self.directory = os.path.join(self.folder, f'round-{self.round}')

  def kill(self, point: str | None = None, nth: int = 1) -> bool:
    """Goes on with the run and kills it; whether it came to that.

    At a random moment where no point is named. A run that ends before is
    compared, and the next kill meets a new run.
    """
    before = self._where()
    with self._start(point, nth) as run:
      if point is None:
        time.sleep(self.draw.uniform(0, self.seconds))
        with contextlib.suppress(ProcessLookupError):
          run.send(signal.SIGKILL)
    self._look(run.ended, before)
    if run.ended.code == 0:
      self.seconds = min(self.seconds, run.ended.seconds)
      self._compare()
      self._next_round()
      return False
    assert run.ended.code == -signal.SIGKILL, run.ended.lines
    self.tally.kills += 1
    self.tally.inside += point in self.in_a_save or is_inside_a_save(
      self.directory
    )
    return True

  def kill_all(self, kills: int, inside: int) -> None:
    """That many kills, `inside` of them at points inside a save."""
    waiting = collections.deque(self._orders(kills, inside))
    while waiting:
      if self.kill(*waiting[0]):
        waiting.popleft()
      else:
        waiting.rotate(-1)
    self.finish()

  def _orders(self, kills: int, inside: int) -> list[tuple[str | None, int]]:
    """(point, which time it is come to) of every kill; None: at random."""
    draw, beside = self.draw, self.points.keys() - {*self.in_a_save}
    if self.points is POINTS:  # an object is whole
      beside = TORN, *beside
    points = itertools.islice(itertools.cycle(self.in_a_save), inside - 1)
    made = [(point, draw.randint(1, 3)) for point in points]
    made += [(point, 1) for point in sorted(beside)]
    # There must be something to sweep, and rows that are done again.
    after = ['sweep']
    if self.points is BUCKET_POINTS:
      after += ['rewind', 'rewound']
    made += [(None, 1)] * (kills - len(made) - len(after))
    draw.shuffle(made)
    for point in after:
      where = made.index((point, 1))
      made = [*made[:where], ('begun', 1), *made[where:]]
    return made

  def finish(self) -> None:
    """Lets the run come to its end."""
    before = self._where()
    ended = self.nursery.run(self.directory, **self.settings)
    self._look(ended, before)
    assert ended.code == 0, ended.lines
    self._compare()
    self._next_round()

  def _start(self, point, nth):
    return self.nursery.start(self.directory, point, nth, **self.settings)

  def _where(self) -> tuple[int, list[int], int]:
    """(last step done, steps saved, step whose save was under way or 0)."""
    folder = os.path.join(self.directory, 'checkpoints')
    names = os.listdir(folder) if os.path.isdir(folder) else []
    begun = [int(x.split('.')[0]) for x in names if 'checkpoint-tmp' in x]
    begun += [n for n, whole in list_steps(self.directory).items() if not whole]
    saved = saved_steps(self.directory)
    return last_step(self.directory), saved, max(begun, default=0)

  def _look(self, ended: Ended, before) -> None:
    """What a process made of what the one before had left."""
    done, saved, begun = before
    # One that dies before it resumes may have swept what was half written.
    begun = self.begun = max(begun, self.begun)
    said = [line for line in ended.lines if line.startswith('resumed from')]
    assert not any('damaged' in line for line in ended.lines), ended.lines
    if not saved:
      assert not said, said
    elif said:
      step = int(said[0].split()[3])
      assert step == saved[-1], (said, saved)
      every = self.settings.get('save_every', SAVE_EVERY)
      lost = max(0, done - step)
      # The next save had begun, though no folder of it need be there yet; the
      # one behind it waits for it, and the steps behind that for both.
      if begun <= step:  # or is of a process before, and was done since
        begun = step + every if lost > every else 0
      in_flight = done - begun if begun else 0
      assert lost - in_flight <= every >= in_flight, (step, before, begun)
      self.begun = 0
      self.tally.resumes += 1
      self.tally.lost.append(lost)
      self.tally.in_flight.append(in_flight)

  def _compare(self) -> None:
    """Every row of the log and every bit of the last states."""
    from tiny_runs import comparable

    assert comparable(self.directory) == comparable(self.whole)
    assert saved_steps(self.directory) == self.steps
    for step in self.steps:
      mine, wanted = state_of(self.directory, step), state_of(self.whole, step)
      assert mine.keys() == wanted.keys()
      for name, value in wanted.items():
        assert mine[name].tobytes() == value.tobytes(), (step, name)
    self.tally.finished += 1


if __name__ == '__main__':
  nursery()
