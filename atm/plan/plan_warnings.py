"""Warnings of plans: what is not as it was meant, each with what to do."""

import math

import jax

from atm.data import task_registry
from atm.model import attention
from atm.model import config as config_lib
from atm.plan import hardware
from atm.plan.decode_programs import DecodeJob, ModelJob
from atm.plan.train_program import TrainStep

LARGE = 64 * 2**20  # bytes worth a warning


def train_warnings(
  plan: dict, job: TrainStep, lengths: task_registry.Lengths, target
) -> list[str]:
  """Returns the warnings of a training plan that has its estimates."""
  lines = [
    *reduction_warnings(plan['collectives'] or (), job.mesh),
    *replication_warnings(job.state.params, job.mesh),
    *padding_warnings(job.config, lengths, target.device.platform),
  ]
  off = abs(plan['flops_counted'] / plan['model_flops'] - 1)
  if off > 0.02:
    lines.append(f'the formula of model FLOPs is {off:.1%} off the count')
  return lines + _common_warnings(len(plan['unknown_loops'] or ()), target)


def decode_warnings(plan: dict, job: DecodeJob, above: float) -> list[str]:
  """Returns the warnings of a plan of decoding or encoding."""
  # `above` is the next batch that a search would have tried.
  lines = cache_warnings(plan['token'], plan['memory']) if plan['token'] else []
  lines += weight_warnings(plan, job.net.config)
  too_large = [r['batch_size'] for r in plan['batches'] if not r['fits']]
  refused = min(too_large, default=math.inf)
  if plan['searched'] and plan['fits'] and refused > above:
    lines.append(f'between {plan["batch_size"]} and {refused} none was tried')
  parts = plan['token'], plan['prefill']
  loops = sum(len(part['unknown_loops']) for part in parts if part)
  return lines + _common_warnings(loops, job.target)


def serve_warnings(plan: dict, job: ModelJob) -> list[str]:
  """Returns the warnings of a plan of serving."""
  lines = weight_warnings(plan, job.net.config)
  step = plan['step']['estimate']
  for rows, when in (
    ((step or {}).get('cache_copies'), 'step'),
    ((step or {}).get('copies_once'), 'call'),
  ):
    if (size := sum(row['bytes'] for row in rows or ())) > LARGE:
      lines.append(
        f'{size / 2**30:.2f} GiB of caches are copied for every {when}'
      )
  beams, memory = plan['memory']['beams'], plan['memory']
  if beams > max(LARGE, (memory['self cache'] + memory['cross cache']) / 2):
    lines.append(
      f'beams take {beams / 2**30:.2f} GiB a chip: BEAM_GROUPS = 0 leaves '
      'this to slots, where no request has beams'
    )
  loops = sum(
    len(part['estimate']['unknown_loops'])
    for part in (plan['step'], plan.get('alone'), plan.get('beam_step'))
    if part and part['estimate']
  )
  return lines + _common_warnings(loops, job.target)


def weight_warnings(plan: dict, config: config_lib.ModelConfig) -> list[str]:
  """Returns the warning of weights that are read in another dtype."""
  if plan['weights'] == 'float32' and config.dtype == 'bfloat16':
    return [
      'parameters are float32, and what reads them is bfloat16: programs may '
      "keep both. WEIGHTS = 'bfloat16' keeps one, half the size"
    ]
  return []


def _common_warnings(unknown_loops: int, target: hardware.Target) -> list[str]:
  lines = []
  if unknown_loops:
    lines.append(
      f'{unknown_loops} loops of unknown length are counted once: traffic and '
      'time are more than said'
    )
  if target.pod and (skew := hardware.find_version_skew()):
    lines.append(skew)
  return lines


def reduction_warnings(rows, mesh) -> list[str]:
  """Returns warnings of sums of which each device keeps but a part."""
  lines = []
  for row in rows:
    if row['kind'] != 'all-reduce' or 'fsdp' not in row['axes']:
      continue
    axes, padded = ' x '.join(row['axes']), row.get('padded', 0)
    if padded > LARGE:
      lines.append(
        f'gathers over {axes} are done as all-reduces of arrays that are zero '
        f"but for a part: {padded / 1e9:.1f} GB on the wire, twice a gather's"
      )
    summed = row['wire_bytes'] - padded
    if summed > LARGE:
      lines.append(
        f'all-reduce over {axes}, {summed / 1e9:.1f} GB on the wire, most of '
        f'it at {row["source"] or "?"}: a reduce-scatter would send half'
      )
  if lines and mesh.shape['data'] == mesh.shape['slice'] == 1:
    lines[-1] += '; mesh.data = 2 beside fsdp may bring it'
  return lines


def replication_warnings(params, mesh) -> list[str]:
  """Returns warnings of matrices whole on every device of a larger mesh."""
  split = math.prod(mesh.shape[axis] for axis in ('fsdp', 'tensor'))
  lines = []
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  for path, x in flat if split > 1 else ():
    size = x.size * x.dtype.itemsize
    if x.sharding.is_fully_replicated and size > LARGE:
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      lines.append(
        f'{name} {x.shape} is whole on every device: look at sharding.Rules'
      )
  return lines


def padding_warnings(
  config: config_lib.ModelConfig, lengths: task_registry.Lengths, platform: str
) -> list[str]:
  """Returns warnings of attention kernels' work on what fills their blocks."""
  splash = config.attention == 'splash' or (
    config.attention == 'auto' and platform == 'tpu'
  )
  if not splash or config.attention_dropout:  # dropout has plain attention
    return []
  up = lambda n: math.ceil(n / attention.BLOCK) * attention.BLOCK
  head = config.d_model // config.encoder_heads
  sizes = dict(zip(('inputs', 'targets', 'a head'), (*lengths.both, head)))
  return [
    f'attention kernels fill {name} of {n} up to {up(n)}: '
    f'{1 - n / up(n):.0%} of their work is padding'
    for name, n in sizes.items()
    if up(n) > 1.05 * n
  ]


def cache_warnings(token: dict, memory: dict) -> list[str]:
  """Returns warnings of copies of the cache; see `estimate_token`."""
  lines, rows = [], token['cache_copies']
  share = lambda rows: sum(row['bytes'] for row in rows) / memory['cache']
  if rows:
    lines.append(
      f'cache copied for every token: {sum(row["count"] for row in rows)} '
      f'arrays, {share(rows):.0%} of it'
    )
  if memory['temporaries'] > memory['cache'] / 2:
    lines.append(
      f'beside the cache there are {memory["temporaries"] / 2**30:.2f} GiB of '
      'temporaries: of the encoder, or of the '
      f'{share(token["copies_once"]):.0%} of the cache that is copied once, '
      'before the first token'
    )
  return lines
