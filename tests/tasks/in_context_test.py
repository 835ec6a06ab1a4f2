"""Tasks of generated episodes, and the best scores that they allow."""

import os
import re

import pytest

from atm.evals import metrics
from atm_tasks import episodes
from atm_tasks.evaluation import in_context_oracle, registry

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def ask(name: str, **options):
  (task,) = registry.suite(name, **options)
  return task, task.make_questions(None)


def score(name: str, answers, questions) -> float:
  metric = metrics.METRICS[name]
  truths = [question.truth for question in questions]
  rows = metric.rows(answers, truths, [''] * len(truths))
  return float(metric.total(rows.sum(0)))


@pytest.mark.parametrize('family', episodes.FAMILIES)
def test_a_question_has_its_own_shots(family):
  task, questions = ask(f'in_context_{family}', shots=2)
  assert task.shots == 2 and task.stop == (';',)
  assert len(questions) == episodes.EPISODES['test']
  for number, question in enumerate(questions[:20]):
    shots, query = in_context_oracle.read_prompt(question.prompt)
    episode = episodes.draw_episode(family, 'test', number)
    assert shots == episode.choose_shots(2)
    assert (query, question.truth) == (episode.query, episode.answer)
    output = f' {question.truth}; {query} = x'
    assert task.answer(output, question) == question.truth


@pytest.mark.parametrize('mode', ['clm', 'denoise'])
def test_choices_are_those_of_the_same_prompt(mode):
  for family in episodes.FAMILIES:
    _, asked = ask(f'in_context_{family}', shots=4)
    _, chosen = ask(f'in_context_{family}_choice', shots=4, mode=mode)
    for one, other in zip(asked, chosen, strict=True):
      encoder, decoder = other.pairs[other.truth]
      assert encoder == one.prompt and len({*other.pairs}) == 4
      before = f'{one.prompt} ' if mode == 'denoise' else ''
      assert decoder == f'{before}{one.truth};'


def test_shots_are_as_many_as_an_episode_has():
  for k in (7, 100):
    with pytest.raises(ValueError) as e:
      ask('in_context_recall', shots=k)
    assert str(e.value) == (
      f'SHOTS of in_context_recall = {k}: expected a whole number from 0 to 6. '
      'Did you mean 6?'
    )
  _, questions = ask('in_context_recall', shots=0)
  assert re.fullmatch(r'\w+ =', questions[0].prompt)


def test_docs_have_the_oracles_scores():
  """By the metrics of `atm eval`, from the prompts alone."""
  with open(f'{ROOT}/docs/evaluation.md') as f:
    text = f.read()
  for family in episodes.FAMILIES:
    cells = []
    for k in in_context_oracle.SHOTS:
      _, asked = ask(f'in_context_{family}', shots=k)
      answers = [in_context_oracle.solve(family, q.prompt) for q in asked]
      exact = score('exact_match', answers, asked)
      _, chosen = ask(f'in_context_{family}_choice', shots=k)
      picks = [in_context_oracle.choose_pair(family, q.pairs) for q in chosen]
      accuracy = score('accuracy', picks, chosen)
      assert (exact, accuracy) == in_context_oracle.measure(family, k)
      cells += [exact, accuracy]
    exact, accuracy = cells[::2], cells[1::2]
    line = ' | '.join(f'{x:.1f}' for x in (*exact, *accuracy))
    assert re.search(rf'\| `{family}` \|[^\n]*\| {re.escape(line)} \|', text)
