"""The table and the verdict of `atm check`."""

import numpy as np

from atm.evals import check_report


def make_report():
  lines = []
  return check_report.Report(lines.append), lines


def test_a_verdict_tells_agreement_and_facts():
  report, lines = make_report()
  report.tell('config.json', 'a model', True)
  report.tell_difference('logits', 2e-6, 1e-4)
  report.tell('greedy ids', '3 of 3 equal', True, '3 of 3 equal')
  assert report.verdict('', 'nllb: 7 parameters') == (
    'atm check: agrees | nllb: 7 parameters | logits 2.0e-06 apart, greedy ids '
    '3 of 3 equal'
  )
  assert [line.split()[-1] for line in lines] == ['ok'] * 3
  why = report.verdict('torch is not installed', 'x')
  assert why.startswith('atm check: not compared: torch is not installed | x')


def test_what_differs_comes_first():
  report, lines = make_report()
  report.tell('greedy ids', 'long', False, '2 of 3 equal (prompt 1)')
  report.tell_difference('logits', 0.5, 1e-4)
  report.tell_difference('states', float('nan'), 1e-4)  # is no agreement
  report.tell('tokenizer', 'none')
  assert report.verdict('', 'x').startswith(
    'atm check: differs: greedy ids 2 of 3 equal (prompt 1); logits 5.0e-01 '
    'apart; states nan apart | x | '
  )
  assert [line.endswith('DIFFERS') for line in lines] == [True] * 3 + [False]


def test_differences_are_relative_to_the_largest():
  ours, theirs = np.array([1.0, 10.0]), np.array([1.5, 20.0])
  assert check_report.relative_difference(ours, theirs) == 0.5
  assert check_report.relative_difference(ours, theirs[:1]) == float('inf')
  zeros = np.zeros(2)
  assert check_report.relative_difference(zeros, zeros) == 0
  assert np.isnan(check_report.relative_difference(zeros * np.nan, theirs))


def test_surroundings_name_versions_and_devices():
  text = check_report.describe_surroundings({'torch': '9.1'})
  assert text.startswith('atm ') and ' torch 9.1 | ' in text
  assert text.endswith(', 8 x cpu')
