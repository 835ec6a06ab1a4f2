"""Collectives of a compiled program: over which mesh axes, how many bytes."""

from __future__ import annotations

import math
import re

import numpy as np

from atm.plan.hlo import COLLECTIVES, Instruction, Program, arrays

_LISTED = re.compile(r'replica_groups=\{(\{[\d,]*\}(?:,\s*\{[\d,]*\})*)\}')
_IOTA = re.compile(
  r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?'
)
_MESH = re.compile(
  r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))?'
  r' \{([^}]*)\}'
)
# What goes to other slices by the hosts' network: a send of libtpu's own kind.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_PAIRS = re.compile(r'source_target_pairs=\{(\{.*?\})\}')


def collectives(program: Program, sizes: dict[str, int]) -> list[dict]:
  """Every kind of collective, the largest traffic first.

  Args:
    program: a compiled one.
    sizes: mesh axis -> devices, in the order in which devices are numbered.

  Returns:
    Rows of `kind`; `axes` of the mesh that a group spans, `group` its
    devices; `count` a step; `wire_bytes` that a device sends a step if the
    groups are rings; of them `padded`, which sum arrays that are zero but
    for a device's part: gathers, at twice their price; `asynchronous`,
    whether it may run beside something else; `source`, where most of the
    bytes come from.
  """
  rows: dict[tuple, dict] = {}
  for line, computation, times in program.running():
    if computation in program.continued:
      continue
    if (key := _key(program, line, computation, sizes)) is None:
      continue
    names = 'kind', 'axes', 'group', 'asynchronous'
    nothing = {'count': 0, 'wire_bytes': 0, 'padded': 0, 'from': {}}
    row = rows.setdefault(key, {**dict(zip(names, key)), **nothing})
    kind, _, n, _ = key
    sent = times * wire_bytes(line, kind, n)
    row['count'] += times
    row['wire_bytes'] += sent
    if kind == 'all-reduce':
      row['padded'] += sent * _padded(program, line, computation)
    where = program.source(line, computation) or line.op_name
    row['from'][where] = row['from'].get(where, 0) + sent
  for row in rows.values():
    row['source'] = max(origin := row.pop('from'), key=origin.get)
  return sorted(rows.values(), key=lambda row: -row['wire_bytes'])


def _key(program: Program, line: Instruction, computation: str, sizes):
  """(kind, axes, group, asynchronous) of a collective; None: it is none."""
  between = _BETWEEN_SLICES.search(line.rest)
  if line.opcode == 'send' and between:
    kind = between[1].lower().replace('_', '-')
    return kind, ('slice',), sizes['slice'], True
  kind = line.opcode.removesuffix('-start')
  if kind not in COLLECTIVES:
    return None
  kind = _meant(kind, computation)
  members = groups(line.rest, math.prod(sizes.values()))
  asynchronous = line.opcode != kind and line.opcode.endswith('-start')
  asynchronous |= computation in program.asynchronous
  return kind, axes_of(members, sizes), len(members[0]), asynchronous


def _padded(program: Program, line: Instruction, computation: str) -> float:
  """The share of what an all-reduce sums that was written into zeros.

  So XLA gathers where it takes a ring for too slow: each device's part goes
  into an array of zeros, and the sum is the whole.
  """
  names = re.findall(r'%([\w.\-]+)', line.rest.partition(')')[0])
  sizes = arrays(line.shape)
  if len(names) != len(sizes):
    return 0.0
  made = {of.name: of for of in program.computations[computation]}
  zeros = sum(
    size
    for name, size in zip(names, sizes)
    if name in made and program.writes_a_part(made[name])
  )
  return zeros / max(1, sum(sizes))


def _meant(kind: str, computation: str) -> str:
  """TPUs do a reduce-scatter as a fusion of all-reduce and slice."""
  fused = computation.startswith(('all-reduce-scatter', 'reduce-scatter'))
  return 'reduce-scatter' if kind == 'all-reduce' and fused else kind


def groups(rest: str, devices: int) -> np.ndarray:
  """[groups, devices of a group] of an instruction's attributes.

  Numbers are positions in the mesh. Of a permutation, the longest chain.
  """
  if found := _MESH.search(rest):
    return _mesh_groups(*found.groups())
  if found := _IOTA.search(rest):
    number, size, sides, order = found.groups()
    return _iota(sides, order).reshape(int(number), int(size))
  if found := _LISTED.search(rest):
    listed = re.findall(r'\{([\d,]*)\}', found[1])
    return np.array([[int(n) for n in ids.split(',')] for ids in listed])
  if found := _PAIRS.search(rest):
    return _rings(re.findall(r'\{(\d+),(\d+)\}', found[0]))
  return np.arange(devices)[None]


def _iota(sides: str, order: str | None) -> np.ndarray:
  """0, 1, ... in the shape `sides`, transposed."""
  shape = [int(n) for n in sides.split(',')]
  ids = np.arange(math.prod(shape)).reshape(shape)
  return ids.transpose([int(n) for n in order.split(',')]) if order else ids


def _mesh_groups(axes: str, devices: str | None, within: str) -> np.ndarray:
  """Groups along some axes of a mesh that XLA made up.

  Args:
    axes: "'axis_0'=64,'axis_1'=2".
    devices: '[2,64]T(1,0)', how they fill it; None: in order.
    within: "'axis_0'", the axes of a group, or parts "'axis_0':(1)4" of them:
      4 of its devices, a product of 1 of them before (Shardy's sub-axes).
  """
  names = re.findall(r"'(\w+)'=(\d+)", axes)
  found = re.match(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', devices or '')
  count = math.prod(int(n) for _, n in names)
  ids = _iota(found[1], found[2]) if found else np.arange(count)
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


def _rings(pairs: list[tuple[str, str]]) -> np.ndarray:
  """The longest chain from source to target; [1, devices]."""
  to = {int(a): int(b) for a, b in pairs}

  def chain(first):
    ring = [first]
    while (after := to.get(ring[-1])) is not None and after not in ring:
      ring.append(after)
    return ring

  return np.array([max(map(chain, to), key=len)])


def axes_of(members: np.ndarray, sizes: dict[str, int]) -> tuple[str, ...]:
  """The mesh axes that a group's devices differ in."""
  places = np.unravel_index(members[0], tuple(sizes.values()))
  return tuple(
    axis for axis, place in zip(sizes, places) if len(set(place)) > 1
  )


def wire_bytes(line: Instruction, kind: str, n: int) -> float:
  """Bytes that a device sends for one collective over a ring of n.

  A gather or scatter of N bytes in all sends N (n - 1) / n; a reduction is
  both, one after the other (Thakur et al., 2005, sections 3 and 4).
  """
  sizes = arrays(line.shape)
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
