"""Compiler options, and programs kept across processes."""

import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from atm.model import attention
from atm.parallel import xla_options
from atm.plan import hardware

CPU = types.SimpleNamespace(platform='cpu', device_kind='cpu')
TPU = types.SimpleNamespace(platform='tpu', device_kind='TPU v5 lite')
GPU = types.SimpleNamespace(platform='gpu', device_kind='NVIDIA H100')


@pytest.fixture
def lowered():
  return jax.jit(lambda x: x @ x).lower(jnp.ones((8, 8)))


def test_an_option_reaches_the_compiler(lowered, tmp_path):
  """Fault seen: compiled without them."""
  options = {'xla_dump_to': str(tmp_path)}
  compiled = xla_options.compile_program(lowered, CPU, options)
  assert list(tmp_path.iterdir())
  assert compiled(jnp.ones((8, 8)))[0, 0] == 8


def test_options_are_of_the_device_and_may_be_changed(monkeypatch):
  """Fault seen: what a kind of device has in place of what was asked for."""
  seen = []
  fake = types.SimpleNamespace(
    compile=lambda compiler_options: seen.append(compiler_options)
  )
  monkeypatch.setattr(
    xla_options, 'PLATFORM_OPTIONS', {'tpu': {'a': 1, 'b': 1}}
  )
  monkeypatch.setattr(
    xla_options, 'KIND_OPTIONS', {'TPU v6 lite': {'b': 2, 'c': 2}}
  )
  device = lambda kind: types.SimpleNamespace(platform='tpu', device_kind=kind)
  xla_options.compile_program(fake, device('TPU v6 lite'), {'c': 3})
  xla_options.compile_program(fake, device('TPU v4'))
  xla_options.compile_program(fake, CPU)
  assert seen == [{'a': 1, 'b': 2, 'c': 3}, {'a': 1, 'b': 1}, None]


def test_options_of_a_gpu_exist(lowered):
  """jaxlib reads them on any platform; libtpu alone knows those of TPUs."""
  xla_options.compile_program(lowered, GPU)


@pytest.mark.parametrize(
  'options, expected',
  [
    (
      {'xla_gpu_enable_latency_hiding_schedule': True},
      "No such compile option: 'xla_gpu_enable_latency_hiding_schedule'"
      ".*Did you mean 'xla_gpu_enable_latency_hiding_scheduler'",
    ),
    (
      {'xla_tpu_scoped_vmem_limit_kib': '1'},
      'other devices than gpu.*XLA_OPTIONS=None leaves it out',
    ),
    ({'xla_cpu_enable_fast_math': 'maybe'}, "'maybe' is not a valid bool"),
  ],
)
def test_a_mistake_is_named(lowered, options, expected):
  with pytest.raises(ValueError, match='XLA_OPTIONS = .*' + expected):
    xla_options.compile_program(lowered, GPU, options)


@pytest.mark.libtpu
def test_too_little_vector_memory_is_one_line():
  """Fault seen: the compiler's own message, of a screen."""
  given = jax.ShapeDtypeStruct(
    (2, 256, 2, 128), jnp.float32,
    sharding=jax.sharding.SingleDeviceSharding(
      hardware.pod_devices(hardware.parse_pod('v5e:2x2'))[0]
    ),
  )  # fmt: skip

  def attend(x):
    ids = jnp.ones(x.shape[:2], jnp.int32)
    return attention.splash_attention(
      x, x, x, attention.AttentionMask(ids, ids)
    )

  lowered = jax.jit(attend).lower(given)
  with pytest.raises(
    ValueError, match='_kib = 512: splash.* takes .* and may'
  ) as e:
    xla_options.compile_program(lowered, TPU, {xla_options.VMEM_LIMIT: 512})
  assert '\n' not in str(e.value)


def test_programs_are_kept_across_processes(tmp_path):
  """Fault seen: the cache not set."""
  code = """
import jax, jax.numpy as jnp
from atm.parallel import xla_options
xla_options.set_compilation_cache()
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.jit(lambda x: x @ x)(jnp.ones((8, 8)))
print(hits.count('/jax/compilation_cache/cache_hits') > 0)
"""
  env = {k: v for k, v in os.environ.items() if 'COMPILATION_CACHE' not in k}
  env |= {'HOME': str(tmp_path), 'JAX_PLATFORMS': 'cpu'}
  env['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  run = lambda: subprocess.run(
    [sys.executable, '-c', code], env=env, capture_output=True, text=True
  )  # fmt: skip
  assert [run().stdout.strip(), run().stdout.strip()] == ['False', 'True']
  assert list((tmp_path / '.cache' / 'atm' / 'xla').iterdir())


@pytest.mark.parametrize('release', xla_options.BROKEN_FUSIONS)
def test_fusions_that_compute_wrongly_are_off(monkeypatch, release):
  monkeypatch.setattr(xla_options.jaxlib, '__version__', release)
  for mine, flags in (
    ('', '--xla_cpu_experimental_ynn_fusion_type='),
    ('--xla_a=1', '--xla_a=1 --xla_cpu_experimental_ynn_fusion_type='),
    ('--xla_cpu_experimental_ynn_fusion_type=x',) * 2,
  ):
    monkeypatch.setenv('XLA_FLAGS', mine)
    xla_options.set_flags()
    assert os.environ['XLA_FLAGS'] == flags


def test_flags_of_other_releases_are_a_users(monkeypatch):
  """XLA ends a process over a flag that it does not know."""
  monkeypatch.setattr(xla_options.jaxlib, '__version__', '0.99.0')
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  xla_options.set_flags()
  assert not os.environ.get('XLA_FLAGS')


def test_a_default_that_a_release_lacks_is_left_out(monkeypatch, lowered):
  """Fault seen: jaxlib 0.11.1 dropped options of GPUs, and no run compiled."""
  monkeypatch.setitem(
    xla_options.PLATFORM_OPTIONS, 'cpu', {'xla_of_another_release': True}
  )
  assert xla_options.compile_program(lowered, CPU)(jnp.ones((8, 8)))[0, 0] == 8
  with pytest.raises(
    ValueError, match='XLA_OPTIONS = .*xla_of_another_release'
  ):
    xla_options.compile_program(lowered, CPU, {'xla_of_another_release': True})
