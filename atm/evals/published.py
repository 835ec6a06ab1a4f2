"""Published figures of AlexaTM 20B, to set results beside."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Published:
  """One published figure.

  Attributes:
    value: in the metric's unit.
    certainty: 'certain', read in the paper's own text; or 'medium', read in
      secondary sources.
    source: where it was read.
  """

  value: float
  certainty: str
  source: str


_LEADERBOARDS = 'leaderboards that list AlexaTM 20B (arXiv 2208.01448)'
# By task and metric. CB, RTE, WiC and WSC are accuracies: 67.9, 68.6, 53.3 and
# 68.3 are 38 of 56, 190 of 277, 340 of 638 and 71 of 104.
PUBLISHED: dict[tuple[str, str], Published] = {
  (task, metric): Published(value, 'medium', _LEADERBOARDS)
  for task, metric, value in (
    ('superglue_boolq', 'accuracy', 69.4),
    ('superglue_cb', 'accuracy', 67.9),
    ('superglue_copa', 'accuracy', 78.0),
    ('superglue_multirc', 'multirc_f1a', 59.6),
    ('superglue_record', 'record_f1', 88.4),
    ('superglue_rte', 'accuracy', 68.6),
    ('superglue_wic', 'accuracy', 53.3),
    ('superglue_wsc', 'accuracy', 68.3),
    ('superglue', 'average', 69.16),
    ('squadv2', 'squad_f1', 74.29),
    ('mlsum_de', 'rouge2', 33.73),
    ('xsum', 'rouge2', 24.16),
    ('wmt14_en_fr', 'bleu', 38.38),
    ('wmt16_en_de', 'bleu', 35.23),
    ('flores101_ar_ta', 'spbleu', 21.8),
  )
}
# The metric of each of the eight tasks whose mean is the published average, but
# for rounding. The leaderboard of SuperGLUE averages two metrics of CB, MultiRC
# and ReCoRD first, and has tests of its own.
SUPERGLUE_METRICS = {
  task: metric for task, metric in PUBLISHED if task.startswith('superglue_')
}
