"""The best scores of generated episodes are those that the docs have."""

import os
import re

import pytest

from atm.evals import metrics
from atm_tasks import episodes
from atm_tasks.evaluation import in_context_oracle, registry

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def ask(name: str, **options):
  (task,) = registry.suite(name, **options)
  return task.make_questions(None)


def score(name: str, answers, questions) -> float:
  metric = metrics.METRICS[name]
  truths = [question.truth for question in questions]
  rows = metric.rows(answers, truths, [''] * len(truths))
  return float(metric.total(rows.sum(0)))


@pytest.mark.parametrize('family', episodes.FAMILIES)
def test_docs_have_the_oracles_scores(family):
  """By the metrics of `atm eval`, from the prompts alone."""
  with open(f'{ROOT}/docs/evaluation.md') as f:
    text = f.read()
  cells = []
  for k in in_context_oracle.SHOTS:
    asked = ask(f'in_context_{family}', shots=k)
    answers = [in_context_oracle.solve(family, q.prompt) for q in asked]
    chosen = ask(f'in_context_{family}_choice', shots=k)
    picks = [in_context_oracle.choose_pair(family, q.pairs) for q in chosen]
    cells.append((
      score('exact_match', answers, asked), score('accuracy', picks, chosen)
    ))  # fmt: skip
    assert cells[-1] == pytest.approx(in_context_oracle.measure(family, k))
  line = ' | '.join(f'{x:.1f}' for column in zip(*cells) for x in column)
  assert re.search(rf'\| `{family}` \|[^\n]*\| {re.escape(line)} \|', text)


def test_no_shots_leave_all_answers():
  assert len({*in_context_oracle.list_recalls([], 'ba')}) == len(
    episodes.INVENTED_WORDS
  )
  assert len({*in_context_oracle.list_translations([], 'ba be')}) == 16 * 16


def test_scores_are_printed(capsys):
  in_context_oracle.print_scores()
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 1 + len(episodes.FAMILIES) * len(in_context_oracle.SHOTS)
