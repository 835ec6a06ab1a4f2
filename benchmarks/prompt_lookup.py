"""Speculative decoding by prompt lookup, beside decoding without, on the CPU.

d512, 6 + 6 layers, ff 2048, 8 heads, vocabulary 32,000, 512 encoder tokens, 128
new ones, float32, greedily. Parameters are built, not trained: the first
cross-attention of the decoder reads, at each position, the token at a position
of the input that the case says; all other products are computed as of any
parameters. So the outputs are known:

  copy       the input, from its beginning
  denoise    17 tokens of the input, then 3 others, as a denoiser writes that
             was trained at 15% of spans of 3
  none       tokens of which no two stand beside each other in the input
  misleading two that stand side by side in the input, but not the third

K is the most tokens of a draft; 0 is decoding without. `ms` is what each token
takes: the time of all less that of one, which is the encoder's, by their
number. `s` is the time of all, `ratio` and `end to end` how many times shorter
the two are than without drafts. Settings take turns, and figures are medians
over `--repeats`, and over the texts of a trained model. Ids must be the same in
all settings.

  python benchmarks/prompt_lookup.py
  python benchmarks/prompt_lookup.py --model MODEL_DIR --texts FILE

The latter reads the lines of a text file with a trained model in `denoise` and
in `clm`, each cut to the model's positions.
"""

import argparse
import statistics
import time

CASES = ('copy', 'denoise', 'none', 'misleading')
CODE = 64  # dimensions of a model's states that hold a position


def read_positions(case: str, S: int, T: int, rng) -> list[int]:
  """Returns the input's position that each of T tokens is read of."""
  if case == 'copy':
    return [1 + i for i in range(T)]
  if case == 'denoise':
    out, at = [], 1
    while len(out) < T:
      out += range(at, at + 17)
      out += rng.permutation(range(S // 2, S, 2))[:3].tolist()
      at += 17
    return out[:T]
  if case == 'none':
    return rng.permutation(range(1, S, 2))[:T].tolist()
  pairs = rng.permutation(range(1, S - 2, 3))
  return [at + i for at in pairs for i in (0, 1)][:T]


def build_params(config, positions: list[int], S: int):
  """Returns parameters with which token i is that at positions[i]."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax

  from atm.model import transformer
  from atm.parallel import mesh as mesh_lib
  from atm.parallel.sharding import Rules
  from atm.train import step

  net, mesh = transformer.AlexaTM(config), mesh_lib.make_mesh()
  tx = optax.identity()
  abstract = step.abstract_state(net, tx, mesh, Rules())
  params = jax.tree.map(
    lambda x: np.array(x), step.init_state(net, tx, 0, abstract).params
  )
  D, rng = config.d_model, np.random.default_rng(0)
  words = D - CODE
  table = params['encoder_embedding']
  table[:, :words] = rng.standard_normal((len(table), words))
  table[:, words:] = 0
  params['decoder_embedding'] = table * 0.1
  params['lm_head'] = table
  code = rng.choice([-3.0, 3.0], (S, CODE))
  for name, order in (
    ('encoder_positions', range(S)),
    ('decoder_positions', positions),
  ):
    params[name][:] = 0
    params[name][: len(order), words:] = code[list(order)]
  for stack in ('encoder', 'decoder'):
    layers = params[stack]['layers']
    for part in ('attention', 'self_attention', 'cross_attention'):
      if part in layers:
        layers[part]['out']['kernel'][:] = 0
    layers['feed_forward']['down']['kernel'][:] = 0
  first = params['decoder']['layers']['cross_attention']
  H, K = config.decoder_heads, D // config.decoder_heads
  for name in ('query', 'key', 'value', 'out'):
    first[name]['kernel'][0] = 0
  width = words // H
  for h in range(H):
    for i in range(min(CODE, K)):
      first['query']['kernel'][0, words + i, h * K + i] = 1
      first['key']['kernel'][0, words + i, h * K + i] = 1
    for i in range(width):
      first['value']['kernel'][0, h * width + i, h * K + i] = 1
      first['out']['kernel'][0, h * K + i, h * width + i] = 10
  return jax.tree.map(jnp.asarray, params), mesh


def open_built(case: str, args):
  """Returns a model whose outputs are those of a case, and inputs."""
  import numpy as np

  from atm.inference import api
  from atm.model.config import ModelConfig
  from atm.parallel.sharding import Rules

  S, V = args.inputs, args.vocabulary
  config = ModelConfig(
    vocab_size=V, d_model=args.width, encoder_layers=args.layers,
    decoder_layers=args.layers, encoder_heads=args.width // CODE,
    decoder_heads=args.width // CODE, encoder_ff=4 * args.width,
    decoder_ff=4 * args.width, positions=S, dtype='float32',
  )  # fmt: skip
  rng = np.random.default_rng(1)
  positions = read_positions(case, S, args.tokens, rng)
  params, mesh = build_params(config, positions, S)
  model = api.Model(config, params, None, mesh, Rules(), 0)
  rows = [
    [1, *(3 + rng.permutation(V - 3)[: S - 1]).tolist()]
    for _ in range(args.batch)
  ]
  return model, [rows], [[[row[i] for i in positions] for row in rows]]


def open_trained(mode: str, args):
  """Returns a trained model, and batches of ids of the file's lines."""
  import atm

  model = atm.load(args.model)
  with open(args.texts, encoding='utf-8') as f:
    lines = [line.strip() for line in f if line.strip()]
  rows = [model._framing.encode(line, mode) for line in lines]
  rows = [row for row in rows if len(row) <= args.tokens]
  batches = [rows[i : i + args.batch] for i in range(0, len(rows), args.batch)][
    : args.batches
  ]
  return model, batches, [None] * len(batches)


def measure(case: str, args) -> None:
  """Prints the times of all settings for a case."""
  from atm.inference.sampling import Config

  open_model = open_trained if args.model else open_built
  model, batches, wanted = open_model(case, args)
  token = {K: [] for K in args.drafts}
  whole = {K: [] for K in args.drafts}

  def generate(batch, K: int, tokens: int):
    """Returns seconds, ids and how many tokens the longest output has."""
    config = Config(
      max_tokens=tokens, min_tokens=0 if args.model else tokens,
      prompt_lookup_num_tokens=K,
    )  # fmt: skip
    start = time.perf_counter()
    made = model.complete(batch, config=config, batch_size=len(batch))
    seconds = time.perf_counter() - start
    longest = max(len(one.log_probabilities) for (one,) in made)
    return seconds, [one.ids for (one,) in made], longest

  for batch, want in zip(batches, wanted):
    for repeat in range(args.repeats + 1):
      first = generate(batch, 0, 1)[0]  # the encoder's
      for K in args.drafts:
        seconds, ids, count = generate(batch, K, args.tokens)
        want = want or ids
        assert ids == want, f'{case}: other ids with {K} tokens in a draft'
        if repeat and count > 1:  # the first compiles
          token[K].append((seconds - first) / (count - 1))
          whole[K].append(seconds)
  show(case, args.drafts, token, whole)


def show(case: str, drafts: list[int], token: dict, whole: dict) -> None:
  """Prints a row for each length of drafts; ratios to the first of them."""
  median, base = statistics.median, drafts[0]
  for K in drafts:
    ratios = [
      median(x / y for x, y in zip(times[base], times[K], strict=True))
      for times in (token, whole)
    ]
    print(
      f'{case:12}{K:8}{median(token[K]) * 1e3:10.2f}{ratios[0]:10.2f}'
      f'{median(whole[K]):10.3f}{ratios[1]:12.2f}',
      flush=True,
    )


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--model')
  parser.add_argument('--texts')
  parser.add_argument('--cases', nargs='*')
  parser.add_argument('--drafts', nargs='*', type=int, default=[0, 15])
  parser.add_argument('--batch', type=int, default=1)
  parser.add_argument('--batches', type=int, default=20)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--tokens', type=int, default=128)
  parser.add_argument('--inputs', type=int, default=512)
  parser.add_argument('--width', type=int, default=512)
  parser.add_argument('--layers', type=int, default=6)
  parser.add_argument('--vocabulary', type=int, default=32000)
  args = parser.parse_args()
  from atm.parallel import distributed, xla_options

  xla_options.set_flags()
  xla_options.set_compilation_cache()
  distributed.start_jax(cpu_devices=1)
  print(
    f'{"case":12}{"K":>8}{"ms":>10}{"ratio":>10}{"s":>10}{"end to end":>12}',
    flush=True,
  )
  for case in args.cases or (('denoise', 'clm') if args.model else CASES):
    measure(case, args)


if __name__ == '__main__':
  main()
