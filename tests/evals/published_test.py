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
  theirs = {}
  for (task, metric), found in published.PUBLISHED.items():
    theirs.setdefault(task, {})[metric] = {'value': found.value}
  average = published.superglue_average(theirs)
  assert average == pytest.approx(69.16, abs=0.05)
  del theirs['superglue_wic']
  assert published.superglue_average(theirs) is None
