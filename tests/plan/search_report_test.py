"""A search as text: outcomes, and the table of pods."""

import pytest

from atm.plan import search_report


@pytest.mark.parametrize(
  'row, expected',
  [
    ({'error': 'a bug'}, 'failed: a bug'),
    ({'fits': True, 'peak_hbm_gib': 22.34}, '22.3 GiB, fits'),
    ({'fits': False, 'peak_hbm_gib': None}, 'does not fit'),
    (
      {'fits': True, 'peak_hbm_gib': 22.34, 'step_time_range_s': (2.1, 2.5)},
      '22.3 GiB, 2.10 to 2.50 s a step',
    ),
  ],
)
def test_outcomes_of_plans(row, expected):
  """Faults seen: one that failed does not fit; a whole one without its time."""
  assert search_report.format_outcome(row) == expected


def test_pods_that_hold_a_run_have_days():
  """Faults seen: days of one that does not fit; an error left out."""
  rows = [
    {'fits': True, 'headroom': 0.25, 'step_s': (1.0, 2.0)},
    {'fits': False, 'headroom': -0.1, 'step_s': (1.0, 2.0)},
    {'error': 'no libtpu'},
  ]
  same = {'chips': 8, 'batch_size': 2048, 'train_steps': 864_000}
  table = {
    'searched': False, 'finished': False,
    'rows': [{'pod': f'v5e_{i}', **same, **row} for i, row in enumerate(rows)],
  }  # fmt: skip
  title, _, *lines, note = search_report.pods_page(table).split('\n')
  assert title == 'pods, stopped before its end' and 'estimated' in note
  fit, larger, failed = lines
  assert fit.endswith('10 to 20') and ' 25% ' in fit and ' yes ' in fit
  assert larger.endswith(' -') and ' no ' in larger and '-10%' not in larger
  assert ' no libtpu ' in failed


def test_where_none_fits_the_smallest_is_named():
  """Fault seen: the largest."""
  own = {
    'data': 1, 'fsdp': 8, 'tensor': 1, 'remat': 'full', 'micro_batches': 1,
    'own': True, 'error': None, 'fits': False, 'headroom': -1.0, 'plan': None,
    'wire_bytes': 1e9, 'estimate_s': (1.0, 2.0),
  }  # fmt: skip
  summary = {
    'topology': 'v5e:2x4', 'usable_hbm_gib': 15.75, 'headroom_wanted': 0.1,
    'finished': True, 'minutes': 1.0, 'shares_of_peak': {'assumed': 0.9},
    'left_out': {'are slower': 3}, 'best': None,
    'rows': [{**own, 'peak_hbm_gib': gib} for gib in (20.0, 18.0)],
  }  # fmt: skip
  text = search_report.search_page(summary)
  assert 'the smallest needs 18.0 of 15.75 GiB' in text
  assert '3 candidates are slower' in text and '90% (assumed)' in text
