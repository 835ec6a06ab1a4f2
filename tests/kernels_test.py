"""Cycles of Pallas kernels: what the compiler writes of them, read."""

import base64
import re
import types

import jax
import jax.numpy as jnp
import pytest

from atm import attention, chips, hlo, kernels
from atm.attention import Sight


@pytest.fixture(scope='module')
def bodies():
  """Mosaic modules: forward and backward of 2 rows, 4 heads, 3 x 2 blocks."""
  like = lambda T, *more, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(
    (2, T, *more), dtype
  )
  queries, keys = like(1152, 4, 128), like(2048, 4, 128)
  ids = [like(T, dtype=jnp.int32) for T in (1152, 2048)]

  def total(query, key, value, *ids):
    out = attention.splash(query, key, value, Sight(*ids))
    return out.astype(jnp.float32).sum()

  slopes = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
  traced = slopes.trace(queries, keys, keys, *ids)
  text = traced.lower(lowering_platforms=('tpu',)).as_text()
  found = re.findall(r'body\\22: \\22([^\\]+)\\22', text)
  assert len(found) == 2
  return found


def test_cores_share_the_cells_of_a_grid(bodies):
  """Faults seen: cores not counted; the first side of the grid alone."""
  for body in bodies:
    assert kernels.cells(body, 1) == 2 * 4 * 3 * 2
    assert kernels.cells(body, 2) == 4 * 3 * 2


@pytest.fixture
def wrote(monkeypatch, tmp_path):
  """Writes schedules as libtpu does: (instruction, bundles)."""
  monkeypatch.setattr(
    kernels, 'listen', lambda: types.SimpleNamespace(name=str(tmp_path))
  )

  def write(**bundles):
    for n, (name, count) in enumerate(bundles.items()):
      path = tmp_path / f'17956{n}-{name}.1-00-final_hlo-static-per-bundle.txt'
      lines = ['== CAPACITY:', 'MXU, XLU, VALU', '    4     3     4']
      path.write_text('\n'.join([*lines, '== USE:', *['0 12 1'] * count]))

  return write


def program(**bodies):
  lines = [
    f'  %{name}.1 = f32[8]{{0}} custom-call(), {kernels.CALL}, '
    f'backend_config={{"custom_call_config":{{"body":"{body}"}}}}'
    for name, body in bodies.items()
  ]
  head = ['ENTRY %main () -> f32[8] {', *lines, '}']
  return hlo.Program('\n'.join(head))


def test_cycles_are_bundles_times_cells(bodies, wrote):
  """Kernels that are the same have one schedule; it is read once.

  Faults seen: the line of capacities counted; a kernel without a schedule of
  its own left out.
  """
  forward, backward = bodies
  given = program(first=forward, again=forward, back=backward)
  wrote(first=100, back=7, other=3)
  pod = chips.pod('v5p:4x4x8')
  cycles = kernels.cycles(given, pod)
  assert cycles == {'first.1': 2400, 'again.1': 2400, 'back.1': 7 * 24}
  assert given.cycles(cycles)['kernels'] == 4800 + 168
  assert kernels.cycles(given, pod) == {}  # not those of another program


def test_a_kernel_without_a_schedule_leaves_all_unknown(bodies, wrote):
  wrote(first=100)
  other = base64.b64encode(b'another').decode()
  given = program(first=bodies[0], other=other)
  assert kernels.cycles(given, chips.pod('v5e:2x4')) == {}
