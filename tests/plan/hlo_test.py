"""Compiled HLO as text: what runs, how often, and from which line."""

import numpy as np
import pytest

from atm.plan import hlo

from hlo_texts import TPU


@pytest.fixture(scope='module')
def tpu():
  return hlo.parse(TPU)


def test_a_loop_turns_as_often_as_its_condition_says(tpu):
  """Fault seen: the body counted once."""
  assert tpu.run_counts['main'] == 1 and tpu.run_counts['body'] == 46
  assert tpu.run_counts['fused'] == 46 and 'add' not in tpu.run_counts
  assert not tpu.unknown_loops


def test_an_attribute_of_several_lines_ends_no_computation(tpu):
  """Fault seen: all that stands behind a kernel lost."""
  names = [line.name for line in tpu.computations['body']]
  assert names[1:4] == ['kernel', 'all-gather.1', 'product']
  assert tpu.source(tpu.computations['body'][1]) == 'atm/layers.py:88'


def test_arrays_of_a_shape():
  shape = '(f32[2,3]{1,0:T(8,128)}, bf16[], token[])'
  assert hlo.array_bytes(shape) == [24, 2]
  assert np.isclose(sum(hlo.array_bytes('s4[8]')), 4)


@pytest.mark.parametrize(
  'branches',
  [
    'branch_computations={%cheap, %dear}',
    'true_computation=%dear, false_computation=%cheap',
  ],
)
def test_a_conditional_may_take_its_first_branch(branches):
  line = f'ROOT %x = f32[] conditional(%i, %a, %b), {branches}'
  program = hlo.parse(
    f'HloModule m\n\n%cheap (p: f32[]) -> f32[] {{\n  %y = f32[] add(%p)\n}}\n'
    '\n%dear (p: f32[]) -> f32[] {\n  %z = f32[] sort(%p)\n}\n'
    f'\nENTRY %main (p: f32[]) -> f32[] {{\n  {line}\n}}\n'
  )
  assert program.run_counts == {'cheap': 1, 'dear': 1, 'main': 1}
  assert program.with_first_branches().run_counts == {'cheap': 1, 'main': 1}
