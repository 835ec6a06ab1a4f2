"""Collectives of a compiled program: over which mesh axes, how many bytes."""

import collections
import itertools
import math
import re
from collections.abc import Callable

import numpy as np

from atm.plan.hlo import Instruction, Program, array_bytes
from atm.plan.program_costs import COLLECTIVES

# The notations of replica groups: XLA's lists and iotas, and Shardy's meshes.
_LISTED = re.compile(r'replica_groups=\{(\{[\d,]*\}(?:,\s*\{[\d,]*\})*)\}')
_IOTA = re.compile(
  r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?'
)
_MESH = re.compile(
  r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))?'
  r' \{([^}]*)\}'
)
# libtpu sends to other slices, over the hosts' network, by a `send` of its own.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_PAIRS = re.compile(r'source_target_pairs=\{(\{.*?\})\}')


def list_collectives(program: Program, sizes: dict[str, int]) -> list[dict]:
  """Lists every kind of collective, the largest traffic first."""
  # `sizes` are the devices of mesh axes, in the order in which those are
  # numbered. Of a row, `axes` are those that a group spans, `group` counts its
  # devices; `wire_bytes` are what a device sends a step if the groups are
  # rings; `padded` those of them that sum arrays which are zero but for a
  # device's part (gathers, at twice their price); `asynchronous` may run beside
  # something else; `source` is where most of the bytes come from.
  asynchronous = _called_by(program, _starts)
  continued = _called_by(program, _continues)
  rows, sources = {}, collections.defaultdict(collections.Counter)
  for line, computation, times in program.executed():
    key = _key(line, computation, sizes, computation in asynchronous)
    if key is None or computation in continued:
      continue
    names = 'kind', 'axes', 'group', 'asynchronous'
    empty = {'count': 0, 'wire_bytes': 0, 'padded': 0}
    row = rows.setdefault(key, {**dict(zip(names, key)), **empty})
    sent = times * wire_bytes(line, row['kind'], row['group'])
    row['count'] += times
    row['wire_bytes'] += sent
    if row['kind'] == 'all-reduce':
      row['padded'] += sent * _padded_share(program, line, computation)
    source = program.source(line, computation) or line.op_name
    sources[key][source] += sent
  for key, row in rows.items():
    row['source'] = max(sources[key], key=sources[key].get)
  return sorted(rows.values(), key=lambda row: -row['wire_bytes'])


def _called_by(program: Program, is_caller: Callable) -> set[str]:
  """Returns computations called by some instructions, and what those call."""
  called = set()
  for name in program.callers_first():
    for line in program.computations[name]:
      if name in called or is_caller(line):
        called |= {callee for _, callee in line.called}
  return called


def _starts(line: Instruction) -> bool:
  """Tells whether a line starts collectives that run beside others."""
  # TPUs start some by a fusion of this name instead of async-start; TPU7x lets
  # its SparseCores do some.
  named = line.name.startswith('async-collective-start')
  return named or line.opcode in ('async-start', 'call-start')


def _continues(line: Instruction) -> bool:
  """Tells whether a line goes on with a collective started elsewhere."""
  # TPUs write such a collective out again: in every fusion that multiplies
  # meanwhile, and in the one that ends it.
  return line.name.startswith('async-collective-done') or any(
    callee.startswith('async_collective_fusion') for _, callee in line.called
  )


def _key(
  line: Instruction, computation: str, sizes: dict, asynchronous: bool
) -> tuple | None:
  """Returns (kind, axes, group, asynchronous); None: no collective."""
  between = _BETWEEN_SLICES.search(line.rest)
  if line.opcode == 'send' and between:
    kind = between[1].lower().replace('_', '-')
    return kind, ('slice',), sizes['slice'], True
  kind = line.opcode.removesuffix('-start')
  if kind not in COLLECTIVES:
    return None
  # TPUs do a reduce-scatter as a fusion of all-reduce and slice.
  fused = computation.startswith(('all-reduce-scatter', 'reduce-scatter'))
  if kind == 'all-reduce' and fused:
    kind = 'reduce-scatter'
  members = replica_groups(line.rest, math.prod(sizes.values()))
  asynchronous |= line.opcode != kind and line.opcode.endswith('-start')
  return kind, spanned_axes(members, sizes), len(members[0]), asynchronous


def _padded_share(program: Program, line: Instruction, computation) -> float:
  """Returns the share of an all-reduce's bytes that was written into zeros."""
  # So XLA gathers where it takes a ring for too slow: each device's part goes
  # into an array of zeros, and the sum is the whole.
  names = re.findall(r'%([\w.\-]+)', line.rest.partition(')')[0])
  sizes = array_bytes(line.shape)
  if len(names) != len(sizes):
    return 0.0
  lines = {other.name: other for other in program.computations[computation]}
  opcodes = [program.opcodes(lines[n]) if n in lines else set() for n in names]
  pads = [bool(found & {'dynamic-update-slice', 'pad'}) for found in opcodes]
  return sum(itertools.compress(sizes, pads)) / max(1, sum(sizes))


def replica_groups(rest: str, devices: int) -> np.ndarray:
  """Parses an instruction's groups to positions in the mesh, [groups, size]."""
  if match := _MESH.search(rest):
    return _mesh_groups(*match.groups())
  if match := _IOTA.search(rest):
    number, size, sides, order = match.groups()
    return _iota(sides, order).reshape(int(number), int(size))
  if match := _LISTED.search(rest):
    groups = re.findall(r'\{([\d,]*)\}', match[1])
    return np.array([[int(n) for n in ids.split(',')] for ids in groups])
  if match := _PAIRS.search(rest):
    # The longest chain of a permutation stands for its group.
    return _longest_chain(re.findall(r'\{(\d+),(\d+)\}', match[0]))
  return np.arange(devices)[None]


def _iota(sides: str, order: str | None) -> np.ndarray:
  """Returns 0, 1, ... in the shape `sides`, transposed."""
  shape = [int(n) for n in sides.split(',')]
  ids = np.arange(math.prod(shape)).reshape(shape)
  return ids.transpose([int(n) for n in order.split(',')]) if order else ids


def _mesh_groups(axes: str, devices: str | None, within: str) -> np.ndarray:
  """Returns groups along some axes of a mesh that XLA made up."""
  # `axes` are like "'axis_0'=64,'axis_1'=2"; `devices` like '[2,64]T(1,0)' or
  # '0,2,1,3', how they fill the mesh, None: in order; `within` like "'axis_0'",
  # the axes of a group, or parts "'axis_0':(1)4" of them: 4 of its devices, a
  # product of 1 of them before (Shardy's sub-axes).
  names = re.findall(r"'(\w+)'=(\d+)", axes)
  order = re.match(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', devices or '')
  if order:
    ids = _iota(order[1], order[2])
  elif devices:
    ids = np.array([int(n) for n in devices.split(',')])
  else:
    ids = np.arange(math.prod(int(n) for _, n in names))
  parts = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", within)
  shape, chosen = [], []
  for name, size in names:
    cut, at = [], 1
    for axis, before, mine in sorted(parts, key=lambda p: int(p[1] or 1)):
      if axis == name:
        before, mine = int(before or 1), int(mine or size)
        cut += [(before // at, False), (mine, True)]
        at = before * mine
    for sub, is_mine in [*cut, (int(size) // at, False)]:
      chosen += [len(shape)] if is_mine else []
      shape.append(sub)
  rest = [i for i in range(len(shape)) if i not in chosen]
  ids = ids.reshape(shape).transpose(rest + chosen)
  return ids.reshape(-1, math.prod(shape[i] for i in chosen))


def _longest_chain(pairs: list[tuple[str, str]]) -> np.ndarray:
  """Returns the longest chain from source to target; [1, devices]."""
  to = {int(a): int(b) for a, b in pairs}

  def chain(first):
    ring = [first]
    while (after := to.get(ring[-1], first)) not in ring:
      ring.append(after)
    return ring

  return np.array([max(map(chain, to), key=len)])


def spanned_axes(members: np.ndarray, sizes: dict[str, int]) -> tuple[str, ...]:
  """Returns the mesh axes that a group's devices differ in."""
  coordinates = np.unravel_index(members[0], tuple(sizes.values()))
  return tuple(
    axis for axis, along in zip(sizes, coordinates) if len(set(along)) > 1
  )


def wire_bytes(line: Instruction, kind: str, n: int) -> float:
  """Returns bytes that a device sends for one collective over a ring of n."""
  # A gather or scatter of N bytes in all sends N (n - 1) / n; a reduction is
  # both, one after the other (Thakur et al., 2005, sections 3 and 4).
  sizes = array_bytes(line.shape)
  whole = sum(sizes)
  if line.opcode == 'send':  # (what is sent, a number, a token)
    whole = max(sizes)
  elif line.opcode == 'all-gather-start':  # (what goes in, what comes out)
    whole *= n / (n + 1)
  elif line.opcode == 'reduce-scatter':
    whole *= n  # the text says what is left of it
  elif kind == 'collective-permute':
    return max(sizes, default=0)
  around = whole * (n - 1) / n
  return 2 * around if kind == 'all-reduce' else around
