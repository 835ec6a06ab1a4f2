"""Decoding on the CPU beside PyTorch's and CTranslate2's, in one sitting.

d512, 6 + 6 layers, ff 2048, 8 heads, vocabulary 32,000, 512 encoder tokens, 64
new ones, batches of 1, 8 and 32, float32; greedy, or `--beams`. Ours is
`Model.complete` on ids, all of it. Every one writes exactly 64 tokens. Peers:

- ctranslate2, ctranslate2_int8: `translate_batch` of our parameters in float32
  and int8, with two threads for the batch. `_split` has two translators of one
  thread, each with half of the batch. The faster of the two counts.
- blenderbot (the same architecture), bart, t5: transformers' `generate`, with
  its cache and SDPA. `_compiled` has a static cache and torch.compile.

Every contestant runs in a process of its own, on the same cores, in turn,
`--rounds` times, `--repeats` generations each. `s` is the median over all, from
the ids to the ids; `first` that of 1 new token, which is the encoder's and the
prompt's time; `a token` what each of the other 63 takes, for the whole batch;
`ratio` the median over the rounds of tokens a second, relative to atm in that
round. `compile` is what the first call takes longer than the others, with an
empty compilation cache and in the next process, which finds it filled.
`atm_bf16` has its weights in bfloat16, `atm_int8` in int8. Where contestants
share our parameters, `same ids` is the share of ids that are atm's.

  python benchmarks/decode.py [--peer_python PYTHON] [--only NAME ...]

PYTHON has torch and transformers, or ctranslate2; by default it is the one that
runs this. `--folder FOLDER` keeps compiled programs for the next command, so
that contestants and batches can be measured one at a time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import small_model
import train_step
from train_step import V

S, NEW, BATCHES = 512, 64, (1, 8, 32)
OURS = ('atm', 'atm_bf16', 'atm_int8')
CTRANSLATE2 = (
  'ctranslate2', 'ctranslate2_split',
  'ctranslate2_int8', 'ctranslate2_int8_split',
)  # fmt: skip
TRANSFORMERS = ('blenderbot', 'bart', 't5', 'bart_compiled')
NAMES = OURS + CTRANSLATE2 + TRANSFORMERS


class Ours:
  """`Model.complete`, as `atm infer` calls it."""

  def __init__(self, args):
    import jax

    from atm.inference import api, sampling

    self.model = small_model.load_model()
    if args.worker == 'atm_bf16':
      self.model = api.cast_to_bfloat16(self.model)
    elif args.worker == 'atm_int8':
      self.model = api.quantize(self.model)
    jax.block_until_ready(self.model.params)
    self.config, self.beams = sampling.Config, args.beams

  def generate(self, rows, new: int) -> list[list[int]]:
    config = self.config(max_tokens=new, min_tokens=new, beams=self.beams)
    made = self.model.complete(rows, config=config, batch_size=len(rows))
    assert all(len(one.log_probabilities) == new for (one,) in made)
    return [list(one.ids) for (one,) in made]


class CTranslate2:
  """`translate_batch` of our parameters."""

  def __init__(self, args):
    self.inter = 2 if args.worker.endswith('_split') else 1
    self.translator = small_model.open_translator(
      args.folder, self.inter, max(1, args.threads // self.inter),
      'int8' if 'int8' in args.worker else 'float32',
    )  # fmt: skip
    self.words, self.beams = small_model.list_words(), args.beams

  def generate(self, rows, new: int) -> list[list[int]]:
    made = self.translator.translate_batch(
      [self.words[row].tolist() for row in rows], beam_size=self.beams,
      min_decoding_length=new, max_decoding_length=new, max_input_length=0,
      max_batch_size=-(-len(rows) // self.inter),
    )  # fmt: skip
    return [list(map(int, result.hypotheses[0])) for result in made]


class Transformers:
  """`generate` of a model of random parameters of its own."""

  def __init__(self, args):
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    maker = train_step.Peer.__new__(train_step.Peer)
    name, _, compiled = args.worker.partition('_')
    self.model = getattr(maker, name)(transformers).eval()
    self.model.config.use_cache = True
    self.model.generation_config.use_cache = True
    if compiled:
      self.model.forward = torch.compile(self.model.forward)
      self.model.generation_config.cache_implementation = 'static'
    self.torch, self.beams = torch, args.beams

  def generate(self, rows, new: int) -> list[list[int]]:
    ids = self.torch.tensor(rows)
    with self.torch.no_grad():
      made = self.model.generate(
        input_ids=ids, attention_mask=self.torch.ones_like(ids),
        max_new_tokens=new, min_new_tokens=new, do_sample=False,
        num_beams=self.beams,
      )  # fmt: skip
    return made[:, 1:].tolist()


def work(args) -> None:
  """Runs one contestant; prints what it measured as one line of JSON."""
  import numpy as np

  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
  kinds = {OURS: Ours, CTRANSLATE2: CTranslate2, TRANSFORMERS: Transformers}
  kind = next(kind for names, kind in kinds.items() if args.worker in names)
  contestant = kind(args)
  out = {}
  for batch in args.batches:
    if batch == 1 and args.worker.endswith('_split'):
      continue  # one row is not split
    rng = np.random.default_rng(batch)
    row = {}
    for new in (NEW, 1):
      seconds, ids = [], []
      for _ in range(args.repeats + 1):
        rows = rng.integers(3, V, (batch, S)).tolist()
        start = time.perf_counter()
        ids.append(contestant.generate(rows, new))
        seconds.append(time.perf_counter() - start)
        counts = list(map(len, ids[-1]))
        assert counts == [new] * batch, counts
      row[new] = {'seconds': seconds, 'ids': ids}
    out[batch] = row
  print(json.dumps(out))


def run(name: str, args) -> dict:
  """One contestant in a process of its own."""
  python = sys.executable if name in OURS else args.peer_python
  command = [python, os.path.abspath(__file__), '--worker', name]
  for option in ('repeats', 'threads', 'beams', 'folder'):
    command += [f'--{option}', str(getattr(args, option))]
  command += ['--batches', *map(str, args.batches)]
  environment = {
    **os.environ,
    'PYTHONPATH': train_step.ROOT,
    'OMP_NUM_THREADS': str(args.threads),
    'GLIBC_TUNABLES': train_step.HUGE,
    'JAX_COMPILATION_CACHE_DIR': os.path.join(args.folder, name),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'TORCHINDUCTOR_CACHE_DIR': os.path.join(args.folder, name),
  }
  if name not in OURS:
    del environment['PYTHONPATH']
  done = subprocess.run(command, env=environment, stdout=subprocess.PIPE)
  if done.returncode:
    sys.exit(f'{name} ended with status {done.returncode}, see above')
  return json.loads(done.stdout.splitlines()[-1])


def share_same(mine: dict, base: dict) -> float:
  """Returns the share of ids that are those of another contestant."""
  pairs = [
    (x, y)
    for a, b in zip(mine['ids'], base['ids'], strict=True)
    for row, other in zip(a, b, strict=True)
    for x, y in zip(row, other, strict=True)
  ]
  return sum(x == y for x, y in pairs) / len(pairs)


def show(rows: dict[str, list[dict]], batch: int) -> None:
  median = statistics.median
  heads = ('s', 'tokens/s', 'ratio', 'first', 'a token', 'ratio', 'same ids')
  print(
    f'\n{f"batch {batch}":24}' + ''.join(f'{x:>10}' for x in heads), 'compile'
  )
  key, whole_key = str(batch), str(NEW)
  whole = lambda run: median(run[key][whole_key]['seconds'][1:])
  one = lambda run: median(run[key]['1']['seconds'][1:])
  token = lambda run: (whole(run) - one(run)) / (NEW - 1)
  ratio = lambda f, runs, base: median(
    [f(b) / f(a) for a, b in zip(runs, base, strict=True)]
  )
  for name, runs in rows.items():
    if key not in runs[0]:
      continue
    base = rows.get('atm', runs)
    s = median([x for r in runs for x in r[key][whole_key]['seconds'][1:]])
    of_whole, of_token = (ratio(f, runs, base) for f in (whole, token))
    first = [r[key][whole_key]['seconds'][0] - whole(r) for r in runs[:2]]
    same = share_same(runs[0][key][whole_key], base[0][key][whole_key])
    print(
      f'{name:24}{s:10.3f}{batch * NEW / s:10,.0f}{of_whole:10.2f}'
      f'{median(map(one, runs)):10.3f}{median(map(token, runs)):10.4f}'
      f'{of_token:10.2f}'
      + (' ' * 10 if name in TRANSFORMERS else f'{same:10.1%}')
      + ' '
      + ', then '.join(f'{x:.1f}' for x in first)
    )


def list_contestants(args) -> list[str]:
  """Returns those of `--only` that the interpreters have."""
  names = list(args.only)
  if set(names) & set(TRANSFORMERS) and not train_step.has_peers(
    args.peer_python, 'torch', 'transformers'
  ):
    names = [name for name in names if name not in TRANSFORMERS]
  if set(names) & set(CTRANSLATE2) and not train_step.has_peers(
    args.peer_python, 'ctranslate2'
  ):
    names = [name for name in names if name not in CTRANSLATE2]
  return names


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--peer_python', default=sys.executable)
  parser.add_argument('--only', nargs='*', choices=NAMES, default=NAMES)
  parser.add_argument('--batches', nargs='*', type=int, default=BATCHES)
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--beams', type=int, default=1)
  parser.add_argument('--folder', help='keeps compiled programs')
  parser.add_argument('--worker', choices=NAMES)
  args = parser.parse_args()
  if args.worker:
    return work(args)
  names = list_contestants(args)
  print(
    f'{train_step.find_processor()}: {S} encoder tokens, {NEW} new ones, '
    f'{args.threads} threads, {args.beams} beam(s), {args.rounds} rounds of '
    f'{args.repeats}',
    flush=True,
  )
  rows = {name: [] for name in names}
  with tempfile.TemporaryDirectory() as folder:
    args.folder = args.folder or folder
    for _ in range(args.rounds):
      for name in names:
        rows[name].append(run(name, args))
  for batch in args.batches:
    show(rows, batch)


if __name__ == '__main__':
  main()
