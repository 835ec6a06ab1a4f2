"""Scoring the choices of questions: encoder inputs read once, or a pair each.

XNLI-like questions: 64 prompts of 80 to 120 tokens, 3 choices of 1 to 3 tokens,
in a model of d512, 6 + 6 layers, vocabulary 32,000, float32. `shared` is
`Model.likelihoods`, where choices stand behind each other in one decoder row;
`blind` scores every pair in a row of its own, as many rows at a time. Also in
'denoise', where a choice is the whole text again.

Both in one process, in turn; medians of `--repeats`, and the greatest
difference of their sums.

  python benchmarks/choices.py
"""

import argparse
import os
import statistics
import sys
import time
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

QUESTIONS, CHOICES, V = 64, 3, 32_000
SIZES = dict(
  d_model=512, encoder_layers=6, decoder_layers=6, encoder_heads=8,
  decoder_heads=8, encoder_ff=2048, decoder_ff=2048,
)  # fmt: skip


def questions(rng, denoise: bool) -> tuple[list, list]:
  """(encoder ids, decoder ids) of all pairs."""
  sources, targets = [], []
  for _ in range(QUESTIONS):
    source = rng.integers(5, V, rng.integers(80, 121)).tolist()
    for _ in range(CHOICES):
      choice = rng.integers(5, V, rng.integers(1, 4)).tolist()
      sources.append(source)
      targets.append([*source, *choice] if denoise else choice)
  return sources, targets


def apart(sources, targets, room: int):
  """`loglikelihood.pack_targets`, but for a row for each pair."""
  from atm.inference import loglikelihood

  rows = [
    loglikelihood.TargetsRow(source, [i], len(target))
    for i, (source, target) in enumerate(zip(sources, targets))
  ]
  return sorted(rows, key=lambda row: (len(row.source), row.length))


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()
  import jax
  import numpy as np

  from atm.inference import api, loglikelihood
  from atm.model import config as config_lib
  from atm.model import parameters, transformer
  from atm.parallel import distributed, sharding, xla_options
  from atm.parallel import mesh as mesh_lib

  xla_options.set_flags()
  xla_options.set_compilation_cache()
  distributed.start_jax(cpu_devices=1)
  config = config_lib.ModelConfig(
    vocab_size=V, positions=1024, dtype='float32', **SIZES
  )
  mesh, rules = mesh_lib.make_mesh(), sharding.Rules()
  net, ids = transformer.AlexaTM(config), jax.numpy.ones((1, 1), int)
  shapes = parameters.abstract_params(net, mesh, rules)
  params = jax.jit(
    lambda: net.init(jax.random.key(0), ids, ids, enable_dropout=False)
  )()['params']
  params = jax.tree.map(
    lambda x, to: jax.device_put(x, to.sharding),
    transformer.nn.unbox(params),
    shapes,
  )
  ours = api.Model(config, params, None, mesh, rules, 0)
  print(
    f'{"mode":10}{"shared s":>10}{"blind s":>10}{"ratio":>8}{"differs":>10}'
  )
  for mode in ('clm', 'denoise'):
    pairs = questions(np.random.default_rng(0), mode == 'denoise')
    times: dict[str, list[float]] = {'shared': [], 'blind': []}
    sums = {}
    for repeat in range(args.repeats + 1):
      for name, pack in (
        ('shared', loglikelihood.pack_targets),
        ('blind', apart),
      ):
        with mock.patch.object(loglikelihood, 'pack_targets', pack):
          start = time.perf_counter()
          sums[name] = ours.likelihoods(*pairs)[0]
          if repeat:  # the first compiles
            times[name].append(time.perf_counter() - start)
    shared, blind = (statistics.median(x) for x in times.values())
    differs = np.abs(sums['shared'] - sums['blind']).max()
    found = f'{shared:10.2f}{blind:10.2f}{blind / shared:10.2f}{differs:10.1e}'
    print(f'{mode:10}{found}')


if __name__ == '__main__':
  main()
