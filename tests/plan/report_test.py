"""Plans as text: tables, units and files."""

import json

from atm.plan import report


def test_columns_are_as_wide_as_their_widest_cell():
  """Faults seen: widths of the head alone; notes between the rows."""
  rows = [('a', 'b'), ('long', '1'), ('x', '22')]
  text = report.format_table('title', rows, ['a note'])
  assert text.split('\n') == [
    'title', '  a     b', '  long  1', '  x     22', '  a note'
  ]  # fmt: skip
  assert report.format_table('title', rows[:1], ['a note']) == ''


def test_a_range_that_is_not_known_says_so():
  """Fault seen: the ends swapped."""
  assert report.format_range((1, 2.5), '.1f') == '1.0 to 2.5'
  assert report.format_range(None) == report.NOT_KNOWN


def test_a_plan_is_written_to_a_folder_that_is_made(tmp_path):
  """Faults seen: the folder expected; None taken for a folder's name."""
  report.write({'fits': None, 'range': (1, 2)}, str(tmp_path / 'a' / 'b'))
  with open(tmp_path / 'a' / 'b' / report.PLAN_FILE) as f:
    assert json.load(f) == {'fits': None, 'range': [1, 2]}
  report.write({}, None)
  assert [p.name for p in tmp_path.iterdir()] == ['a']


def verdict(**changes) -> str:
  names = 'parameters', 'batch', 'cache', 'temporaries', 'peak'
  made = {
    'fits': False, 'peak_hbm_gib': 20.0, 'usable_hbm_gib': 16.0, 'changes': [],
    'batch_size': 8, 'searched': False, 'batches': [], 'token': None,
    'prefill': None, 'memory': dict.fromkeys(names, 0), 'params': 7,
    'weights': 'bfloat16', 'cache_row_bytes': 0, 'cache_row_bytes_a_chip': 0,
    'tokens_per_second_range': None, 'warnings': [], 'compile_seconds': 1,
    'versions': {'jax': '1', 'libtpu': None}, 'lengths': {'inputs': 9},
  }  # fmt: skip
  return report.decode_page({**made, **changes}, None).partition('\n\n')[0]


def test_what_does_not_fit_lists_changes():
  """Faults seen: savings taken for the memory needed; no room left out."""
  assert (
    verdict() == 'a batch of 8: does not fit: needs 20.00 of 16.00 GiB a chip'
  )
  change = {'change': 'BEAMS = 1', 'costs': 'other outputs', 'saves': 2**31}
  assert verdict(changes=[change]).split('\n')[1:] == [
    'changes that would help, cheapest first (estimated savings):',
    '  - BEAMS = 1: about 2.00 GiB less; other outputs',
  ]
  fits = dict(fits=True, peak_hbm_gib=12.0, searched=True)
  assert verdict(**fits).split('\n') == [
    'largest batch that fits: 8',
    'fits: 12.00 of 16.00 GiB a chip at the peak, 25% left',
  ]
