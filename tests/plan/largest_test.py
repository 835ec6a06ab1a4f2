"""The largest size that fits: found, and given up for the next one down."""

import pytest

from atm.plan import largest

from plan_runs import silent


def searched(monkeypatch, peak, unit=1, more=0, reserved=0, usable=10_000):
  """(sizes tried, the largest that fits) by memory that is made up.

  Compiled whole, a size takes `more` than when its arrays are placed.
  """

  def measure(size, added, whole):
    used = peak(size * unit) + added
    return dict(
      size=size * unit, fits=used <= usable, peak_hbm_gib=0.0,
      compile_seconds=0.0, memory={'peak': used}, whole=whole,
    )  # fmt: skip

  monkeypatch.setattr(largest, 'RESERVED', reserved)
  search = largest.LargestSearch(
    plan=lambda size: measure(size, more, True),
    place=lambda size: measure(size, reserved, False),
    base=1000, usable=usable, say=silent, unit=unit,
  )  # fmt: skip
  rows, best = search.run(8)
  return [row['size'] for row in rows], best


@pytest.mark.parametrize(
  'peak, unit, best, compiles',
  [
    (lambda n: 1000 + 300 * n, 1, 30, 3),
    (lambda n: 1000 + 300 * n, 4, 28, 4),
    (lambda n: 2500 + 300 * n, 1, 25, 4),  # temporaries without rows
    (lambda n: 1000 + 300 * (-(-n // 4) * 4), 1, 28, 4),  # padded rows
    (lambda n: 1000 + 2000 * n, 1, 4, 5),
    (lambda n: 1000 + 10 * n, 1, 900, 3),  # to a 64th
  ],
)
def test_the_largest_is_found(monkeypatch, peak, unit, best, compiles):
  """It fits, the next does not.

  Faults seen: the last tried is returned; the first that fits is.
  """
  sizes, found = searched(monkeypatch, peak, unit)
  assert found['size'] == best and found['fits']
  assert len(sizes) <= compiles and sizes == sorted(sizes)
  assert any(best < n <= best * 65 / 64 + unit for n in sizes)


def test_what_is_too_large_when_compiled_gives_way(monkeypatch):
  """Fault seen: it is told for the largest."""
  sizes, found = searched(monkeypatch, lambda n: 1000 + 300 * n, more=350)
  assert found['size'] == 27 and found['fits']  # steps double
  assert 29 in sizes and 30 in sizes


def test_what_is_refused_for_room_not_needed_is_tried(monkeypatch):
  """Whole, until one is refused. Fault seen: the placed one is believed."""
  line = lambda n: 1000 + 300 * n
  sizes, found = searched(monkeypatch, line, more=100, reserved=700)
  assert found['size'] == 29 and found['whole']
  assert 30 in sizes  # refused whole


def test_where_none_fits_the_smallest_is_told(monkeypatch):
  sizes, found = searched(monkeypatch, lambda n: 20_000 + n)
  assert found['size'] == 1 and not found['fits']
