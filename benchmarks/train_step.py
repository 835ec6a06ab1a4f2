"""A training step on the CPU beside PyTorch's, in one sitting.

d512, 6 + 6 layers, ff 2048, 8 heads, vocabulary 32,000, batch 8 x (512 + 256):
forward, loss, backward and AdamW, no dropout. Ours is `step.train_step`, jitted
with a donated state as the trainer does it, clipping and metrics included. The
peers are transformers' Blenderbot (the same architecture), BART and T5 with
SDPA and torch's fused AdamW, without clipping; `_compiled` by torch.compile;
`_bf16` is under bf16 autocast, ours with Config.dtype = 'bfloat16'. Embeddings
and LM head are tied, in `atm_untied` they are not. Sizes, remat and unroll are
gin/models/small.gin's.

Lengths are ragged (3/4 to all of 512 and 256): all read the same ids and the
same padding mask of the encoder, compute the loss from the labels, and are
counted by the same real tokens. `--full` fills the rows.

Every contestant runs in a process of its own, on the same cores (`--threads`),
in turn, `--rounds` times. Stated are medians over all timed steps; `ratio` is
the median over the rounds of tokens a second relative to atm in that round.
`CPU s` is the CPU time of a step, all threads together, to be looked at where
the machine is busy with other things (torch's threads spin while they wait).
`peak` (GiB) is the most that was resident during the timed steps, `steady` what
was between them, `life` the most in the process's life, compiling included.
Processes run with GLIBC_TUNABLES=glibc.malloc.hugetlb=1, which Makefile sets
too; `--huge_pages both` measures without it as well.

  python benchmarks/train_step.py [--peer_python PYTHON]

PYTHON has torch and transformers; by default it is the one that runs this.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
V, D, L, F, H, B, S, T = 32000, 512, 6, 2048, 8, 8, 512, 256
OURS = ('atm', 'atm_untied', 'atm_bf16')
PEERS = (
  'blenderbot', 'bart', 't5', 'blenderbot_compiled', 'bart_compiled',
  'bart_bf16', 'blenderbot_bf16',
)  # fmt: skip
HUGE = 'glibc.malloc.hugetlb=1'


def lengths(full: bool):
  """Real tokens of each row: [B] of the encoder, [B] of the decoder."""
  import numpy as np

  rng = np.random.default_rng(0)
  if full:
    return np.full(B, S), np.full(B, T)
  return rng.integers(3 * S // 4, S + 1, B), rng.integers(3 * T // 4, T + 1, B)


def ids(full: bool):
  """(source [B, S], target [B, T], their masks), int32, 0 on padding."""
  import numpy as np

  rng = np.random.default_rng(1)
  out, masks = [], []
  for count, width in zip(lengths(full), (S, T), strict=True):
    mask = (np.arange(width) < count[:, None]).astype(np.int32)
    out.append(rng.integers(3, V, mask.shape).astype(np.int32) * mask)
    masks.append(mask)
  return *out, *masks


class Ours:
  """The step as the trainer jits it; --set NAME=VALUE changes the model."""

  def __init__(self, args):
    import jax

    from atm.model import config as config_lib
    from atm.model import flops, transformer
    from atm.parallel import distributed, peak_flops, sharding, xla_options
    from atm.parallel import mesh as mesh_lib
    from atm.train import optimizer
    from atm.train import step as step_lib

    xla_options.set_flags()
    xla_options.set_compilation_cache()
    distributed.start_jax(cpu_devices=1)
    ties = 'none' if args.worker == 'atm_untied' else 'all'
    dtype = 'bfloat16' if args.worker == 'atm_bf16' else 'float32'
    changes = dict(pair.split('=') for pair in args.set)
    sizes = dict(
      vocab_size=V, d_model=D, encoder_layers=L, decoder_layers=L,
      encoder_heads=H, decoder_heads=H, encoder_ff=F, decoder_ff=F,
      positions=S, dtype=dtype, ties=ties, remat='outputs', unroll=L,
    )  # fmt: skip
    for name, value in changes.items():
      sizes[name] = int(value) if value.isdecimal() else value
    config = config_lib.ModelConfig(**sizes)
    net, tx = (
      transformer.AlexaTM(config),
      optimizer.make_optimizer(optimizer.OptimizerConfig()),
    )
    mesh, rules = mesh_lib.make_mesh(), sharding.Rules()
    abstract = step_lib.abstract_state(net, tx, mesh, rules)
    self.peak = peak_flops.peak_flops()
    self.flops = flops.train_flops(config, B, S, T)
    self.state = step_lib.init_state(net, tx, 0, abstract)
    update = lambda state, batch: step_lib.train_step(net, tx, state, batch)
    with sharding.use_mesh(mesh, rules):
      self.batch = sharding.shard_batch(self.arrays(args.full), mesh, rules)
      lowered = jax.jit(update, donate_argnums=0).lower(self.state, self.batch)
      self.update = xla_options.compile_program(lowered, jax.devices()[0])
    if args.hlo:
      with open(args.hlo, 'w') as f:
        f.write(self.update.as_text())

  @staticmethod
  def arrays(full: bool) -> dict:
    import numpy as np

    source, target, source_mask, target_mask = ids(full)
    shifted = np.roll(target, 1, axis=1)
    shifted[:, 0] = 1
    return {
      'encoder_input_tokens': source,
      'encoder_segment_ids': source_mask,
      'decoder_input_tokens': shifted * target_mask,
      'decoder_target_tokens': target,
      'decoder_segment_ids': target_mask,
      'decoder_loss_weights': target_mask.astype(np.float32),
      'objective': np.zeros(B, np.int32),
    }

  def step(self) -> float:
    self.state, values = self.update(self.state, self.batch)
    return float(values['sum/loss'] / values['tokens/target'])


class Peer:
  """A model of transformers, in eager mode or compiled."""

  def __init__(self, args):
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    name, _, kind = args.worker.partition('_')
    self.half = kind == 'bf16'
    make = {'blenderbot': self.blenderbot, 'bart': self.bart, 't5': self.t5}
    self.model = make[name](transformers)
    self.model.train()
    self.attention = self.model.config._attn_implementation
    if kind == 'compiled':
      self.model.compile()
    self.tx = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
    source, target, source_mask, _ = map(torch.tensor, ids(args.full))
    target = target.long()
    target[target == 0] = -100
    self.batch = dict(
      input_ids=source.long(), attention_mask=source_mask.long(), labels=target
    )
    self.torch = torch

  @staticmethod
  def sizes() -> dict:
    return dict(
      vocab_size=V, d_model=D, encoder_layers=L, decoder_layers=L,
      encoder_attention_heads=H, decoder_attention_heads=H, encoder_ffn_dim=F,
      decoder_ffn_dim=F, max_position_embeddings=S, dropout=0.0,
      attention_dropout=0.0, activation_dropout=0.0, scale_embedding=False,
      pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
      forced_eos_token_id=None, use_cache=False, attn_implementation='sdpa',
    )  # fmt: skip

  def blenderbot(self, hf):
    config = hf.BlenderbotConfig(**self.sizes())
    return hf.BlenderbotForConditionalGeneration(config)

  def bart(self, hf):
    config = hf.BartConfig(**self.sizes())
    return hf.BartForConditionalGeneration(config)

  def t5(self, hf):
    config = hf.T5Config(
      vocab_size=V, d_model=D, d_kv=D // H, d_ff=F, num_layers=L,
      num_decoder_layers=L, num_heads=H, dropout_rate=0.0, use_cache=False,
      pad_token_id=0, decoder_start_token_id=1, attn_implementation='sdpa',
    )  # fmt: skip
    return hf.T5ForConditionalGeneration(config)

  def step(self) -> float:
    with self.torch.autocast('cpu', self.torch.bfloat16, enabled=self.half):
      loss = self.model(**self.batch).loss
    loss.backward()
    self.tx.step()
    self.tx.zero_grad(set_to_none=True)
    return float(loss.detach())


def memory(name: str) -> float:
  """GiB of VmHWM or VmRSS."""
  with open('/proc/self/status') as f:
    kib = next(line for line in f if line.startswith(name)).split()[1]
  return int(kib) / 2**20


def used() -> tuple[float, int]:
  """CPU seconds and minor page faults so far."""
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return usage.ru_utime + usage.ru_stime, usage.ru_minflt


def work(args) -> None:
  """Runs one contestant; prints what it measured as one line of JSON."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
  contestant = (Ours if args.worker in OURS else Peer)(args)
  losses = [contestant.step() for _ in range(args.warm_up)]
  life = memory('VmHWM')
  with open('/proc/self/clear_refs', 'w') as f:
    f.write('5')  # VmHWM counts from here
  seconds, steady, before = [], [], used()
  for _ in range(args.steps):
    start = time.perf_counter()
    losses.append(contestant.step())
    seconds.append(time.perf_counter() - start)
    steady.append(memory('VmRSS'))
  cpu, faults = (b - a for a, b in zip(before, used(), strict=True))
  row = {
    'seconds': seconds,
    'cpu': cpu / args.steps,
    'peak': memory('VmHWM'),
    'life': max(life, memory('VmHWM')),
    'steady': statistics.median(steady),
    'faults': faults / args.steps,
    'losses': losses,
  }
  for name in ('flops', 'attention'):
    row[name] = getattr(contestant, name, None)
  row['matmul'] = getattr(contestant, 'peak', None)
  print(json.dumps(row))


def run(name: str, huge: bool, args) -> dict:
  """One contestant in a process of its own."""
  python = sys.executable if name in OURS else args.peer_python
  command = [python, os.path.abspath(__file__), '--worker', name]
  for option in ('steps', 'warm_up', 'threads'):
    command += [f'--{option}', str(getattr(args, option))]
  command += ['--full'] * args.full
  command += [x for pair in args.set for x in ('--set', pair)]
  environment = {
    **os.environ,
    'PYTHONPATH': ROOT,
    'OMP_NUM_THREADS': str(args.threads),
    'GLIBC_TUNABLES': HUGE if huge else '',
  }
  if name not in OURS:
    del environment['PYTHONPATH']
  done = subprocess.run(command, env=environment, stdout=subprocess.PIPE)
  if done.returncode:
    sys.exit(f'{name} ended with status {done.returncode}, see above')
  return json.loads(done.stdout.splitlines()[-1])


def has_peers(python: str, *names: str) -> bool:
  """Returns whether an interpreter has packages; prints their versions."""
  code = f'import {", ".join(names)}; print(' + ', '.join(
    f'"{name}", {name}.__version__' for name in names
  ) + ')'  # fmt: skip
  done = subprocess.run([python, '-c', code], capture_output=True, text=True)
  if done.returncode:
    print(f'{python} lacks {" or ".join(names)}: no such peers. '
          'Set --peer_python.')  # fmt: skip
    return False
  print(f'peers: {done.stdout.strip()}')
  return True


def find_processor() -> str:
  """Returns the processor's name, and the widest vectors that it has."""
  with open('/proc/cpuinfo') as f:
    lines = dict(
      [part.strip() for part in line.split(':', 1)] for line in f if ':' in line
    )
  flags = lines.get('flags', '').split()
  widest = [x for x in ('avx2', 'avx512f', 'amx_tile') if x in flags]
  return f'{lines.get("model name", "unknown processor")} ({", ".join(widest)})'


def show(rows: dict[str, list[dict]], tokens: int) -> None:
  """The table of one setting, rows by contestant and round."""
  columns = ('cpu', 'peak', 'steady', 'life', 'faults')
  heads = (
    's',
    'tokens/s',
    'ratio',
    'CPU s',
    'peak',
    'steady',
    'life',
    'faults',
  )
  print(f'{"a step":16}' + ''.join(f'{head:>10}' for head in heads))
  median = statistics.median
  rate = lambda row: tokens / median(row['seconds'])
  for name, mine in rows.items():
    seconds = median([s for row in mine for s in row['seconds']])
    base = rows.get('atm', mine)
    ratio = median([rate(a) / rate(b) for a, b in zip(mine, base, strict=True)])
    figures = [median([row[column] for row in mine]) for column in columns]
    print(
      f'{name:16}{seconds:10.2f}{tokens / seconds:10,.0f}{ratio:10.2f}'
      + ''.join(f'{x:10.2f}' for x in figures[:-1])
      + f'{figures[-1]:10,.0f}  {mine[0]["attention"] or ""}'
    )
  for name in OURS:
    for row in rows.get(name, [])[:1]:
      reached = [r['flops'] / median(r['seconds']) for r in rows[name]]
      share = median([x / r['matmul'] for x, r in zip(reached, rows[name])])
      print(
        f'{name}: {row["flops"] / 1e9:,.0f} model GFLOP a step, '
        f"{median(reached) / 1e9:.0f} GFLOP/s, {share:.0%} of XLA's own "
        f'float32 matmul in the same process'
      )


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--peer_python', default=sys.executable)
  names = OURS + PEERS
  parser.add_argument('--only', nargs='*', choices=names, default=names)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--steps', type=int, default=4)
  parser.add_argument('--warm_up', type=int, default=2)
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--full', action='store_true')
  parser.add_argument('--huge_pages', choices=('on', 'off', 'both'),
                      default='on')  # fmt: skip
  parser.add_argument('--set', action='append', default=[])
  parser.add_argument('--hlo', help='(with --worker) a file for the program')
  parser.add_argument('--worker', choices=names)
  args = parser.parse_args()
  if args.worker:
    return work(args)
  names = list(args.only)
  if set(names) & set(PEERS) and not has_peers(
    args.peer_python, 'torch', 'transformers'
  ):
    names = [name for name in names if name in OURS]
  tokens = int(sum(x.sum() for x in lengths(args.full)))
  print(
    f'{find_processor()}: {tokens:,} real tokens of {B * (S + T):,} a step, '
    f'{args.threads} threads, {args.rounds} rounds of {args.steps} steps'
  )
  for huge in {'on': [True], 'off': [False], 'both': [True, False]}[
    args.huge_pages
  ]:
    print(f'\nGLIBC_TUNABLES={HUGE if huge else ""}', flush=True)
    rows = {name: [] for name in names}
    for _ in range(args.rounds):
      for name in names:
        rows[name].append(run(name, huge, args))
    show(rows, tokens)


if __name__ == '__main__':
  main()
