"""The time to the first step is told and kept, and what was compiled."""

import time

from atm.train import first_step, goodput


def test_the_first_step_is_told_and_kept(train, tmp_path):
  run = train(tmp_path, 2)
  (line,) = [x for x in run.lines if x.startswith('first step ')]
  (start,) = next(
    line['starts']
    for line in goodput.read_goodput_lines(str(tmp_path))
    if 'starts' in line
  )
  assert start['process'] == 0 and start['seconds'] > 0
  assert f'first step {start["seconds"]:.1f} s after the start' in line
  assert f'{start["compiled"]:,} compiled, {start["cached"]:,} read' in line


def test_the_age_of_a_process_grows():
  before = first_step.process_age()
  time.sleep(0.1)
  assert 0 < before < first_step.process_age() < before + 60
