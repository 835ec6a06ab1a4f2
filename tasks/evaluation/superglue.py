"""Readers of SuperGLUE's JSONL files (version 2), as `readers` has others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from atm_tasks.evaluation.readers import Example, json_lines, need, one_of


def _rows(paths: Sequence[str], **fields) -> Iterator[tuple[int, Example]]:
  """(number, row with its `id`) of a file that has `idx` and these fields."""
  for number, row in json_lines(paths[0], {**fields, 'idx': int}):
    yield number, {**row, 'id': str(row['idx'])}


def boolq(paths: Sequence[str]) -> Iterator[Example]:
  for _, row in _rows(paths, passage=str, question=str, label=bool):
    yield row


def entailment(paths: Sequence[str], labels: Sequence[str]):
  """CB and RTE: premise, hypothesis, and one of `labels`."""
  for number, row in _rows(paths, premise=str, hypothesis=str, label=str):
    one_of(row['label'], dict.fromkeys(labels), paths[0], number, 'a label')
    yield row


def multirc(paths: Sequence[str]) -> Iterator[Example]:
  """An example for each candidate answer; `group` is that of its question."""
  path = paths[0]
  for number, row in _rows(paths, passage=dict):
    passage = row['passage']
    need(passage, {'text': str, 'questions': list}, path, number)
    for question in passage['questions']:
      fields = {'question': str, 'idx': int, 'answers': list}
      need(question, fields, path, number)
      group = f'{row["idx"]}/{question["idx"]}'
      for answer in question['answers']:
        fields = {'text': str, 'idx': int, 'label': (int, bool)}
        need(answer, fields, path, number)
        yield {
          'id': f'{group}/{answer["idx"]}',
          'group': group,
          'passage': passage['text'],
          'question': question['question'],
          'candidate': answer['text'],
          'label': bool(answer['label']),
        }


def record(paths: Sequence[str]) -> Iterator[Example]:
  """An example for each query; entities are text[start:end + 1], once each."""
  path = paths[0]
  for number, row in _rows(paths, passage=dict, qas=list):
    passage = row['passage']
    need(passage, {'text': str, 'entities': list}, path, number)
    entities = []
    for entity in passage['entities']:
      need(entity, {'start': int, 'end': int}, path, number)
      entities.append(passage['text'][entity['start'] : entity['end'] + 1])
    for qa in row['qas']:
      need(qa, {'query': str, 'idx': int, 'answers': list}, path, number)
      yield {
        'id': f'{row["idx"]}/{qa["idx"]}',
        'passage': passage['text'],
        'query': qa['query'],
        'entities': [*dict.fromkeys(entities)],
        'answers': [*dict.fromkeys(answer['text'] for answer in qa['answers'])],
      }


def wic(paths: Sequence[str]) -> Iterator[Example]:
  fields = dict.fromkeys(('word', 'sentence1', 'sentence2'), str)
  for _, row in _rows(paths, **fields, label=bool):
    yield row


def wsc(paths: Sequence[str]) -> Iterator[Example]:
  """Spans as `target` names them; an index counts words."""
  for number, row in _rows(paths, text=str, target=dict, label=bool):
    fields = {'span1_text': str, 'span2_text': str, 'span2_index': int}
    need(row['target'], fields, paths[0], number)
    yield {**row, **row['target']}
