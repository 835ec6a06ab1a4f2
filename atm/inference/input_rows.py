"""Reads the rows of `atm infer` and `atm score`: files, or seqio tasks."""

from collections.abc import Sequence

from atm import messages, storage
from atm.data import task_registry, text_lines, text_reader


def read_inputs(
  path: str, required: Sequence[str] = ('input',), optional: Sequence[str] = ()
) -> tuple[list[dict], list[int]]:
  """Reads a row for each line of a text file, or for each object of JSON Lines.

  Args:
    path: see `text_reader`; `-` is standard input, a text a line.
    required: fields with a text; `text` may stand for `input`.
    optional: fields with a text, or without a value.

  Returns:
    (rows, their line numbers).

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line has no such row; names file and line.
  """
  if path not in text_lines.STDIN and not storage.exists(path):
    raise FileNotFoundError(f'INPUT = {path!r}: no such file')
  rows, lines = [], []
  if text_lines.detect_text_format(path)[0] == 'jsonl':
    numbered = text_reader.read_objects(path)
  else:
    numbered = ((i, {'input': x}) for i, x in text_reader.read_text_lines(path))
  for number, row in numbered:
    row.setdefault('input', row.get('text'))  # a usual name of prompts
    for name in required:
      if not isinstance(row.get(name), str):
        names = ' and '.join(f'`{x}`' for x in required)
        raise ValueError(
          f'{path}, line {number}: expected JSON with a string {names}; '
          f'got {messages.quote(row)}'
        )
    for name in optional:
      place = f'{path}, line {number}: {name}'
      messages.check_text(place, row.get(name), optional=True)
    rows.append(row)
    lines.append(number)
  return rows, lines


def find_free_names(
  rows: Sequence[dict], added: Sequence[str]
) -> dict[str, str]:
  """Maps fields of rows that are called as one of `added` to free names.

  `output` becomes `given_output`, in all rows alike.
  """
  used, names = {name for row in rows for name in row}, {}
  for name in added:
    if name in used:
      names[name] = f'given_{name}'
      while names[name] in used:
        names[name] = f'given_{names[name]}'
  return names


def rename_fields(rows: Sequence[dict], names: dict[str, str]) -> list[dict]:
  """Returns rows with some fields called otherwise, in their order."""
  return [{names.get(k, k): v for k, v in row.items()} for row in rows]


def read_task(name: str, split: str, lengths: dict | None) -> list[dict]:
  """Returns a seqio task's examples, trimmed to the lengths of both sides.

  Each has `input` and `target`, texts for the output, and `input_ids` and
  `target_ids`, what the model reads and is scored on.
  """
  import seqio  # its tasks from here on, see `task_registry`

  del seqio
  task = task_registry.find_task(name)
  rows = []
  with task_registry.shorten_tf_errors(name):
    dataset = task.get_dataset(
      lengths, split, shuffle=False, num_epochs=1, seed=0
    )
    for example in dataset.as_numpy_iterator():
      row = {}
      for side, field in (('inputs', 'input'), ('targets', 'target')):
        ids = [int(i) for i in example[side]]
        if (text := example.get(f'{side}_pretokenized')) is not None:
          text = text.decode('utf-8')
        else:
          text = task.output_features[side].vocabulary.decode(ids)
        row |= {field: text, f'{field}_ids': ids}
      rows.append(row)
  return rows
