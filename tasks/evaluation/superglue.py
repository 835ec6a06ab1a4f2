"""Readers of SuperGLUE's JSONL files (version 2), see also `readers`."""

from collections.abc import Iterator, Sequence

from atm_tasks.evaluation.readers import (
  RawExample,
  look_up,
  read_json_lines,
  require_fields,
)

# Labels of CB and XNLI, and of RTE, in the order of their choices in prompts,
# which are True, False and Neither.
NLI_LABELS = ('entailment', 'contradiction', 'neutral')
RTE_LABELS = ('entailment', 'not_entailment')


def _read_rows(
  paths: Sequence[str], **fields
) -> Iterator[tuple[int, RawExample]]:
  """Yields (line number, row with an `id`) of a file with `idx` and fields."""
  for number, row in read_json_lines(paths[0], {**fields, 'idx': int}):
    yield number, {**row, 'id': str(row['idx'])}


def read_fields(paths: Sequence[str], **fields) -> Iterator[RawExample]:
  """Reads rows as they are; BoolQ and WiC."""
  for _, row in _read_rows(paths, **fields):
    yield row


def read_entailment(paths: Sequence[str], labels: Sequence[str]):
  """Reads CB and RTE: premise, hypothesis, and one of `labels`."""
  for number, row in _read_rows(paths, premise=str, hypothesis=str, label=str):
    look_up(row['label'], dict.fromkeys(labels), paths[0], number, 'a label')
    yield row


def read_multirc(paths: Sequence[str]) -> Iterator[RawExample]:
  """Reads an example for each candidate; `group` is that of its question."""
  path = paths[0]
  for number, row in _read_rows(paths, passage=dict):
    passage = row['passage']
    require_fields(passage, {'text': str, 'questions': list}, path, number)
    for question in passage['questions']:
      fields = {'question': str, 'idx': int, 'answers': list}
      require_fields(question, fields, path, number)
      group = f'{row["idx"]}/{question["idx"]}'
      for answer in question['answers']:
        fields = {'text': str, 'idx': int, 'label': (int, bool)}
        require_fields(answer, fields, path, number)
        yield {
          'id': f'{group}/{answer["idx"]}',
          'group': group,
          'passage': passage['text'],
          'question': question['question'],
          'candidate': answer['text'],
          'label': bool(answer['label']),
        }


def read_record(paths: Sequence[str]) -> Iterator[RawExample]:
  """Reads an example for each query; entities are text[start:end + 1]."""
  path = paths[0]
  for number, row in _read_rows(paths, passage=dict, qas=list):
    passage = row['passage']
    require_fields(passage, {'text': str, 'entities': list}, path, number)
    entities = []
    for entity in passage['entities']:
      require_fields(entity, {'start': int, 'end': int}, path, number)
      entities.append(passage['text'][entity['start'] : entity['end'] + 1])
    for qa in row['qas']:
      require_fields(
        qa, {'query': str, 'idx': int, 'answers': list}, path, number
      )
      for answer in qa['answers']:
        require_fields(answer, {'text': str}, path, number)
      yield {
        'id': f'{row["idx"]}/{qa["idx"]}',
        'passage': passage['text'],
        'query': qa['query'],
        'entities': [*dict.fromkeys(entities)],
        'answers': [*dict.fromkeys(answer['text'] for answer in qa['answers'])],
      }


def read_wsc(paths: Sequence[str]) -> Iterator[RawExample]:
  """Reads WSC: spans as `target` names them; an index counts words."""
  for number, row in _read_rows(paths, text=str, target=dict, label=bool):
    fields = {'span1_text': str, 'span2_text': str, 'span2_index': int}
    require_fields(row['target'], fields, paths[0], number)
    yield {**row, **row['target']}
