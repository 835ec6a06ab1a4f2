"""Generated episodes: what follows from shots, and what no training shows."""

import itertools
import re

import numpy as np
import pytest

import atm_tasks
from atm.data import task_registry
from atm.inference import prompts
from atm_tasks import episodes
from atm_tasks.episodes import FAMILIES
from atm_tasks.evaluation import in_context_oracle, registry
from atm_tasks.pretraining import tasks

families = pytest.mark.parametrize('family', FAMILIES)


def draw(family: str, split: str, count: int = 200) -> list[episodes.Episode]:
  return [episodes.draw_episode(family, split, i) for i in range(count)]


@families
def test_an_episode_depends_on_its_number_alone(family):
  one, two = (episodes.draw_episode(family, 'test', 7) for _ in range(2))
  assert one == two and one != episodes.draw_episode(family, 'test', 8)
  # Caches and results of other machines are of these very texts.
  assert episodes.write_document(family, one) == {
    'recall': 'ra to; ku mo; ra to; ku mo; ku mo; ra to',
    'mapping': 'ra me = sa se; da ki = na re; ra ki = sa re; ro be = ba ke; '
    'da me = na se; ra ki = sa re; da ki = na re',
    'edits': 'bu ma mi = bu ma mi be; si do bu = si do bu be; '
    'bu to re = bu to re be; ke re bu = ke re bu be; ki bu ba = ki bu ba be',
  }[family]  # fmt: skip


@families
def test_no_entry_is_of_two_splits(family):
  """Keys with values, words with translations, sentences with edited ones."""
  train, test = draw(family, 'train', 2000), draw(family, 'test')
  entries = lambda drawn: {entry for e in drawn for entry in e.entries}
  assert not entries(train) & entries(test)
  assert not entries(train) & entries(draw(family, 'validation'))
  lines = lambda drawn: {(e.query, e.answer) for e in drawn}
  assert not lines(train) & lines(test)
  # Which an evaluation does not owe to its words: training has all of them.
  words = lambda drawn: {w for e in drawn for w in e.query.split()}
  assert words(test) <= words(train)


@families
def test_the_splits_are_different_episodes(family):
  sets = [
    {(e.shots, e.query) for e in draw(family, split)}
    for split in episodes.EPISODES
  ]
  assert not any(a & b for a, b in itertools.combinations(sets, 2))


@families
@pytest.mark.parametrize('k', [1, 2, 3, 4])
def test_more_shots_have_the_fewer(family, k):
  for episode in draw(family, 'test', 50):
    shots = episode.choose_shots(k)
    assert len({*shots}) == len(shots) == k
    assert {*shots} == {*episode.shots[:k]}
    assert all(query != episode.query for query, _ in shots) or (
      family == 'recall'
    )
  firsts = [e.choose_shots(k).index(e.shots[0]) for e in draw(family, 'test')]
  assert {*firsts} == {*range(k)}  # no place tells the telling one


@families
def test_documents_to_train_on_are_prompts_with_answers(family):
  counts = set()
  for episode in draw(family, 'train', 50):
    text = episodes.write_document(family, episode)
    template = episodes.choose_template(family)
    between = f' {template.cue} ' if template.cue else ' '
    fields = [
      dict(zip(('query', 'answer'), line.split(between)))
      for line in text.split(template.between)
    ]
    # Each pair of `recall` is there three times.
    asked_count = 2 * len(fields) // 3 if family == 'recall' else 3
    shots, asked = fields[:-asked_count], fields[-asked_count:]
    counts.add(len(shots))
    prompt = prompts.build_prompt(template, asked[0], shots)
    assert text.startswith(f'{prompt} {asked[0]["answer"]}')
    if family == 'mapping' and len(shots) == 1:
      continue  # a shot of two words tells half of an answer
    for query in asked:
      prompt = prompts.build_prompt(template, query, shots)
      assert in_context_oracle.solve(family, prompt) == query['answer']
  assert counts == {1, 2, 3, 4}


@families
def test_a_document_asks_different_queries(family):
  """Fault seen: one three times, whose answer was there to be repeated."""
  for episode in draw(family, 'train', 500):
    asked = [(episode.query, episode.answer), *episode.further]
    assert len({*asked}) == len(asked)
    if family == 'edits':
      assert not {*asked} & {*episode.shots}


@families
@pytest.mark.parametrize('shots', range(1, episodes.MOST_SHOTS + 1))
def test_inputs_to_train_on_are_as_long_as_prompts(family, shots):
  """Fault seen: of `mapping` with 4 shots none was, and answers were chance."""
  count = lambda text: len(re.findall(r'\w+|[=;]', text))
  (task,) = registry.suite([f'in_context_{family}'], shots=shots)
  longest = max(count(q.prompt) for q in task.make_questions(None))
  texts = [episodes.write_document(family, e) for e in draw(family, 'train')]
  inputs = [int(atm_tasks.Mixing().clm_high * count(text)) for text in texts]
  assert np.mean(np.array(inputs) >= longest) > 0.1


@families
def test_no_guess_without_shots_is_better_than_chance(family):
  """Each of the four answers is right as often as the others."""
  drawn = draw(family, 'train', 4000)
  chosen = [episode.choices() for episode in drawn]
  assert all(len({*answers}) == 4 for answers, _ in chosen)
  guesses = {
    'first': [0] * len(chosen),
    'shortest': [min(range(4), key=lambda i: len(c[i])) for c, _ in chosen],
    'longest': [max(range(4), key=lambda i: len(c[i])) for c, _ in chosen],
    'alphabet': [c.index(min(c)) for c, _ in chosen],
    'most like the query': [
      max(range(4), key=lambda i: len({*c[i].split()} & {*e.query.split()}))
      for (c, _), e in zip(chosen, drawn)
    ],
  }  # fmt: skip
  for name, guess in guesses.items():
    right = np.mean([g == label for g, (_, label) in zip(guess, chosen)])
    assert abs(right - 0.25) < 0.03, name


# --- As tasks to train on


def test_mixtures_have_a_share_of_episodes(tmp_path, words):
  (tmp_path / 'en.txt').write_text('One text.\nAnother text.\n')
  mixing = atm_tasks.Mixing(in_context=0.3, language_power=0.0)
  try:
    atm_tasks.configure(text_dir=str(tmp_path), mixing=mixing)
    mixture = task_registry.find_task('text')
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    own = {k: v for k, v in rates.items() if k.startswith('in_context')}
    assert sum(rates.values()) == pytest.approx(1)
    assert sum(own.values()) == pytest.approx(0.3)
    assert rates['in_context_recall_clm'] == pytest.approx(0.3 * 0.2 / 3)
    assert rates['text_en_clm'] == pytest.approx(0.7 * 0.2)
  finally:
    atm_tasks.configure()
  assert {
    task.name for task in task_registry.find_task('in_context').tasks
  } == {
    f'in_context_{family}_{objective}'
    for family in FAMILIES
    for objective in ('denoise', 'clm')
  }


@families
def test_units_hold_each_episode_once(family, monkeypatch):
  monkeypatch.setattr(tasks.EpisodeSource, 'UNIT', 60)
  source = tasks.EpisodeSource(family)
  units = range(len(source.list_shards('validation')))
  assert len(units) == 4
  texts = [text for unit in units for text in source.texts('validation', unit)]
  assert texts == [
    episodes.write_document(family, e) for e in draw(family, 'validation')
  ]
