"""Scores of texts and of ids, whole and cut."""

import numpy as np
import pytest


def test_long_pairs_are_refused_or_cut(model):
  """Those cut have the scores of what is left of them."""
  P, long = model.config.positions, 'All human beings are born free. ' * 20
  with pytest.raises(ValueError, match=f'1 to Config.positions = {P}. trunc'):
    model.score([long], ['a'])
  with pytest.raises(ValueError, match="'start' or 'end' cuts targets"):
    model.score(['a'], [long])
  ids = [*model.vocabulary.encode(long), model.config.end_id]
  for side, left in (('start', ids[-P:]), ('end', ids[:P])):
    read = model.ids([long], 'clm', truncate=side)
    (a,), (n,) = model.score([long], [long], truncate=side)
    (b,), _ = model.score(read, [left])
    assert n == P and len(read[0]) == P
    np.testing.assert_allclose(a, b, rtol=1e-5)
