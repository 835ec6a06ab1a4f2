"""Runs docs/study.md: architectures at equal compute, three seeds each.

  python benchmarks/study.py sizes
  python benchmarks/study.py run FOLDER [--text TEXT] [--steps N] [--arms ...]
  python benchmarks/study.py collect FOLDER docs/study/runs.jsonl

`run` trains a vocabulary, writes rows that all runs share, and then trains and
asks each arm with each seed, a run a core. Ended by SIGTERM or SIGINT it ends
its runs; called again it goes on, and what is done is not done again.
FOLDER/study.log has each command, its start, seconds and exit status, and
FOLDER/logs what it printed. `collect` condenses the runs into the metrics that
`make figures` draws from, with the scores of the oracle of the generated
episodes.

TEXT is a folder of LANG.txt; without it the shipped Declaration is taken.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from atm.model import flops
from atm.model.config import ModelConfig


class Arm(NamedTuple):
  """How an arm differs from the others."""

  architecture: str
  prompt_loss: bool = False  # it also learns the inputs of CLM rows
  learning_rate: float = 3e-3


ARMS = {
  'seq2seq': Arm('encoder_decoder'),
  'decoder': Arm('decoder_only'),
  'decoder_prompt_loss': Arm('decoder_only', prompt_loss=True),
  'prefix': Arm('prefix_lm'),
  # Of the others one run each was not better with this rate in both losses.
  'decoder_low_rate': Arm('decoder_only', learning_rate=1.5e-3),
}
SEEDS = 0, 1, 2
SHOTS = 1, 2, 4
# Of inputs and of targets. In short rows a small model learns to copy soonest,
# see docs/results.md, and the longest episode has 62 tokens.
LENGTH = 64
IN_CONTEXT = 0.75  # share of the rows that are generated episodes
# Of all rows. With the paper's fifth, 0.5% of 1-shot recalls were right after
# 96,000 rows, and with half all: episodes are answered as rows of CLM.
CLM = 0.5
VOCABULARY = 1536
# In as many rows, 16 a step learned to copy far sooner than 64.
BATCH = 16
# Evaluations at these shares of the steps, with the most shots; the last with
# all.
CHECKPOINTS = 4
WIDTH, LAYERS = 64, 2
# Sinusoids beside embeddings of the same size: heads that look a token back
# are learned for all positions at once. See docs/study.md.
MODEL = dict(
  vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=LAYERS,
  decoder_layers=LAYERS, encoder_heads=4, decoder_heads=4,
  encoder_ff=4 * WIDTH, decoder_ff=4 * WIDTH, positions=2 * LENGTH,
  dtype='float32', init_std=0.08,
  position_embedding='sinusoidal', embed_scale=True,
)  # fmt: skip
FF_STEP = 8  # what a fitted feed-forward width is a multiple of
LENGTHS = f"TASK_FEATURE_LENGTHS = {{'inputs': {LENGTH}, 'targets': {LENGTH}}}"
DATA = f"""\
MIXTURE_OR_TASK_NAME = 'text'
PAPER_PACKING = False
atm_tasks.Mixing.in_context = {IN_CONTEXT}
atm_tasks.Mixing.denoise = {1 - CLM}
atm_tasks.Mixing.clm = {CLM}
"""
OPTIMIZER = f"""\
{LENGTHS}
BATCH_SIZE = {BATCH}
KEEP = None
optimizer.Config.b2 = 0.98
optimizer.Config.final_learning_rate = 1e-4
"""


# --- Sizes


def row_flops(config: ModelConfig, prompt_loss: bool = False) -> float:
  """Returns the model FLOPs of training on a row."""
  return flops.train_flops(config, 1, LENGTH, LENGTH, prompt_loss=prompt_loss)


def make_config(arm: str) -> ModelConfig:
  """Returns an arm's model, whose FLOPs a row are those of seq2seq.

  One stack has the width and the layers of either stack of it; a row passes as
  many layers then. The width of its feed-forward layers is fitted.
  """
  reference = ModelConfig(**MODEL)
  own, wanted = ARMS[arm], row_flops(reference)
  if own.architecture == reference.architecture:
    return reference
  return min(
    (
      dataclasses.replace(
        reference,
        architecture=own.architecture,
        encoder_layers=0,
        decoder_ff=ff,
      )
      for ff in range(FF_STEP, 8 * WIDTH, FF_STEP)
    ),
    key=lambda config: abs(row_flops(config, own.prompt_loss) - wanted),
  )


def count_parameters(config: ModelConfig) -> int:
  """Counts the parameters of a model."""
  import jax

  from atm.checkpoint import pretrained

  shapes = pretrained.shapes_on_one_device(config)
  return sum(x.size for x in jax.tree.leaves(shapes))


def answer_flops(config: ModelConfig) -> tuple[float, float]:
  """Returns the FLOPs of reading a full input, and of writing a token."""
  read = flops.train_flops(config, 1, LENGTH, 0) / 3  # forward alone
  both = flops.train_flops(config, 1, LENGTH, LENGTH) / 3
  return read, (both - read) / LENGTH


def print_sizes() -> None:
  """Prints a table of the arms' sizes and of what they cost."""
  reference = row_flops(make_config('seq2seq'))
  heads = (
    'arm', 'layers', 'feed-forward', 'parameters', 'FLOPs a row', 'share',
    f'reading {LENGTH} tokens', 'writing one',
  )  # fmt: skip
  print(f'| {" | ".join(heads)} |\n| --- |{" ---: |" * (len(heads) - 1)}')
  for arm in ARMS:
    config = make_config(arm)
    own = row_flops(config, ARMS[arm].prompt_loss)
    layers = f'{config.encoder_layers} + {config.decoder_layers}'
    read, write = answer_flops(config)
    print(
      f'| {arm} | {layers} | {config.decoder_ff} | '
      f'{count_parameters(config):,} | {own:.4g} | {own / reference:.2%} | '
      f'{read:.3g} | {write:.3g} |'
    )


# --- Commands


class Study:
  """The commands of the study in a folder, one a core."""

  def __init__(
    self, folder: str, steps: int, text: str | None, arms: list[str]
  ):
    self.folder, self.steps = os.path.abspath(folder), steps
    self.arms = arms
    self.text = os.path.abspath(text or f'{folder}/text')
    self.log_lock = threading.Lock()
    self.processes: list[subprocess.Popen] = []
    self.stopped = threading.Event()
    os.makedirs(f'{self.folder}/logs', exist_ok=True)
    if text is None:
      write_declaration(self.text)

  def write_settings(self) -> None:
    """Writes a gin file for the data, and one an arm."""
    data = f"TEXT_DIR = '{self.text}'\n{DATA}"
    with open(f'{self.folder}/data.gin', 'w') as f:
      f.write(data)
    for arm in ARMS:
      given = dataclasses.asdict(make_config(arm)).items()
      defaults = {f.name: f.default for f in dataclasses.fields(ModelConfig)}
      lines = [
        f'model.Config.{k} = {v!r}' for k, v in given if v != defaults[k]
      ]
      every = max(1, self.steps // (2 * CHECKPOINTS))
      lines += [
        f'PROMPT_LOSS = {ARMS[arm].prompt_loss}',
        f'LEARNING_RATE = {ARMS[arm].learning_rate}',
        f'TRAIN_STEPS = {self.steps}', f'DECAY_STEPS = {self.steps}',
        f'WARMUP_STEPS = {min(200, self.steps // 10)}',
        f'SAVE_EVERY = {max(1, self.steps // CHECKPOINTS)}',
        f'EVAL_EVERY = {every}', f'LOG_EVERY = {every}',
        f"CACHE_DIR = '{self.folder}/rows'",
        f"VOCABULARY = '{self.folder}/vocabulary'",
      ]  # fmt: skip
      with open(f'{self.folder}/{arm}.gin', 'w') as f:
        f.write('\n'.join([data + OPTIMIZER, *lines, '']))

  def prepare(self) -> None:
    """Trains the vocabulary and writes the rows that all runs share."""
    data = f'--gin_file={self.folder}/data.gin'
    vocabulary = setting('VOCABULARY_DIR', f'{self.folder}/vocabulary')
    self.call('vocab', None, 'vocab', data, vocabulary,
              f'--gin.VOCABULARY_SIZE={VOCABULARY}')  # fmt: skip
    self.call('cache', None, 'cache', data,
              setting('VOCABULARY', f'{self.folder}/vocabulary'),
              setting('CACHE_DIR', f'{self.folder}/rows'),
              f'--gin.{LENGTHS.replace(" = ", "=")}')  # fmt: skip

  def run_one(self, arm: str, seed: int, core: int | None) -> None:
    """Trains an arm with a seed, and asks it."""
    name = f'{arm}-{seed}'
    run = f'{self.folder}/runs/{name}'
    model = setting('MODEL_DIR', run)
    self.call(name, core, 'pretrain', f'--gin_file={self.folder}/{arm}.gin',
              model, f'--gin.SEED={seed}')  # fmt: skip
    stride = max(1, self.steps // CHECKPOINTS)
    asked = [(self.steps, shots) for shots in SHOTS]
    asked += [(k * stride, SHOTS[-1]) for k in range(1, CHECKPOINTS)]
    for step, shots in asked:
      self.call(
        f'{name}-{shots}-shots-{step}', core, 'eval',
        '--gin_file=suites/in_context.gin', model, f'--gin.SHOTS={shots}',
        f'--gin.STEP={step}',
        setting('OUTPUT', f'{run}/eval/{shots}_shots_{step}'),
      )  # fmt: skip

  def run_all(self) -> None:
    """Runs all arms and seeds, as many at a time as there are cores."""
    cores: queue.Queue = queue.Queue()
    available = sorted(os.sched_getaffinity(0))
    for core in available:
      cores.put(core)

    failed = threading.Event()

    def work(arm: str, seed: int) -> None:
      # Before the pool could cancel this one.
      if failed.is_set() or self.stopped.is_set():
        return
      core = cores.get()
      try:
        self.run_one(arm, seed, core)
      except RuntimeError:
        failed.set()
        raise
      finally:
        cores.put(core)

    # Seed by seed: a study that is cut off has whole seeds.
    pairs = [(arm, seed) for seed in SEEDS for arm in self.arms]
    with concurrent.futures.ThreadPoolExecutor(len(available)) as pool:
      runs = [pool.submit(work, *pair) for pair in pairs]
      try:
        for run in concurrent.futures.as_completed(runs):
          run.result()
      except RuntimeError:
        pool.shutdown(wait=False, cancel_futures=True)  # those that run end
        raise

  def stop(self, *_) -> None:
    """Ends the commands that run, as a handler of a signal."""
    self.stopped.set()
    for process in self.processes:
      process.terminate()  # nothing where it has ended

  def call(self, name: str, core: int | None, *arguments: str) -> None:
    """Runs `atm`, unless it is done; raises RuntimeError where it fails."""
    log = f'{self.folder}/logs/{name}'
    if os.path.exists(f'{log}.done'):
      return
    began = time.time()
    # Not `preexec_fn`, which forks a process in which JAX has threads.
    pin = [] if core is None else ['taskset', '--cpu-list', str(core)]
    with open(f'{log}.txt', 'a') as out:
      process = subprocess.Popen(
        [*pin, sys.executable, '-m', 'atm', *arguments], stdout=out,
        stderr=subprocess.STDOUT, cwd=self.folder, env=environment(),
      )  # fmt: skip
      self.processes.append(process)
      if self.stopped.is_set():  # by a signal while it began
        process.terminate()
      status = process.wait()
    seconds = time.time() - began
    start = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(began))
    line = f'{start}  {seconds:7.1f} s  status {status}  core {core}  '
    with self.log_lock, open(f'{self.folder}/study.log', 'a') as f:
      f.write(f'{line}atm {" ".join(arguments)}\n')
    print(f'{line}{name}', flush=True)
    if self.stopped.is_set():  # with status 0, too: training saves and ends
      raise RuntimeError(f'{name} was stopped; run again to go on')
    if status:
      raise RuntimeError(f'{name} failed: see {log}.txt')
    os.rename(f'{log}.txt', f'{log}.done')


def setting(name: str, path: str) -> str:
  """Returns the argument that gives a setting a path."""
  return f'--gin.{name}={path!r}'


def environment() -> dict[str, str]:
  """Returns the environment of a command, with huge pages."""
  return {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1', **os.environ}


def write_declaration(folder: str) -> None:
  """Writes the shipped Declaration as LANG.txt."""
  os.makedirs(folder, exist_ok=True)
  source = f'{ROOT}/tasks/udhr'
  for name in sorted(os.listdir(source)):
    if not name.endswith('.tsv'):
      continue
    with open(f'{source}/{name}', encoding='utf-8') as f:
      texts = [line.rstrip('\n').split('\t')[1] for line in f]
    with open(f'{folder}/{name[:-4]}.txt', 'w', encoding='utf-8') as f:
      f.write('\n\n'.join(texts) + '\n')


def collect(folder: str, output: str) -> None:
  """Writes the metrics of the runs that are there, and their page."""
  from atm.pages import arm_records, arms_page
  from atm_tasks.evaluation import in_context_oracle

  folders = {
    arm: [
      path
      for seed in SEEDS
      if os.path.exists(path := f'{folder}/runs/{arm}-{seed}')
    ]
    for arm in ARMS
  }
  runs = arm_records.read_arms({k: v for k, v in folders.items() if v})
  known: dict[tuple[str, int], float] = {}
  for entry in (entry for run in runs for entry in run['evaluations']):
    if not entry['task'].startswith('in_context_'):
      continue
    family = entry['task'].split('_')[2]
    key = family, entry['shots']
    if key not in known:
      known[key] = in_context_oracle.measure(*key)
    entry['oracle'] = known[key][entry['task'].endswith('_choice')]
  os.makedirs(os.path.dirname(output) or '.', exist_ok=True)
  arm_records.write_arm_file(output, runs)
  page = os.path.splitext(output)[0] + '.html'
  print(arms_page.compare_arms(output, page))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  commands = parser.add_subparsers(dest='command', required=True)
  commands.add_parser('sizes')
  running = commands.add_parser('run')
  running.add_argument('folder')
  running.add_argument('--text')
  running.add_argument('--steps', type=int, default=8000)
  running.add_argument('--arms', nargs='+', choices=ARMS, default=[*ARMS])
  collecting = commands.add_parser('collect')
  collecting.add_argument('folder')
  collecting.add_argument('output')
  arguments = parser.parse_args()
  if arguments.command == 'sizes':
    print_sizes()
  elif arguments.command == 'collect':
    collect(arguments.folder, arguments.output)
  else:
    study = Study(
      arguments.folder, arguments.steps, arguments.text, arguments.arms
    )
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, study.stop)
    study.write_settings()
    try:
      study.prepare()
      study.run_all()
    except RuntimeError as error:
      sys.exit(f'error: {error}')


if __name__ == '__main__':
  main()
