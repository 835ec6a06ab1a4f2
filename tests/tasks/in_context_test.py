"""Tasks of generated episodes: each question has its own shots."""

import re

import pytest

from atm_tasks import episodes
from atm_tasks.evaluation import in_context_oracle, registry


def ask(name: str, **options):
  (task,) = registry.suite(name, **options)
  return task, task.make_questions(None)


@pytest.mark.parametrize('family', episodes.FAMILIES)
def test_a_question_has_its_own_shots(family):
  task, questions = ask(f'in_context_{family}', shots=2)
  assert task.shots == 2 and task.stop == (';',)
  assert len(questions) == episodes.EPISODES['test']
  for number, question in enumerate(questions[:20]):
    shots, query = in_context_oracle.read_prompt(family, question.prompt)
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
  for k in (5, 100):
    with pytest.raises(ValueError) as e:
      ask('in_context_recall', shots=k)
    assert str(e.value) == (
      f'SHOTS of in_context_recall = {k}: expected a whole number from 0 to 4. '
      'Did you mean 4?'
    )
  _, questions = ask('in_context_recall', shots=0)
  assert re.fullmatch(r'\w+', questions[0].prompt)
