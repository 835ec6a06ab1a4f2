"""The note on an error that ends a run."""

import pytest

from atm.cli import error_report
from atm.train import crash_report, metric_writer, optimizer

from damage import full_disk


def test_an_error_gets_a_note_that_fits_a_screen(tmp_path):
  """Faults seen: a place outside of atm; the traceback not kept."""
  report = crash_report.CrashReport(str(tmp_path), 9)
  report.done = 4
  with pytest.raises(ValueError) as caught, report:
    optimizer.OptimizerConfig(name='sgd')
  error = caught.value
  lines = error_report.get_note(error).splitlines()
  assert len(lines) == 4
  assert 'after step 4 of 9, in check_choice, atm/messages.py:' in lines[0]
  assert 'last good  none' in lines[1] and 'config.gin' in lines[3]
  text = (tmp_path / crash_report.FAILURE_FILE).read_text()
  assert text.startswith('Traceback') and 'sgd' in text


def test_a_signal_is_no_error(tmp_path):
  """Fault seen: a note, and a file, of every run that is stopped."""
  report = crash_report.CrashReport(str(tmp_path), 9)
  with pytest.raises(KeyboardInterrupt) as caught, report:
    raise KeyboardInterrupt
  assert error_report.get_note(caught.value) is None
  assert not list(tmp_path.iterdir())


def test_the_place_is_the_innermost_line_of_atm(tmp_path):
  """Fault seen: a line of Python's library named."""
  report = crash_report.CrashReport(str(tmp_path), 9)
  with pytest.raises(TypeError) as caught, report:
    metric_writer.read_metrics(5)  # os.path.join raises
  place = 'in read_metrics, atm/train/metric_writer.py:'
  assert place in error_report.get_note(caught.value)


def test_a_full_disk_leaves_the_traceback_of_before(tmp_path):
  """Fault seen: the file emptied before it could not be written."""
  report = crash_report.CrashReport(str(tmp_path), 9)
  path = tmp_path / crash_report.FAILURE_FILE
  path.write_text('of before')
  with full_disk(4):
    said = report._keep(ValueError('x'))
  assert said.startswith('not written: ') and path.read_text() == 'of before'
