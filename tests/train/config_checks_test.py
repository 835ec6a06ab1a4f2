"""Settings that fit neither the mesh nor the checkpoint are refused."""

import pytest

from atm.data.task_registry import Lengths
from atm.parallel.sharding import Rules
from atm.train import config_checks

from tiny_runs import EIGHT, small_model


@pytest.mark.parametrize(
  'number, message',
  [
    (3, 'MICRO_BATCHES = 3 does not divide the 8 rows .* 4 data .*: 2 or 4'),
    (16, 'does not divide the 8 rows .* nearest that does: 8'),
    (0, 'MICRO_BATCHES = 0: expected a whole number of at least 1'),
    (2.5, 'MICRO_BATCHES = 2.5: expected a whole number of at least 1'),
  ],
)
def test_micro_batches_that_do_not_divide(number, message):
  with pytest.raises(ValueError, match=message):
    config_checks.check_micro_batches(EIGHT(), Rules(), 32, number)
  config_checks.check_micro_batches(EIGHT(), Rules(), 32, 8)


def test_sizes_are_checked_with_their_micro_batches():
  """Fault seen: MICRO_BATCHES not handed on."""
  sizes = EIGHT(), Rules(), small_model(), Lengths(32, 32), 32
  config_checks.check_sizes(*sizes, 8)
  with pytest.raises(ValueError, match='MICRO_BATCHES = 3 does not divide'):
    config_checks.check_sizes(*sizes, 3)


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(attention='splash'), 'is a kernel of TPUs, .* are cpu: set .*auto'),
    (dict(attention='cudnn'), 'is a kernel of GPUs, .* are cpu: set .*auto'),
    (dict(remat='offload_widened'), "to the host's memory.*'save_widened'"),
  ],
)
def test_what_other_devices_do_is_one_line(changes, message):
  """Faults seen: 'Only interpret mode is supported', 'annotate_device_placement
  for Host', with a report of a crash."""
  with pytest.raises(ValueError, match=message):
    config_checks.check_platform(EIGHT(), small_model(**changes))
  config_checks.check_platform(EIGHT(), small_model())


def test_another_vocabulary_is_refused():
  """Fault seen: a digest told to a user who cannot set it."""
  then, now = ({'data': {}, 'vocabulary': name} for name in ('v', 'w'))
  config_checks.check_resumable(then, then)
  with pytest.raises(ValueError, match='another vocabulary than this run has'):
    config_checks.check_resumable(then, now)


def test_other_rows_are_refused():
  """A rebuilt cache of other text would silently give another stream."""
  same = {'mixture': 'udhr', 'seed': 0, 'batch_size': 16}
  meta = lambda rows: {'data': {**same, 'rows': rows}, 'vocabulary': 'v'}
  config_checks.check_resumable(meta('a'), meta('a'))
  config_checks.check_resumable({'data': same, 'vocabulary': 'v'}, meta('a'))
  with pytest.raises(ValueError, match='the rows of tokens are not those'):
    config_checks.check_resumable(meta('a'), meta('b'))


@pytest.mark.parametrize(
  'then, now, message',
  [
    (((3, 5),), (), r'step 3 was skipped.* use SKIP_STEPS = \(\(3, 5\),\)'),
    (
      ((3, 9),),
      ((3, 5), (7, 9)),
      r'step 6 was skipped.*\(\(3, 8\), \(9, 9\)\)',
    ),
    ((), ((8, 12),), r'step 8 was trained on.* of step 8:.*\(\(9, 12\),\)'),
    (((3, 9),), ((3, 8),), None),
    ((), ((9, 12),), None),
    (((3, 5),), ((4, 5), (3, 3), (20, 30)), None),
  ],
)
def test_what_was_trained_on_cannot_be_changed(then, now, message):
  """At a checkpoint of step 8."""
  meta = lambda ranges: {
    'data': {'step': 8}, 'vocabulary': 'v', 'skip_steps': ranges
  }  # fmt: skip
  if message is None:
    config_checks.check_resumable(meta(then), meta(now))
  else:
    with pytest.raises(ValueError, match=message):
      config_checks.check_resumable(meta(then), meta(now))


def test_another_optimizer_is_refused():
  meta = lambda **kind: {'data': {}, 'vocabulary': 'v', 'optimizer': kind}
  adamw = meta(name='adamw', moments_dtype='float32')
  old = {'data': {}, 'vocabulary': 'v'}
  config_checks.check_resumable(old, adamw)
  factored = meta(name='adafactor', moments_dtype='float32', factor_from=128)
  config_checks.check_resumable(factored, factored)
  for then, now, message in (
    (adamw, factored, "name = 'adafactor', but .* with 'adamw'"),
    (factored, adamw, "name = 'adamw', but .* with 'adafactor'"),
    (old, meta(moments_dtype='bfloat16'), "moments_dtype = 'bfloat16'"),
  ):
    with pytest.raises(ValueError, match=message):
      config_checks.check_resumable(then, now)
