"""Puts faults into modules, one at a time, and asks whether a test fails.

    python tests/mutate.py                  # six faults of each of four modules
    python tests/mutate.py --seed 1         # others
    python tests/mutate.py packing sampling --count 10
    python tests/mutate.py packing --again  # what survived in earlier runs
    python tests/mutate.py --new            # what was not tried so far
    python tests/mutate.py --all            # every fault: hours

Libraries are imported once; every fault is then tried in a forked child, in a
copy of the checkout. A clean run of a module's tests comes first: it tells
which tests execute which lines and how long they take, so that a child begins
with the quickest test that executes the faulty line and ends with the first
that fails. Survivors that are known, each with its reason: tests/mutants.json.
"""

from __future__ import annotations

import argparse
import collections
import compileall
import contextlib
import dataclasses
import difflib
import functools
import gc
import hashlib
import importlib
import json
import os
import py_compile
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import mutants

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
KNOWN = os.path.join(ROOT, 'tests/mutants.json')
PROFILES = os.path.join(ROOT, '.mutate')
# Modules whose values nothing else would correct, and tests beside their own.
MODULES = {
  'data/objectives': (),
  'data/span_corruption': ('data/objectives',),
  'data/counter_rng': ('data/span_corruption',),
  'data/packing': ('data/objectives',),
  'data/batches': (),
  'data/streaming': (),
  'data/token_store': (),
  'data/cache': (),
  'data/cache_shards': (),
  'inference/stop_strings': (),
  'inference/sampling': (),
  'inference/logits_processors': ('inference/sampling',),
  'inference/beam_search': ('inference/generate',),
  'inference/loglikelihood': (),
  'evals/scoring': (),
  'evals/metrics': (),
  'evals/text_metrics': (),
  'checkpoint/checksums': (),
  'checkpoint/manager': (),
  'checkpoint/reader': ('checkpoint/recovery',),
  'checkpoint/recovery': (),
  'train/step': (),
  'train/optimizer': (),
  'model/loss': (),
  'serve/row_sampling': (),
  'serve/stop_pool': (),
  'serve/output_text': ('serve/completions',),
  'serve/generation_settings': (),
  'serve/generation_job': ('serve/completions',),
  'serve/json_body': ('serve/app',),
}
# All that tests import and that holds none of ours.
LIBRARIES = (
  'jax', 'jax.numpy', 'optax', 'orbax.checkpoint', 'flax', 'seqio', 'gin',
  'hypothesis', 'pytest', 'sentencepiece', 'safetensors.numpy', 'sacrebleu',
  'array_record.python.array_record_module', 'rich', 'jinja2',
)  # fmt: skip
GIBIBYTE = 1 << 30
NO_TESTS = 5  # an exit code of pytest
KEYS = 'file', 'function', 'before', 'after'  # of `mutants.Fault.identity`


# --- In a child


class Observer:
  """A pytest plugin that orders tests and records what they execute.

  Attributes:
    seconds: test -> seconds of CPU time, with its fixtures and processes.
    lines: test -> lines of the module that it executed.
    failed: the tests that failed.
  """

  def __init__(self, path: str, order: list[str]):
    """`order`: the tests to run; none: all, and executed lines are noted."""
    self.path, self.order, self.watch = path, order, not order
    self.seconds, self.lines, self.failed = {}, {}, []
    self._lines = set()

  def pytest_collection_modifyitems(self, items):
    place = {name: i for i, name in enumerate(self.order)}
    if self.order:
      items[:] = [item for item in items if item.nodeid in place]
      items.sort(key=lambda item: place[item.nodeid])

  def pytest_runtest_logstart(self, nodeid):
    self._begun, self._lines = cpu_seconds(), set()
    if self.watch:
      sys.settrace(self._trace)

  def pytest_runtest_logfinish(self, nodeid):
    sys.settrace(None)
    self.seconds[nodeid] = cpu_seconds() - self._begun
    self.lines[nodeid] = sorted(self._lines)

  def pytest_runtest_logreport(self, report):
    if report.failed and report.nodeid not in self.failed:
      self.failed.append(report.nodeid)

  def _trace(self, frame, event, argument):
    if frame.f_code.co_filename != self.path:
      return None
    lines, first = self._lines, frame.f_code.co_firstlineno
    lines.add(first)

    def trace(frame, event, argument):
      lines.add(frame.f_lineno)
      return trace

    return trace


def cpu_seconds() -> float:
  """Returns the seconds of CPU time of this process and those that ended."""
  times = os.times()
  return times.user + times.system + times.children_user + times.children_system


def run_tests(tree: str, report: str, tests: list[str], observer: Observer):
  """Runs tests of a tree in this process, and never returns."""
  os.setsid()
  os.chdir(tree)
  log = os.open(f'{report}.log', os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
  os.dup2(log, 1)
  os.dup2(log, 2)
  os.environ.update(PYTHONPATH=tree, PYTEST_DISABLE_PLUGIN_AUTOLOAD='1')
  sys.path[:] = [tree, *(p for p in sys.path if p not in (ROOT, HERE))]
  import pytest

  options = ['-q', '-p', 'no:cacheprovider', '-m', 'not slow']
  options += [] if observer.watch else ['-x']
  options += ['--basetemp', f'{report}.tmp', *tests]
  code = pytest.main(options, plugins=[observer])
  with open(report, 'w') as f:
    answer = {k: getattr(observer, k) for k in ('seconds', 'lines', 'failed')}
    json.dump({'code': int(code), **answer}, f)
  sys.stdout.flush()
  os._exit(0)


# --- In the parent


class Slot:
  """A copy of the checkout, and the child that is at work in it."""

  def __init__(self, folder: str, number: int):
    self.tree = os.path.join(folder, f'tree{number}')
    self.report = os.path.join(folder, f'report{number}')
    copy_checkout(self.tree)
    self.pid, self.job = None, None

  def start(self, job: Job) -> None:
    """Forks a child that runs a job's tests, with its fault if there is one."""
    self.job, self.begun = job, time.monotonic()
    path = os.path.join(self.tree, job.file)
    source = read_source(job.file)
    with open(path, 'wb') as f:
      f.write(job.fault.apply(source) if job.fault else source)
    with contextlib.suppress(FileNotFoundError):
      os.remove(self.report)
    observer = Observer(path, job.order)
    self.pid = os.fork()
    if not self.pid:
      try:
        resource.setrlimit(resource.RLIMIT_CPU, (job.seconds, job.seconds + 5))
        resource.setrlimit(resource.RLIMIT_DATA, (12 * GIBIBYTE,) * 2)
        run_tests(self.tree, self.report, job.tests, observer)
      finally:
        os._exit(70)

  def poll(self) -> dict | None:
    """Returns the child's report once it has ended; ends one out of time."""
    pid, _ = os.waitpid(self.pid, os.WNOHANG)
    late = time.monotonic() - self.begun > 8 * self.job.seconds + 60
    if not pid and not late:
      return None
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.pid, signal.SIGKILL)
    if not pid:
      os.waitpid(self.pid, 0)
    self.pid = None
    shutil.rmtree(f'{self.report}.tmp', ignore_errors=True)
    with open(os.path.join(self.tree, self.job.file), 'wb') as f:
      f.write(read_source(self.job.file))
    if not os.path.exists(self.report):
      return {'code': -1, 'failed': [], 'seconds': {}, 'lines': {}}
    with open(self.report) as f:
      return json.load(f)


def copy_checkout(tree: str) -> None:
  """Copies what git knows or does not ignore, as it is now."""
  names = subprocess.run(
    ['git', 'ls-files', '-co', '--exclude-standard', '-z'],
    cwd=ROOT, check=True, capture_output=True, text=True,
  ).stdout.split('\0')  # fmt: skip
  for name in filter(None, names):
    if os.path.isfile(os.path.join(ROOT, name)):
      target = os.path.join(tree, name)
      os.makedirs(os.path.dirname(target), exist_ok=True)
      shutil.copy2(os.path.join(ROOT, name), target)
  os.symlink('tasks', os.path.join(tree, 'atm_tasks'))
  # Dates are too coarse to tell two faults of one second apart.
  by_hash = py_compile.PycInvalidationMode.CHECKED_HASH
  for top in ('atm', 'tests', 'tasks'):
    compileall.compile_dir(
      os.path.join(tree, top), quiet=1, invalidation_mode=by_hash
    )


@dataclasses.dataclass
class Job:
  """Tests to run: of a fault, or of a module as it is."""

  file: str
  tests: list[str]
  fault: mutants.Fault | None = None
  order: list[str] = dataclasses.field(default_factory=list)
  seconds: int = 900


class Profiles:
  """What clean runs told: kept until a file of the checkout changes."""

  def __init__(self):
    self.state, self.of = describe_checkout(), {}
    with contextlib.suppress(OSError, ValueError):
      with open(os.path.join(PROFILES, 'profiles.json')) as f:
        told = json.load(f)
      self.of = told['of'] if told['state'] == self.state else {}

  def add(self, file: str, report: dict) -> None:
    """Keeps a clean run's report, without the tests that failed."""
    for name in report['failed']:
      print(f'{name} fails without any fault: it is left out')
      for part in ('seconds', 'lines'):
        report[part].pop(name, None)
    self.of[file] = report
    os.makedirs(PROFILES, exist_ok=True)
    with open(os.path.join(PROFILES, 'profiles.json'), 'w') as f:
      json.dump({'state': self.state, 'of': self.of}, f)

  def jobs(self, fault, killers: list[str], longest: float) -> list[Job]:
    """Returns a fault's jobs: of its likely killers first, the long ones last.

    Args:
      fault: a fault of a file that was added.
      killers: tests that failed on other faults, the latest last.
      longest: seconds of a test above which it waits for the second job.
    """
    cost = self.of[fault.file]['seconds']
    lines = self.of[fault.file]['lines']

    def key(name):
      recent = -killers.index(name) if name in killers else 1
      return fault.line not in lines[name], round(cost[name]), recent

    order = sorted(cost, key=key)
    parts = (
      [name for name in order if cost[name] <= longest],
      [name for name in order if cost[name] > longest],
    )
    return [
      Job(
        fault.file, find_tests(fault.file), fault, part,
        seconds=int(20 + 4 * sum(cost[name] for name in part)),
      ) for part in parts if part
    ]  # fmt: skip


@functools.cache
def read_source(file: str) -> bytes:
  """Returns a module's source as it was first read: it may be edited since."""
  with open(os.path.join(ROOT, file), 'rb') as f:
    return f.read()


def describe_checkout() -> str:
  """Returns a digest of all Python sources."""
  digest = hashlib.sha256()
  for top in ('atm', 'tests', 'tasks'):
    for folder, _, names in sorted(os.walk(os.path.join(ROOT, top))):
      for name in sorted(names):
        if name.endswith('.py') and not name.startswith('muta'):
          with open(os.path.join(folder, name), 'rb') as f:
            digest.update(f.read())
  return digest.hexdigest()


def find_tests(file: str) -> list[str]:
  """Returns the test files of a module."""
  name = file.removeprefix('atm/').removesuffix('.py')
  return [f'tests/{test}_test.py' for test in (name, *MODULES[name])]


class Campaign:
  """Tries faults in several slots and tells of the survivors."""

  def __init__(self, slots: list[Slot], longest: float):
    self.slots, self.longest = slots, longest
    self.profiles = Profiles()
    self.killers = collections.defaultdict(list)
    self.results: list[dict] = []

  def work(self, jobs: list[Job]):
    """Yields (job, report) as jobs end; takes more that are appended."""
    while jobs or any(slot.pid for slot in self.slots):
      for slot in self.slots:
        if slot.pid:
          report = slot.poll()
          if report is not None:
            yield slot.job, report
        if not slot.pid and jobs:
          slot.start(jobs.pop(0))
      time.sleep(0.02)

  def profile(self, files: list[str]) -> None:
    """Runs the tests of files that have no faults."""
    jobs = [
      Job(file, find_tests(file))
      for file in files if file not in self.profiles.of
    ]  # fmt: skip
    for job, report in self.work(jobs):
      self.profiles.add(job.file, report)
      seconds = sum(report['seconds'].values())
      print(f'{job.file}: clean, {seconds:.1f} s', flush=True)

  def try_faults(self, faults: list[mutants.Fault]) -> None:
    """Tries faults and prints how each ends."""
    begun, rest = time.monotonic(), {}
    waiting = list(faults)
    jobs: list[Job] = []

    def refill():
      while waiting and len(jobs) < len(self.slots):
        fault = waiting.pop(0)
        first, *rest[fault.identity] = self.profiles.jobs(
          fault, self.killers[fault.file], self.longest
        )
        jobs.append(first)

    refill()
    for job, report in self.work(jobs):
      later = rest[job.fault.identity]
      if report['code'] == 0 and later:
        jobs.insert(0, later.pop(0))
      else:
        self.add(job.fault, report)
        self.print_progress(len(faults), begun)
      refill()

  def add(self, fault: mutants.Fault, report: dict) -> None:
    """Notes how a fault ended and shows it if it survived."""
    by = report['failed'][0] if report['failed'] else None
    if by:
      killers = self.killers[fault.file]
      if by in killers:
        killers.remove(by)
      killers.append(by)
    if report['code'] == NO_TESTS:
      raise RuntimeError(f'{find_tests(fault.file)}: no test was run')
    caught = report['code'] != 0
    lines = self.profiles.of[fault.file]['lines'].values()
    result = {
      'file': fault.file, 'function': fault.function, 'before': fault.before,
      'after': fault.after, 'operator': fault.operator, 'caught': caught,
      'by': by or report['code'],
      'executed': any(fault.line in seen for seen in lines),
    }  # fmt: skip
    self.results.append(result)
    os.makedirs(PROFILES, exist_ok=True)
    with open(os.path.join(PROFILES, 'results.jsonl'), 'a') as f:
      f.write(json.dumps(result) + '\n')
    if not caught:
      print(show_difference(fault), flush=True)

  def print_progress(self, count: int, begun: float) -> None:
    """Prints the share that was caught and the time that is left."""
    done = len(self.results)
    caught = sum(result['caught'] for result in self.results)
    left = (time.monotonic() - begun) / done * (count - done)
    print(
      f'{done} of {count} faults, {caught} caught ({caught / done:.0%}), '
      f'{left / 60:.0f} min left',
      flush=True,
    )


def show_difference(fault: mutants.Fault) -> str:
  """Returns a diff of a fault."""
  source = read_source(fault.file)
  old, new = (
    text.decode().splitlines() for text in (source, fault.apply(source))
  )
  lines = difflib.unified_diff(old, new, n=1, lineterm='')
  return '\n'.join([
    f'SURVIVED {fault.file}, {fault.function} ({fault.operator})',
    *list(lines)[2:],
  ])  # fmt: skip


def load_known() -> dict[tuple, str]:
  """Returns the reasons of the known survivors, by their identities."""
  with open(KNOWN, encoding='utf-8') as f:
    known = json.load(f)
  return {tuple(one[key] for key in KEYS): one['reason'] for one in known}


def load_results() -> dict[tuple, bool]:
  """Returns whether a fault was caught when it was last tried."""
  path, results = os.path.join(PROFILES, 'results.jsonl'), []
  if os.path.exists(path):
    with open(path, encoding='utf-8') as f:
      results = [json.loads(line) for line in f]
  return {tuple(one[key] for key in KEYS): one['caught'] for one in results}


def choose(arguments) -> list[mutants.Fault]:
  """Returns the faults that the command line asks for, file by file."""
  names = [
    name for name in MODULES
    if not arguments.modules or name.split('/')[-1] in arguments.modules
  ]  # fmt: skip
  by_file = {}
  for name in names:
    file = f'atm/{name}.py'
    faults = mutants.find_faults(file, read_source(file))
    by_file[name] = sorted(faults, key=lambda x: x.rank(arguments.seed))
  tried = load_results() if arguments.again or arguments.new else {}
  for name, faults in by_file.items():
    if arguments.again:
      faults = [x for x in faults if not tried.get(x.identity, True)]
    by_file[name] = [
      x for x in faults if arguments.again or x.identity not in tried
    ]
  names = [name for name in names if by_file[name]]
  if not arguments.all and not arguments.again:
    if not arguments.modules:
      chance = sorted(names, key=lambda n: by_file[n][0].rank(arguments.seed))
      names = [n for n in names if n in chance[: arguments.files]]
    by_file = {name: by_file[name][: arguments.count] for name in names}
  return [fault for faults in by_file.values() for fault in faults]


def print_table(results: list[dict]) -> None:
  """Prints how many faults of each file were caught."""
  for file in dict.fromkeys(result['file'] for result in results):
    caught = [r['caught'] for r in results if r['file'] == file]
    print(f'{file:34} {sum(caught):4} of {len(caught):4}')


def parse_arguments(arguments=None):
  """Returns the options of the command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('modules', nargs='*', help='names; none: by the seed')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--files', type=int, default=4, help='without modules')
  parser.add_argument('--count', type=int, default=6, help='faults of a file')
  parser.add_argument('--all', action='store_true', help='all faults')
  parser.add_argument('--again', action='store_true', help='last survivors')
  parser.add_argument('--new', action='store_true', help='not tried so far')
  parser.add_argument('--jobs', type=int, default=2, help='at a time')
  parser.add_argument(
    '--longest', type=float, default=5, help='seconds of tests that wait'
  )
  return parser.parse_args(arguments)


def main() -> int:
  """Runs the command; returns 1 if a fault survived that is not known."""
  arguments = parse_arguments()
  known = load_known()
  faults = choose(arguments)
  tried = [fault for fault in faults if fault.identity not in known]
  print(f'{len(tried)} faults; {len(faults) - len(tried)} known to survive')
  for name in LIBRARIES:
    importlib.import_module(name)
  gc.collect()
  gc.freeze()  # a child that looks for garbage would copy all of it
  folder = tempfile.mkdtemp(prefix='mutate-')
  try:
    slots = [Slot(folder, i) for i in range(arguments.jobs)]
    campaign = Campaign(slots, arguments.longest)
    campaign.profile(list(dict.fromkeys(fault.file for fault in tried)))
    campaign.try_faults(tried)
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  print_table(campaign.results)
  return int(not all(result['caught'] for result in campaign.results))


if __name__ == '__main__':
  sys.exit(main())
