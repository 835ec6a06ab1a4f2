"""Cycles of Pallas kernels: what the compiler writes of them, read."""

import json
import re
import subprocess

import jax
import jax.numpy as jnp
import pytest

from atm.model import attention
from atm.model.attention import AttentionMask
from atm.plan import hardware, hlo, kernels, program_costs


@pytest.fixture(scope='module')
def bodies():
  """Mosaic modules: forward and backward of 2 rows, 4 heads, 3 x 2 blocks."""
  like = lambda T, *more, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(
    (2, T, *more), dtype
  )
  queries, keys = like(1152, 4, 128), like(2048, 4, 128)
  ids = [like(T, dtype=jnp.int32) for T in (1152, 2048)]

  def total(query, key, value, *ids):
    out = attention.splash_attention(query, key, value, AttentionMask(*ids))
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
    assert kernels.count_cells(body, 1) == 2 * 4 * 3 * 2
    assert kernels.count_cells(body, 2) == 4 * 3 * 2


def test_cells_behind_a_causal_mask_do_not_run(bodies):
  """Of 2 x 2 blocks the one above the diagonal is skipped.

  Fault seen: attention of 8192 positions took 1.8 times as long as it does.
  """
  assert kernels.count_cells(bodies[0], 1, causal=True) == 2 * 4 * 3 * 2 * 3 / 4
  segments, positions = ('int32', [2, 1152, 128]), ('int32', [1152, 128])
  assert not kernels.is_causal({'takes': [segments]})
  assert kernels.is_causal({'takes': [segments, positions]})


MADE = 'f32[8,128]{1,0:T(8,128)}', 'bf16[2]{0}'
TAKEN = 's8[1,1]{1,0}, bf16[4,2]{1,0:T(2,128)(2,1)}, s32[]'


def program(**bodies):
  """Calls of kernels, an attribute of several lines in each."""
  lines = [
    f"""  %{name}.1 = ({', '.join(MADE)}) custom-call(%a), {kernels.CALL}, \
operand_layout_constraints={{{TAKEN}}}, frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{}}"
}}}}, backend_config={{"flag_configs":[],"custom_call_config":\
{{"body":"{body}","serialization_format":"1","lists":[]}},"more":{{"a":[]}}}}"""
    for name, body in bodies.items()
  ]
  head = ['ENTRY %main () -> f32[8] {', *lines, '}']
  return hlo.parse('\n'.join(head))


@pytest.fixture
def scheduled(monkeypatch):
  """Sets what schedules say, in the order of the calls; returns the calls."""
  asked = []

  def say(*bundles):
    def schedule_calls(calls, kind):
      asked.append((calls, kind))
      return list(bundles)

    monkeypatch.setattr(kernels, 'schedule_calls', schedule_calls)
    return asked

  return say


def test_cycles_are_bundles_times_cells(bodies, scheduled):
  """Kernels that are the same are compiled once.

  Fault seen: a kernel that is called again left out.
  """
  forward, backward = bodies
  given = program(first=forward, again=forward, back=backward)
  asked = scheduled(100, 7)
  cycles = kernels.kernel_cycles(given, hardware.parse_pod('v5p:4x4x8'))
  assert cycles == {'first.1': 2400, 'again.1': 2400, 'back.1': 7 * 24}
  assert program_costs.sum_cycles(given, cycles)['kernels'] == 4800 + 168
  ((calls, kind),) = asked
  assert kind == 'v5p' and len(calls) == 2


def test_a_call_is_read_as_it_can_be_made_again(bodies):
  """Fault seen: only the first operand."""
  given = program(first=bodies[0])
  (line,) = (x for x, _, _ in given.executed() if kernels.is_kernel_call(x))
  call = kernels.parse_call(line)
  assert call['makes'] == [('float32', [8, 128]), ('bfloat16', [2])]
  assert call['takes'] == [
    ('int8', [1, 1]), ('bfloat16', [4, 2]), ('int32', [])
  ]  # fmt: skip
  config = json.loads(call['config'])
  assert config['custom_call_config'] == {
    'body': bodies[0], 'serialization_format': '1', 'lists': []
  }  # fmt: skip


def test_kernels_are_unknown_where_they_cannot_be_scheduled(
  bodies, monkeypatch
):
  """The process that compiles them fails: no libtpu, or another."""
  failed = subprocess.CompletedProcess([], 1, '', 'no libtpu')
  monkeypatch.setattr(subprocess, 'run', lambda *_, **__: failed)
  pod = hardware.parse_pod('v5e:2x4')
  assert kernels.kernel_cycles(program(first=bodies[0]), pod) == {}
  assert (
    kernels.kernel_cycles(hlo.parse('ENTRY %main () -> f32[8] {\n}'), pod) == {}
  )


@pytest.mark.libtpu
def test_kernels_are_scheduled_alone():
  """Twice the keys in blocks of the same size: more cells, the same bundles."""
  pod = hardware.parse_pod('v5e:2x2')
  placed = jax.sharding.SingleDeviceSharding(hardware.pod_devices(pod)[0])

  def found(keys):
    like = lambda T, *more, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(
      (1, T, *more), dtype, sharding=placed
    )
    ids = [like(T, dtype=jnp.int32) for T in (1024, keys)]
    run = jax.jit(
      lambda q, k, v, *ids: attention.splash_attention(
        q, k, v, AttentionMask(*ids)
      )
    )
    given = like(1024, 2, 128), like(keys, 2, 128), like(keys, 2, 128)
    text = run.lower(*given, *ids).compile().as_text()
    (cycles,) = kernels.kernel_cycles(hlo.parse(text), pod).values()
    return cycles

  short, long = found(1024), found(2048)
  assert short > 2 * 2000 and 1.5 * short < long < 2.5 * short
