"""Greedy decoding, or `--beams`, on the CPU beside PyTorch's, in one sitting.

d512, 6 + 6 layers, ff 2048, 8 heads, vocabulary 32,000, 512 encoder tokens, 64
new ones, batches of 1, 8 and 32, float32. Ours is `Model.complete` on ids, all
of it; the peers are transformers' Blenderbot (the same architecture), BART and
T5 with their `generate`, cache and SDPA. Every one writes exactly 64 tokens.

Every contestant runs in a process of its own, on the same cores, in turn,
`--rounds` times, `--repeats` generations each. `s` is the median over all, from
the ids to the ids; `first` that of 1 new token, which is the encoder's and the
prompt's time; `a token` what each of the other 63 takes, for the whole batch;
`ratio` the median over the rounds of tokens a second, relative to atm in that
round. `compile` is what the first call takes longer than the others, with an
empty compilation cache and in the next process, which finds it filled.
`atm_bf16` has its weights in bfloat16.

  python benchmarks/decode.py [--peer_python PYTHON]

PYTHON has torch and transformers; by default it is the one that runs this.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import train_step
from train_step import D, F, H, L, V

S, NEW, BATCHES = 512, 64, (1, 8, 32)
OURS = ('atm', 'atm_bf16')
PEERS = ('blenderbot', 'bart', 't5')


class Ours:
  def __init__(self, args):
    import jax
    import optax

    from atm.inference import api, sampling
    from atm.model import config as config_lib
    from atm.model import transformer
    from atm.parallel import distributed, sharding, xla_options
    from atm.parallel import mesh as mesh_lib
    from atm.train import step

    xla_options.set_compilation_cache()
    distributed.start_jax(cpu_devices=1)
    config = config_lib.ModelConfig(
      vocab_size=V, d_model=D, encoder_layers=L, decoder_layers=L,
      encoder_heads=H, decoder_heads=H, encoder_ff=F, decoder_ff=F,
      positions=S, dtype='float32', ties='all',
    )  # fmt: skip
    net, mesh, rules = (
      transformer.AlexaTM(config),
      mesh_lib.make_mesh(),
      sharding.Rules(),
    )
    tx = optax.identity()
    abstract = step.abstract_state(net, tx, mesh, rules)
    params = step.init_state(net, tx, 0, abstract).params
    self.model = api.Model(config, params, None, mesh, rules, 0)
    if args.worker == 'atm_bf16':
      self.model = api.cast_to_bfloat16(self.model)
    jax.block_until_ready(self.model.params)
    self.config, self.beams = sampling.Config, args.beams

  def generate(self, rows, new: int):
    config = self.config(max_tokens=new, min_tokens=new, beams=self.beams)
    made = self.model.complete(rows, config=config, batch_size=len(rows))
    return [len(one.log_probabilities) for (one,) in made]


class Peer:
  def __init__(self, args):
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    maker = train_step.Peer.__new__(train_step.Peer)
    self.model = getattr(maker, args.worker)(transformers).eval()
    self.model.config.use_cache = True
    self.model.generation_config.use_cache = True
    self.torch, self.beams = torch, args.beams

  def generate(self, rows, new: int):
    ids = self.torch.tensor(rows)
    with self.torch.no_grad():
      made = self.model.generate(
        input_ids=ids, attention_mask=self.torch.ones_like(ids),
        max_new_tokens=new, min_new_tokens=new, do_sample=False,
        num_beams=self.beams,
      )  # fmt: skip
    return [made.shape[1] - 1] * len(rows)


def work(args) -> None:
  """Runs one contestant; prints what it measured as one line of JSON."""
  import numpy as np

  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
  contestant = (Ours if args.worker in OURS else Peer)(args)
  out = {}
  for batch in args.batches:
    rng = np.random.default_rng(batch)
    row = {}
    for new in (NEW, 1):
      seconds = []
      for _ in range(args.repeats + 1):
        rows = rng.integers(3, V, (batch, S)).tolist()
        start = time.perf_counter()
        counts = contestant.generate(rows, new)
        seconds.append(time.perf_counter() - start)
        assert counts == [new] * batch, counts
      row[new] = seconds
    out[batch] = row
  print(json.dumps(out))


def run(name: str, args, cache: str) -> dict:
  """One contestant in a process of its own."""
  python = sys.executable if name in OURS else args.peer_python
  command = [python, os.path.abspath(__file__), '--worker', name]
  for option in ('repeats', 'threads', 'beams'):
    command += [f'--{option}', str(getattr(args, option))]
  command += ['--batches', *map(str, args.batches)]
  environment = {
    **os.environ,
    'PYTHONPATH': train_step.ROOT,
    'OMP_NUM_THREADS': str(args.threads),
    'GLIBC_TUNABLES': train_step.HUGE,
    'JAX_COMPILATION_CACHE_DIR': os.path.join(cache, name),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  if name not in OURS:
    del environment['PYTHONPATH']
  done = subprocess.run(command, env=environment, stdout=subprocess.PIPE)
  if done.returncode:
    sys.exit(f'{name} ended with status {done.returncode}, see above')
  return json.loads(done.stdout.splitlines()[-1])


def show(rows: dict[str, list[dict]], batch: int) -> None:
  median = statistics.median
  heads = ('s', 'tokens/s', 'ratio', 'first', 'a token', 'ratio', 'compile')
  print(f'\n{f"batch {batch}":16}' + ''.join(f'{x:>10}' for x in heads))
  key = str(batch)
  whole = lambda run: median(run[key][str(NEW)][1:])
  one = lambda run: median(run[key]['1'][1:])
  token = lambda run: (whole(run) - one(run)) / (NEW - 1)
  ratio = lambda f, runs, base: median(
    [f(b) / f(a) for a, b in zip(runs, base, strict=True)]
  )
  for name, runs in rows.items():
    base = rows.get('atm', runs)
    s = median([x for run in runs for x in run[key][str(NEW)][1:]])
    compiled = [run[key][str(NEW)][0] - whole(run) for run in runs]
    of_whole, of_token = (ratio(f, runs, base) for f in (whole, token))
    print(
      f'{name:16}{s:10.3f}{batch * NEW / s:10,.0f}{of_whole:10.2f}'
      f'{median(map(one, runs)):10.3f}{median(map(token, runs)):10.4f}'
      f'{of_token:10.2f}'
      + (
        '   ' + ', then '.join(f'{x:.1f}' for x in compiled[:2])
        if name in OURS
        else ''
      )
    )


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--peer_python', default=sys.executable)
  parser.add_argument('--only', nargs='*', default=OURS + PEERS)
  parser.add_argument('--batches', nargs='*', type=int, default=BATCHES)
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--beams', type=int, default=1)
  parser.add_argument('--worker', choices=OURS + PEERS)
  args = parser.parse_args()
  if args.worker:
    return work(args)
  names = list(args.only)
  if set(names) & set(PEERS) and not train_step.has_peers(args.peer_python):
    names = [name for name in names if name in OURS]
  print(
    f'{S} encoder tokens, {NEW} new ones, {args.threads} threads, '
    f'{args.beams} beam(s), {args.rounds} rounds of {args.repeats}',
    flush=True,
  )
  rows = {name: [] for name in names}
  with tempfile.TemporaryDirectory() as cache:
    for _ in range(args.rounds):
      for name in names:
        rows[name].append(run(name, args, cache))
  for batch in args.batches:
    show(rows, batch)


if __name__ == '__main__':
  main()
