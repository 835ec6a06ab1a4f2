"""Evaluation tasks by name, and their data: found, missing and broken."""

import ast
import glob
import os
import re

import pytest

from atm.data import languages
from atm.data.text_lines import BadRecord
from atm.evals.task import MissingData
from atm_tasks.evaluation import datasets, registry
from atm_tasks.pretraining import tasks
from atm_tasks.pretraining.pair_text import PairReader

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATA = os.path.join(HERE, 'testdata', 'evaluation')
ROOT = os.path.dirname(HERE)
METRICS = (
  'accuracy cb_f1 multirc_f1a multirc_em record_f1 record_em squad_f1 squad_em '
  'squad_has_answer_f1 squad_no_answer_f1 rouge1 rouge2 rougeL spbleu chrf '
  'bleu exact_match label_accuracy macro_f1 balanced_accuracy'
).split()


def ask(name: str, data_dir=DATA, **options):
  (task,) = registry.suite(name, str(data_dir), **options)
  return task.make_questions(None)


# --- Names


def test_globs_choose_each_task_once():
  names = registry.match_names(['xnli_d*', 'xnli_*', 'squadv2'])
  assert names == [
    'xnli_de', 'xnli_ar', 'xnli_en', 'xnli_es', 'xnli_fr', 'xnli_hi', 'squadv2',
  ]  # fmt: skip
  assert len(registry.match_names('flores101_*')) == 132
  assert len(registry.match_names('flores101_en_*')) == 11
  assert [task.name for task in registry.suite(['squadv2'])] == ['squadv2']


@pytest.mark.parametrize('options, message', [
  (dict(names='xnli_dee'), r"TASKS = 'xnli_dee'. Did you mean 'xnli_de'\?"),
  (dict(names='superglu_*'), "TASKS = 'superglu_*'."),
  (dict(names='squadv2', split='test'), "SPLIT of squadv2 = 'test'"),
  (dict(names='squadv2', mode='cml'), "MODE = 'cml'. Did you mean 'clm'?"),
  (dict(names='squadv2', normalize='means'), "Did you mean 'mean'?"),
  (dict(names='squadv2', shots=-1), 'SHOTS = -1'),
])  # fmt: skip
def test_a_mistake_says_the_nearest(options, message):
  with pytest.raises(ValueError) as e:
    registry.suite(**options)
  assert re.search(message, str(e.value)) or message in str(e.value)


def test_tasks_are_whole():
  for task in registry.suite('*', DATA):
    assert set(task.metrics) <= set(METRICS) and task.metrics
    assert task.language in languages.LANGUAGES
    assert task.source_language in (*languages.LANGUAGES, None)
    assert (task.answer is None) == (task.max_tokens == 64 and not task.stop)
    entry = registry.REGISTRY[task.name]
    data = datasets.DATASETS[entry.data]
    assert entry.split in data.splits
    if entry.shots or not entry.data.startswith('udhr'):
      assert entry.shots_from in data.splits


def test_chance_is_one_of_the_choices():
  for task in registry.suite('*', DATA):
    if task.chance is not None:
      try:
        questions = task.make_questions(None)
      except MissingData:
        continue
      assert {len(q.pairs) for q in questions} == {round(100 / task.chance)}


def test_ids_are_unique():
  for task in registry.suite('*', DATA):
    try:
      questions = task.make_questions(None)
    except MissingData:
      continue
    assert questions
    assert len({q.id for q in questions}) == len(questions), task.name


# --- Suites


def parsed(text: str) -> dict:
  """A gin file of nothing but macros is Python."""
  return {
    node.targets[0].id: ast.literal_eval(node.value)
    for node in ast.parse(text).body
  }


SUITES = sorted(glob.glob(f'{ROOT}/gin/suites/*.gin'))


@pytest.mark.parametrize('path', SUITES, ids=os.path.basename)
def test_suites_name_tasks_and_how_to_run_them(path):
  with open(path) as f:
    text = f.read()
  name = os.path.basename(path)
  bound = parsed(text)
  assert list(bound) == ['SUITE', 'TASKS']
  assert bound['SUITE'] == name.removesuffix('.gin')
  assert text.startswith('# ') and f'--gin_file=suites/{name}' in text
  assert registry.match_names(bound['TASKS'])


def test_the_papers_suite_has_every_other():
  chosen = {}
  for path in SUITES:
    with open(path) as f:
      bound = parsed(f.read())
    chosen[bound['SUITE']] = set(registry.match_names(bound['TASKS']))
  paper, shipped = chosen.pop('paper'), chosen.pop('shipped')
  shipped |= chosen.pop('in_context')
  assert paper == set().union(*chosen.values())
  tuned_for = {'udhr_language', 'pairs', 'choices'}
  assert paper | shipped | tuned_for == set(registry.REGISTRY)
  assert not paper & shipped


def test_docs_list_every_set():
  with open(f'{ROOT}/docs/evaluation_data.md') as f:
    text = f.read()
  for data in datasets.DATASETS.values():
    if data.url != 'atm':
      assert f'| `{data.folder}` |' in text
      for url in re.findall(r'https?://\S+', data.url):
        assert url.rstrip(')') in text, url
  for name, entry in registry.REGISTRY.items():
    known = {f'{entry.data}_LANG', f'{entry.data}_SRC_TGT', name}
    assert any(f'`{one}`' in text for one in known), name


# --- Pairs, as a model is fine-tuned on them


def test_choices_are_scored_as_a_model_is_tuned_to_write_them(tmp_path):
  """The same lines are pairs to train on."""
  (tmp_path / 'choices').mkdir()
  file = tmp_path / 'choices' / 'validation.jsonl'
  line = '{"input": "Wake me", "choices": ["music", "alarm"], "answer": %s}\n'
  file.write_text(line % '"alarm"' + line % 0)
  one, two = ask('choices', tmp_path)
  pairs = (('Wake me', 'music'), ('Wake me', 'alarm'))
  assert one.pairs == two.pairs == pairs
  assert one.truth == {'candidates': ['music', 'alarm'], 'answers': ['alarm']}
  assert two.truth['answers'] == ['music']
  (task,) = registry.suite('choices', str(tmp_path))
  assert task.ends and task.normalize == 'sum'
  assert registry.suite('choices', normalize='mean')[0].normalize == 'mean'
  read = PairReader().read
  assert read(line % 1) == ('Wake me', 'alarm', None)
  for answer in ('2', '"alarms"', 'null', 'true'):
    with pytest.raises(BadRecord, match='one of `choices` in `answer`'):
      read(line % answer)
  file.write_text('{"input": "a", "choices": ["b", "b"], "answer": 0}\n')
  with pytest.raises(ValueError, match='line 1: expected two different texts'):
    ask('choices', tmp_path)
  (tmp_path / 'choices' / 'train.jsonl').write_text(line % 0)
  file.write_text(line % 0)
  with pytest.raises(ValueError, match='SHOTS: inputs are asked as they are'):
    ask('choices', tmp_path, shots=1)


def test_pairs_are_asked_as_they_are(tmp_path):
  (tmp_path / 'pairs').mkdir()
  (tmp_path / 'pairs' / 'validation.jsonl').write_text(
    '{"input": "2 + 2 =", "target": "4"}\n\n{"input": "", "target": ""}\n'
  )
  one, two = ask('pairs', tmp_path)
  assert (one.prompt, one.truth, one.id) == ('2 + 2 =', '4', '1')
  assert (two.prompt, two.truth, two.id) == ('', '', '3')
  (task,) = registry.suite('pairs', str(tmp_path), mode='denoise')
  assert task.stop == () and task.truncate == 'end'
  assert task.answer(' 4 ', one) == '4'
  (tmp_path / 'pairs' / 'train.jsonl').write_text('{"input": "a"}\n')
  with pytest.raises(ValueError, match="line 1: expected a field 'target'"):
    ask('pairs', tmp_path, split='train')
  rows = (tmp_path / 'pairs' / 'validation.jsonl').read_text()
  (tmp_path / 'pairs' / 'train.jsonl').write_text(rows)
  with pytest.raises(ValueError, match='SHOTS: pairs are asked as they are'):
    ask('pairs', tmp_path, shots=1, split='validation')


def test_languages_are_asked_of_held_out_sentences():
  questions = ask('udhr_language', 'nowhere')
  assert len(questions) == 85
  assert {q.truth for q in questions} == set(languages.LANGUAGES.values())
  text = 'Everyone has the right to life, liberty and the security of person.'
  assert text in {q.prompt for q in questions}


# --- The shipped Declaration


def held_out(language: str) -> list[str]:
  return list(tasks.DeclarationSource(language).texts('validation', 0))


def test_translations_of_held_out_articles():
  for source, target in (('en', 'te'), ('ja', 'ar')):
    questions = ask(f'udhr_translate_{source}_{target}', 'nowhere')
    sentences = [q.shown['sentence'] for q in questions]
    assert [*map(one_line, sentences)] == held_out(source)
    assert [one_line(q.truth) for q in questions] == held_out(target)
    trained = set(tasks.DeclarationSource(source).texts('train', 0))
    shot = questions[0].prompt.split('; Translation in')[0]
    assert shot.removeprefix('Sentence: ') in trained


def one_line(text: str) -> str:
  return ' '.join(text.split())


@pytest.mark.parametrize('language', languages.LANGUAGES)
def test_one_of_four_ends_is_the_paragraphs(language):
  questions = ask(f'udhr_next_{language}', 'nowhere')
  paragraphs = held_out(language)
  assert len(questions) == len(paragraphs) == 7
  for question, paragraph in zip(questions, paragraphs, strict=True):
    ends = [end for _, end in question.pairs]
    assert len(set(ends)) == 4
    whole = [
      any(begun + space + end in paragraph for space in ('', ' '))
      for begun, end in question.pairs
    ]
    assert [i for i, right in enumerate(whole) if right] == [question.truth]
    others = [text for text in paragraphs if text != paragraph]
    for i, end in enumerate(ends):
      assert i == question.truth or any(end in t for t in others)
  assert sorted(q.truth for q in questions) == [0, 0, 1, 1, 2, 2, 3]
