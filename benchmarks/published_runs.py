"""Plans published training runs of TPUs, beside the times that they took.

MaxText publishes models of decoders alone with their chips, mesh, batch, remat
and speed. A decoder of the same sizes (published_models.py) is compiled for the
same chips with the same options of XLA, and `atm plan`'s estimate of a step is
printed beside the measured one. Needs libtpu, minutes a run, and no TPU:

  python benchmarks/published_runs.py [RUN ...] [--folder=FOLDER]

FOLDER keeps each program's text, so that a second call compiles nothing.
"""

import dataclasses
import functools
import gzip
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from published_models import Decoder

from atm.data import task_registry
from atm.model import config
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding, xla_options
from atm.plan import hardware, hlo, step_time, train_program
from atm.train import optimizer, step

# Options of XLA that the runs were started with, by what they are for.
GATHERS = {
  'xla_tpu_enable_async_collective_fusion': True,
  'xla_tpu_enable_async_collective_fusion_fuse_all_gather': True,
  'xla_tpu_enable_async_collective_fusion_multiple_steps': True,
  'xla_tpu_overlap_compute_collective_tc': True,
  'xla_enable_async_all_gather': True,
}
REDUCTIONS = {
  'xla_tpu_enable_data_parallel_all_reduce_opt': True,
  'xla_tpu_data_parallel_opt_different_sized_ops': True,
}
# atm's attention kernel has larger blocks than theirs, for which XLA's own
# limit of 16 MiB of vector memory is too low.
VMEM = {xla_options.VMEM_LIMIT: '20480'}
V5P = {
  'xla_tpu_megacore_fusion_allow_ags': False,
  'xla_enable_async_collective_permute': 'ENABLED',
  'xla_tpu_enable_ag_backward_pipelining': True,
}
V6E = {xla_options.VMEM_LIMIT: '98304'}
LAYOUTS = {
  'xla_tpu_use_minor_sharding_for_major_trivial_input': True,
  'xla_tpu_relayout_group_size_threshold_for_reduce_scatter': 1,
  'xla_tpu_assign_all_reduce_scatter_layout': True,
}
OFFLOAD = {
  'xla_tpu_enable_all_experimental_scheduler_features': True,
  'xla_tpu_enable_scheduler_memory_pressure_tracking': True,
  'xla_tpu_host_transfer_overlap_limit': 24,
  'xla_tpu_aggressive_opt_barrier_removal': 'ENABLED',
  'xla_lhs_prioritize_async_depth_over_stall': 'ENABLED',
  'xla_tpu_enable_ag_backward_pipelining': True,
  'xla_should_allow_loop_variant_parameter_in_chain': 'ENABLED',
  'xla_should_add_loop_invariant_op_in_chain': 'ENABLED',
  'xla_max_concurrent_host_send_recv': 100,
  'xla_tpu_scheduler_percent_shared_memory_limit': 100,
  'xla_latency_hiding_scheduler_rerun': 2,
  # Products whole, behind what they gather: not in pieces, one a device.
  'xla_jf_spmd_threshold_for_windowed_einsum_mib': 1_000_000,
}


@dataclasses.dataclass(frozen=True)
class Run:
  """A published run: its sizes, its machine, and its time."""

  topology: str
  rows: int  # a chip's
  length: int  # tokens of a row
  width: int
  depth: int
  heads: int
  head: int  # dimension of one
  ff: int
  vocabulary: int
  # Measured: bfloat16 FLOP/s of a chip in 1e12, or seconds of a step.
  rate: float | None = None
  seconds: float | None = None
  # What `rate` counts of attention: 0 nothing, 1 half of it (causal), 2 all.
  counted: int = 1
  attention: str = 'splash'
  causal: bool = True  # whether the kernel leaves out what no token may see
  kv_heads: int | None = None  # None: as `heads`
  gated: bool = False
  activation: str = 'relu'
  tied: bool = True
  rotary: bool = True
  remat: str = 'full'
  tensor: int = 1
  options: tuple = ()

  @property
  def pod(self) -> hardware.Pod:
    return hardware.parse_pod(self.topology)

  @property
  def tokens(self) -> int:
    """Tokens of a chip's step."""
    return self.rows * self.length

  @property
  def flops(self) -> float:
    """FLOPs of a chip's step; of causal attention half, as a mask leaves."""
    return self.count_flops(1 if self.causal else 2)

  def count_flops(self, counted: int) -> float:
    """Returns `flops` with a multiple of causal attention's, as `counted`."""
    D, H, K = self.width, self.heads, self.head
    kv = self.kv_heads or H
    layer = 2 * D * (H + kv) * K + (3 if self.gated else 2) * D * self.ff
    products = self.depth * layer + D * self.vocabulary
    attended = counted * self.depth * self.length * H * K
    return 6 * self.tokens * (products + attended)

  @property
  def measured(self) -> float:
    """Seconds of a step."""
    return self.seconds or self.count_flops(self.counted) / (self.rate * 1e12)


def _of_2023(width, depth, heads, ff, head=256, vocabulary=32768, **more):
  """Returns a run of MaxText's base model of December 2023, scaled."""
  more = dict(length=2048) | more
  return Run(
    width=width, depth=depth, heads=heads, head=head, ff=ff,
    vocabulary=vocabulary, **more,
  )  # fmt: skip


_pairs = lambda *options: tuple(
  pair for group in options for pair in group.items()
)
_V4 = dict(
  length=1024,
  counted=0,
  attention='einsum',
  options=_pairs({'xla_enable_async_all_gather': True}),
)
_V5E = dict(
  topology='v5e:16x16',
  counted=2,
  causal=False,
  options=_pairs(GATHERS, REDUCTIONS, VMEM),
)
_V5P = _pairs(GATHERS, REDUCTIONS, VMEM, V5P)
_V6E = _pairs(GATHERS, REDUCTIONS, V6E, LAYOUTS, OFFLOAD)
_LLAMA_70B = dict(
  width=8192, depth=80, heads=64, kv_heads=8, head=128, ff=28672,
  activation='silu', gated=True, tied=False,
)  # fmt: skip
_LLAMA_8B = dict(
  width=4096, depth=32, heads=32, kv_heads=8, head=128, ff=14336,
  activation='silu', gated=True, tied=False, vocabulary=128256, length=8192,
  remat='offload input, qkv, out', options=_V6E,
)  # fmt: skip
# - v4, v5e, v5p: MaxText's commit 76bd53b (2023-12-15), MaxText/configs/v4, v5e
#   and v5p: tables in README.md, sizes in base.yml and the scripts beside them.
#   Its rates count FLOPs as `Run.flops` does (MaxText/train.py there), but for
#   the head, which is one of two uses of a tied matrix. v5e's are from commits
#   ebb226d and 9bc243c (2023-10-27), whose scripts ask for an attention kernel
#   (5ebcd67), which had no causal mask then (MaxText/layers.py), nor had FLOPs.
# - Llama 2 70B on v5p: the page of tiers (tiering.md) of MaxText's commit
#   e591f30, 692 tokens/s a chip; sizes, batch and chips of a run of 4M tokens
#   in src/maxtext/configs/tpu/v5p/llama2_70b.sh. The table says 512 chips, the
#   script v5p-512, which has 256: rows a chip are the same.
# - v6e: README.md of training/trillium/*-MaxText of AI-Hypercomputer's
#   tpu-recipes, commit c8cfe2f: a log line of seconds a step.
RUNS = {
  'v4 22B': _of_2023(
    6144, 48, 24, 24576, topology='v4:4x4x4', rows=16, rate=156, **_V4
  ),
  'v4 52B': _of_2023(
    12288, 32, 32, 49152, topology='v4:4x4x12', rows=10, rate=154, **_V4
  ),
  'v5e 16B': _of_2023(
    5120, 32, 32, 32768, rows=6, rate=120, **_V5E
  ),
  'v5e 32B': _of_2023(
    10240, 32, 32, 32768, rows=4, rate=132, **_V5E
  ),
  'v5e 64B': _of_2023(
    10240, 64, 32, 32768, rows=2, rate=118, **_V5E
  ),
  'v5p 32B': _of_2023(
    10240, 32, 32, 32768, topology='v5p:4x4x4', rows=8, rate=328, tensor=4,
    remat='minimal', options=_V5P,
  ),
  'v5p 64B': _of_2023(
    10240, 64, 32, 32768, topology='v5p:4x4x4', rows=4, rate=323, tensor=4,
    remat='minimal', options=_V5P,
  ),
  'v5p 128B': _of_2023(
    10240, 64, 64, 65536, topology='v5p:4x4x8', rows=2, rate=315, tensor=8,
    remat='minimal', options=_V5P,
  ),
  'v5p Llama 2 70B': Run(
    'v5p:4x8x8', 4, 4096, vocabulary=32000, seconds=4 * 4096 / 692,
    remat='minimal but up', options=_pairs(GATHERS, REDUCTIONS), **_LLAMA_70B,
  ),
  'v6e Llama 2 70B': Run(
    'v6e:16x16', 2, 4096, vocabulary=32000, seconds=9.052,
    remat='offload qkv', options=_pairs(GATHERS, V6E), **_LLAMA_70B,
  ),
  'v6e Llama 3.1 70B': Run(
    'v6e:16x16', 5, 8192, vocabulary=128256, seconds=42.656,
    remat='offload input, qkv', options=_V6E, **_LLAMA_70B,
  ),
  'v6e Llama 3.1 8B': Run('v6e:16x16', 4, seconds=4.546, **_LLAMA_8B),
  'v6e 2x4 Llama 3.1 8B': Run('v6e:2x4', 3, seconds=3.443, **_LLAMA_8B),
  'v6e GPT-3 175B': Run(
    'v6e:16x16', 3, 2048, width=12288, depth=96, heads=96, head=128, ff=49152,
    vocabulary=50304, activation='gelu', rotary=False, seconds=17.182,
    options=_pairs(GATHERS, REDUCTIONS, V6E),
  ),
}  # fmt: skip


class Step(train_program.TrainStep):
  """A training step of a `Decoder`."""

  def _update(self, model_config):
    run = self.options['run']
    return functools.partial(
      step.train_step, Decoder(model_config, run), self.tx
    )


def make_step(run: Run, target: hardware.Target) -> Step:
  """Makes the training step of a run."""
  model_config = config.ModelConfig(
    vocab_size=run.vocabulary, d_model=run.width, decoder_ff=run.ff,
    encoder_layers=1, decoder_layers=run.depth, positions=run.length,
    decoder_heads=1, encoder_heads=1, loss_chunk=256,
    ties='all' if run.tied else 'embeddings', position_embedding='sinusoidal',
  )  # fmt: skip
  # As MaxText splits the sum of layers' outputs.
  rules, mesh = sharding.Rules(hidden='tensor'), target.mesh
  tx = optimizer.make_optimizer(optimizer.OptimizerConfig())
  net = Decoder(model_config, run)
  state = step.abstract_state(net, tx, mesh, rules)
  lengths = task_registry.Lengths(8, run.length)
  batch = train_program.abstract_batch(
    run.rows * mesh.size, lengths, mesh, rules, False
  )
  return Step(model_config, tx, state, batch, {'run': run}, mesh, rules)


def plan(name: str, folder: str | None) -> dict:
  """Returns the estimate of a run, compiled or of the text in a folder."""
  run = RUNS[name]
  make_mesh = functools.partial(
    mesh_lib.make_mesh, data=1, fsdp=-1, tensor=run.tensor
  )
  target = hardware.find_target(run.topology, make_mesh)
  stem = os.path.join(folder, name.replace(' ', '_')) if folder else ''
  if stem and os.path.exists(stem + '.json'):
    with open(stem + '.json') as f:
      facts = json.load(f)
    with gzip.open(stem + '.txt.gz', 'rt') as f:
      text = f.read()
  else:
    facts, text = compile_run(run, target)
    if stem:
      os.makedirs(folder, exist_ok=True)
      with gzip.open(stem + '.txt.gz', 'wt') as f:
        f.write(text)
      with open(stem + '.json', 'w') as f:
        json.dump(facts, f)
  kernels = facts['kernel_flops']
  estimate = step_time.estimate(
    hlo.parse(text), target, kernels, facts['hardware_flops'] - kernels
  )
  return {**facts, **estimate}


def compile_run(run: Run, target: hardware.Target) -> tuple[dict, str]:
  """Returns facts of a run's step, and the text of its program."""
  job = make_step(run, target)
  traced = job.trace()
  compiled = xla_options.compile_known(traced.lower(), dict(run.options))
  facts = {
    'params': job.params,
    'peak': compiled.memory_analysis().peak_memory_in_bytes,
    **train_program.hardware_flops(traced.jaxpr.jaxpr),
  }
  return facts, compiled.as_text()


def format_row(name: str, result: dict) -> str:
  """Formats a row of the table: a run planned, and measured."""
  run, (least, most) = RUNS[name], result['time_range_s']
  ideal = run.flops / run.pod.chip.peak
  parts = ', '.join(
    f'{part} {low:.2f} to {high:.2f}'
    for part, (low, high) in result['time_split_s'].items()
    if high
  )
  inside = 'yes' if least <= run.measured <= most else 'no'
  cells = (
    name,
    f'{result["params"] / 1e9:.1f}e9',
    f'{least:.2f} to {most:.2f}',
    f'{run.measured:.2f}',
    inside,
    f'{ideal / most:.1%} to {ideal / least:.1%}',
    f'{ideal / run.measured:.1%}',
    parts,
  )
  return f'| {" | ".join(cells)} |'


def main(arguments: list[str]):
  folders = [a for a in arguments if a.startswith('--folder=')]
  folder = folders[-1].partition('=')[2] if folders else None
  print(
    '| run | parameters | s a step, planned | measured | inside '
    '| MFU, planned | measured | parts, s |\n| --- ' + '| --- ' * 7 + '|'
  )
  for name in [a for a in arguments if a not in folders] or RUNS:
    print(format_row(name, plan(name, folder)), flush=True)


if __name__ == '__main__':
  main(sys.argv[1:])
