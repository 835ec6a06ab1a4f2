"""What a run survives: kills, damage, and what the checksums cost.

    python benchmarks/survive.py [kills] [flips] [cost] [gs] [s3]

kills  50 SIGKILLs of a tiny model's run, half of them at named points inside a
       save, half at random moments; every run is compared with one that was not
       killed, row by row and bit by bit.
flips  300 random flips and cuts over all files of a run's checkpoint, with and
       without the checksums.
gs, s3 the kills, of runs whose MODEL_DIR is in an object store: a server on
       loopback of the store's API. Named points are those of calls to it.
cost   seconds of the checksums of models/small.gin (94M parameters, 1.1 GB with
       Adam's moments) beside those of its save and restore.

Takes about 8 minutes on two cores; gs and s3, which are not done unless asked
for, about as long each.
"""

import collections
import os
import random
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
for folder in ('', 'tests'):
  sys.path.insert(0, os.path.join(os.path.dirname(HERE), folder))

import jax
import numpy as np
from absl import logging

import atm_tasks
from atm import storage
from atm.checkpoint import checksums, manager, reader
from atm.cli import log_output
from atm.data import cache, vocabulary_training
from atm.model import config as config_lib
from atm.model import transformer
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding
from atm.train import optimizer, step

import conftest  # noqa: F401, devices are set before anything imports them
import storage_servers
import survive
from damage import damage_file, list_files

KILLS, FLIPS, SEED = 50, 300, 0
AT_POINTS = 25  # of the kills, inside a save
SIZES = dict(  # models/small.gin's
  vocab_size=32000, d_model=512, encoder_layers=6, decoder_layers=6,
  encoder_heads=8, decoder_heads=8, encoder_ff=2048, decoder_ff=2048,
  dtype='float32',
)  # fmt: skip
quiet = lambda text: None


def rows_in(folder: str) -> str:
  """Rows of tokens for all runs."""
  words = vocabulary_training.train_vocabulary(
    'udhr', f'{folder}/vocabulary', 2048, say=quiet
  )
  cache.build(
    'udhr', words.path, {'inputs': 32, 'targets': 32}, f'{folder}/rows',
    configure_tasks=atm_tasks.configure, say=quiet,
  )  # fmt: skip
  return f'{folder}/rows'


def kills(folder: str, nursery: survive.Nursery) -> None:
  """Kills runs in a folder, local or of an object store."""
  start = time.perf_counter()
  campaign = survive.Campaign(nursery, folder, SEED)
  campaign.kill_all(KILLS, AT_POINTS)
  tally = campaign.tally
  settled = [n - m for n, m in zip(tally.lost, tally.in_flight)]
  minutes = (time.perf_counter() - start) / 60
  print(
    f'{tally.kills} kills in {minutes:.1f} minutes, {tally.inside} of them '
    f'inside a save or a removal; {tally.resumes} resumes from a checkpoint; '
    f'{tally.finished} runs brought to their end, each with the log and the '
    'bits of the run that was not killed\n'
    f'steps done again: at most {max(tally.lost)}, at most {max(settled)} '
    f'without those done while a save was being written; SAVE_EVERY = '
    f'{survive.SAVE_EVERY}; more than that after '
    f'{sum(n > survive.SAVE_EVERY for n in tally.lost)} kills'
  )


# --- Damage


def a_checkpoint(folder: str, nursery: survive.Nursery):
  """(checkpoints of a run, its last step, shapes, the state as it is)."""
  run = f'{folder}/damage'
  assert nursery.run(run, train_steps=6).code == 0
  made = reader.CheckpointReader(run, log=quiet)
  config = config_lib.ModelConfig(**made.meta(6)['model'])
  tx = optimizer.make_optimizer(optimizer.OptimizerConfig())
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  shapes = step.abstract_state(
    transformer.AlexaTM(config), tx, mesh, sharding.Rules()
  )
  return run, shapes, bits(made, shapes)


def bits(made: reader.CheckpointReader, shapes) -> list:
  state = made.restore(6, shapes.to_trees())
  return [
    made.meta(6),
    [np.asarray(x).tobytes() for x in jax.tree.leaves(state)],
  ]


def fate(run: str, shapes, whole: list) -> str:
  made = reader.CheckpointReader(run, log=quiet)
  try:
    found = bits(made, shapes)
  except checksums.DamageError:
    return 'detected'
  except ValueError:  # names or shapes differ, and nothing is sealed
    return 'taken for another model'
  return 'harmless' if found == whole else 'other values, unseen'


def flips(folder: str, nursery: survive.Nursery) -> None:
  run, shapes, whole = a_checkpoint(folder, nursery)
  paths = list_files(f'{run}/checkpoints/6')
  compare, unseal = checksums.verify_checksums, checksums.unseal_meta
  for name in ('with checksums', 'Orbax alone'):
    draw, fates = random.Random(SEED), collections.Counter()
    if name == 'Orbax alone':
      checksums.verify_checksums = lambda arrays, wanted: None
      checksums.unseal_meta = lambda sealed: (
        {k: v for k, v in sealed.items() if k not in ('sha256', 'checksums')},
        sealed.get('checksums', {}),
      )
    for _ in range(FLIPS):
      with damage_file(draw.choice(paths), draw):
        fates[fate(run, shapes, whole)] += 1
    print(
      f'{FLIPS} flips and cuts over {len(paths)} files, {name}: {dict(fates)}'
    )
  checksums.verify_checksums, checksums.unseal_meta = compare, unseal


# --- Cost


def seconds(work, times: int = 3) -> float:
  """The least of a few."""
  found = []
  for _ in range(times):
    start = time.perf_counter()
    work()
    found.append(time.perf_counter() - start)
  return min(found)


def cost(folder: str) -> None:
  config = config_lib.ModelConfig(**SIZES)
  tx = optimizer.make_optimizer(optimizer.OptimizerConfig())
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  net = transformer.AlexaTM(config)
  shapes = step.abstract_state(net, tx, mesh, sharding.Rules())
  state = jax.block_until_ready(step.init_state(net, tx, 0, shapes))
  trees = state.to_trees()
  arrays = checksums.flatten_named(trees)
  start = time.perf_counter()
  checksums.compute_checksums(arrays)
  first = time.perf_counter() - start
  sums = seconds(lambda: checksums.compute_checksums(arrays))
  host = {k: np.asarray(x) for k, x in arrays.items()}
  on_host = seconds(lambda: checksums.compute_checksums(host))
  made = manager.CheckpointManager(f'{folder}/cost', keep=1)
  numbers = iter(range(1, 10))
  begin, whole = [], []
  for _ in range(3):
    start = time.perf_counter()
    made.save(next(numbers), trees, {})
    begin.append(time.perf_counter() - start)
    made.wait_until_finished()
    whole.append(time.perf_counter() - start)
  last = made.latest_step()
  like = shapes.to_trees()
  restore = seconds(lambda: jax.block_until_ready(made.restore(last, like)))
  made.close()
  count = sum(x.size for x in jax.tree.leaves(state))
  print(f"""
{count:,} numbers of models/small.gin and its optimizer, one CPU device
checksums                   {sums:.2f} s ({first:.2f} s with compiling, once)
checksums of NumPy arrays   {on_host:.2f} s
save, until it returns      {min(begin):.2f} s, checksums included
save, until it is written   {min(whole):.2f} s
restore                     {restore:.2f} s, checksums included
""")


def main() -> None:
  logging.set_verbosity(logging.FATAL)
  log_output.silence_orbax()
  wanted = sys.argv[1:] or ['kills', 'flips', 'cost']
  with tempfile.TemporaryDirectory() as folder:
    if 'cost' in wanted:
      cost(folder)
    for scheme in {*storage.SCHEMES} & {*wanted}:
      with storage_servers.running() as environment:
        os.environ.update(environment)
        print(f'MODEL_DIR in {scheme}://')
        with survive.Nursery(folder, rows_in(folder)) as nursery:
          kills(f'{scheme}://bucket', nursery)
    if {'kills', 'flips'} & set(wanted):
      with survive.Nursery(folder, rows_in(folder)) as nursery:
        if 'kills' in wanted:
          kills(folder, nursery)
        if 'flips' in wanted:
          flips(folder, nursery)


if __name__ == '__main__':
  main()
