"""Readers of SuperGLUE's files."""

import os

import pytest

from atm_tasks.evaluation import registry, superglue

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATA = os.path.join(HERE, 'testdata', 'evaluation')


def ask(name: str, data_dir=DATA, **options):
  (task,) = registry.suite(name, str(data_dir), **options)
  return task.make_questions(None)


def test_entities_end_where_the_file_says():
  (question,) = ask('superglue_record')
  assert question.truth == {
    'candidates': ['Hillham', 'Ada Finch', 'Bo Lind'], 'answers': ['Bo Lind'],
  }  # fmt: skip


def test_groups_of_multirc():
  questions = ask('superglue_multirc')
  assert [q.group for q in questions] == ['0/0', '0/0', '0/1']
  assert [q.truth for q in questions] == [0, 1, 0]  # 0: true
  assert [[d for _, d in q.pairs] for q in questions] == [['yes', 'no']] * 3


def test_rows_need_their_fields(tmp_path):
  """Faults seen: a label of another task; 1 for true; a row without idx."""
  path = tmp_path / 'val.jsonl'
  fields = {'passage': str, 'label': bool}
  path.write_text('{"passage": "a", "label": true, "idx": 7}\n')
  (row,) = superglue.read_fields([str(path)], **fields)
  assert row == {'passage': 'a', 'label': True, 'idx': 7, 'id': '7'}
  for line, message in (
    ('{"passage": "a", "label": 1, "idx": 7}', "a field 'label', bool"),
    ('{"passage": "a", "label": true}', "a field 'idx', int"),
  ):
    path.write_text(line)
    with pytest.raises(ValueError, match=f'line 1: expected {message}'):
      list(superglue.read_fields([str(path)], **fields))
  path.write_text(
    '{"premise": "a", "hypothesis": "b", "label": "neutral", "idx": 0}'
  )
  labels = superglue.RTE_LABELS
  with pytest.raises(ValueError, match="one of 'entailment', 'not_entail"):
    list(superglue.read_entailment([str(path)], labels))
