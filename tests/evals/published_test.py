"""Published figures of AlexaTM 20B."""

import pytest

from atm.evals import metrics, published


def test_published_figures_name_metrics_and_average_to_theirs():
  for (task, metric), found in published.PUBLISHED.items():
    assert metric in metrics.METRICS or (task, metric) == (
      'superglue',
      'average',
    )
    assert found.certainty in ('certain', 'medium') and found.source
  theirs = [
    published.PUBLISHED[key].value
    for key in published.SUPERGLUE_METRICS.items()
  ]
  assert len(theirs) == 8
  assert sum(theirs) / 8 == pytest.approx(69.16, abs=0.05)
