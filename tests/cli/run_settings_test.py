"""What a run uses of a configuration."""

import pytest

from atm.cli import (
  commands,
  gin_files,
  gin_names,
  gin_reader,
  run_settings,
  source_text,
)


@pytest.mark.parametrize('run', commands.RUNS)
def test_a_run_uses_all_that_its_file_sets(run):
  """Else a setting would be accepted and do nothing."""
  plans = 'train', 'decode', 'encode', 'serve'
  programs = plans if run == 'plan' else ('',)
  unused = {b.name for b in run_settings.read_run(run).bindings}
  for program in programs:
    made = gin_reader.read_configuration(
      [gin_files.run_file(run)], [f'PROGRAM = {program!r}'] if program else []
    )
    usage = run_settings.Usage(run, made)
    unused &= {b.name for b in made.bindings if not usage.has(b)}
    assert run_settings.START in usage.configurables
  assert not unused


def test_what_may_be_bound_beside():
  found = run_settings.list_open('infer')
  names = [p.name for p in found['atm.choosing.Config']]
  assert 'top_k' in names and 'max_tokens' not in names
  assert [p.name for p in found['atm.sharding.mesh']] == [
    'slice', 'data', 'fsdp', 'tensor',
  ]  # fmt: skip
  assert list(found)[-1] == 'atm.sharding.start'
  assert 'atm.files.infer_file' not in found


def test_what_a_run_sets_by_itself():
  given = run_settings.is_given
  assert given('pretrain', 'atm.data.vocab', 'size')
  assert not given('vocab', 'atm.data.vocab', 'size')
  assert given('plan', 'atm.choosing.Config', 'max_tokens')
  assert not given('infer', 'atm.choosing.Config', 'max_tokens')
  for name, parameters in run_settings.GIVEN.items():
    target = gin_names.TARGETS[name]
    assert parameters <= source_text.list_parameters(target).keys()
