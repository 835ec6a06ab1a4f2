"""A plan of serving as text: where it does not fit, and without times."""

from atm.plan import serve_report

PLAN = {
  'slots': 8, 'fits': False, 'peak_hbm_gib': 20.0, 'usable_hbm_gib': 15.75,
  'searched': False, 'tried': [], 'warnings': [], 'params': 7,
  'weights': 'float32', 'vocab_size': 100, 'slot_bytes': 2**20,
  'mesh': {'tensor': 2},
  'memory': {'parameters': 2**30, 'self cache': 2**30, 'peak': 20 * 2**30},
  'sizes': {
    'max_input': 64, 'max_output': 32, 'beam_groups': 0, 'beams': 4
  },
  'step': {'estimate': None}, 'tokens_per_second_range': None,
  'changes': [{'change': 'SLOTS = 4', 'saves': 2**30, 'costs': 'fewer'}],
  'versions': {'jax': '1', 'libtpu': None}, 'compile_seconds': 3.0,
}  # fmt: skip


def test_what_does_not_fit_says_what_would():
  page = serve_report.serve_page(PLAN, None)
  assert page.startswith('8 slots: does not fit: needs 20.00 of 15.75 GiB')
  assert 'SLOTS = 4: about 1.00 GiB less; fewer' in page
  assert 'speed: not known' in page and 'no memory limit' in page
