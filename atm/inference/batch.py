"""Prompting and scoring whole files: `atm infer` and `atm score`.

What is done is written at once to a file beside the output, so a run that was
killed goes on where it was; the output itself is written whole, in the order of
the input, at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence

import numpy as np

from atm import messages
from atm.data import registry
from atm.inference import api, sampling
from atm.parallel import distributed, mesh
from atm.parallel.sharding import Rules


def read_inputs(path: str, fields: Sequence[str] = ('input',)) -> list[dict]:
  """The lines of a text file, or the objects of JSONL.

  Args:
    path: a text file, an `input` a line; or .jsonl, whose objects have a
      string for each of `fields`; `text` may stand for `input`.
    fields: what each row must have.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line is not UTF-8 or not such an object; names the line.
  """
  if not os.path.exists(path):
    raise FileNotFoundError(f'INPUT = {path!r}: no such file')
  rows = []
  with open(path, 'rb') as f:
    for number, raw in enumerate(f, 1):
      try:
        line = raw.decode('utf-8').rstrip('\r\n')
        if not path.endswith('.jsonl'):
          rows.append({'input': line})
        elif line.strip():
          row = json.loads(line)
          row.setdefault('input', row.get('text'))
          rows.append(row)
        if rows and not all(isinstance(rows[-1].get(x), str) for x in fields):
          raise TypeError
      except (ValueError, AttributeError, TypeError) as e:
        kind = ''
        if path.endswith('.jsonl') or len(fields) > 1:
          kind = ' JSON with a string ' + ' and '.join(f'`{x}`' for x in fields)
        raise ValueError(
          f'{path}, line {number}: expected UTF-8{kind}; got {raw[:60]!r}'
        ) from e
  return rows


def read_task(name: str, split: str, lengths: dict) -> list[dict]:
  """The examples of a seqio task: their ids, and texts where it kept them.

  Args:
    name: of a registered task.
    split: of its data.
    lengths: of `inputs` and `targets`; longer ones are trimmed.

  Returns:
    Dicts of `input` and `target`, texts for the output, and `input_ids` and
    `target_ids`, what the model reads and is scored on.

  Raises:
    ValueError: there is no such task.
  """
  task = registry.find(name)
  rows = []
  with registry.plain_errors(name):
    dataset = task.get_dataset(
      lengths, split, shuffle=False, num_epochs=1, seed=0
    )
    features = task.output_features
    for example in dataset.as_numpy_iterator():
      row = {}
      for side, field in (('inputs', 'input'), ('targets', 'target')):
        ids = [int(i) for i in example[side]]
        text = example.get(f'{side}_pretokenized')
        text = (
          features[side].vocabulary.decode(ids)
          if text is None
          else text.decode('utf-8')
        )
        row |= {field: text, f'{field}_ids': ids}
      rows.append(row)
  return rows


def mark(settings: dict) -> str:
  """Tells settings apart: a hash."""
  text = json.dumps(settings, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()


class Progress:
  """Results by row number, kept in a file from the moment they are there.

  Attributes:
    done: row number -> the fields that were added to it.
  """

  def __init__(self, output: str, settings: dict, count: int):
    """Reads what an earlier run of the same settings left.

    Args:
      output: the file that there will be; `output`.part is written until then.
      settings: all that the results depend on.
      count: rows in all.

    Raises:
      ValueError: what is there was made with other settings.
    """
    self.output, self.part = output, output + '.part'
    self.done: dict[int, dict] = {}
    self.mark = {'settings': mark(settings)}
    lines = []
    if os.path.exists(self.part):
      with open(self.part, 'rb') as f:
        lines = f.read().split(b'\n')[:-1]  # the last one may be torn
    if lines and json.loads(lines[0]) != self.mark:
      raise ValueError(
        f'{self.part} is of a run with other settings or inputs: delete it, or '
        'give another OUTPUT'
      )
    for line in lines[1:]:
      row = json.loads(line)
      self.done[row.pop('row')] = row
    self.left = [i for i in range(count) if i not in self.done]
    distributed.wait_for_all()  # all have read it before one writes
    if distributed.is_first():
      with open(self.part, 'wb') as f:
        f.writelines(line + b'\n' for line in lines or [self._line(self.mark)])

  @staticmethod
  def _line(row: dict) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode('utf-8')

  def add(self, results: dict[int, dict]) -> None:
    """Keeps the results of some rows."""
    self.done |= results
    if distributed.is_first():
      with open(self.part, 'ab') as f:
        for number, row in results.items():
          f.write(self._line({'row': number, **row}) + b'\n')
        f.flush()
        os.fsync(f.fileno())

  def finish(self, rows: Sequence[dict]) -> None:
    """Writes all rows with their results, in order, and removes the part."""
    if not distributed.is_first():
      return
    with open(self.output + '.tmp', 'wb') as f:
      for number, row in enumerate(rows):
        kept = {k: v for k, v in row.items() if not k.endswith('_ids')}
        f.write(self._line({**kept, **self.done[number]}) + b'\n')
    os.replace(self.output + '.tmp', self.output)
    os.remove(self.part)


def work(rows, lengths, progress: Progress, chunk: int, compute, say) -> None:
  """Does what is left, rows of a like length together; writes the output.

  Args:
    rows: dicts, which the output holds with their results.
    lengths: of their inputs, in any unit.
    progress: what is done.
    chunk: rows at a time.
    compute: row numbers -> (results by number, tokens).
    say: prints a line.
  """
  order = sorted(progress.left, key=lambda i: lengths[i])
  if len(order) < len(rows):
    say(f'{len(rows) - len(order):,} of {len(rows):,} were done before')
  start, tokens = time.perf_counter(), 0
  for at in range(0, len(order), chunk):
    results, count = compute(order[at : at + chunk])
    progress.add(results)
    tokens += count
    done = min(at + chunk, len(order))
    seconds = time.perf_counter() - start
    left = seconds / done * (len(order) - done)
    say(
      f'{done:,}/{len(order):,}  {tokens / seconds:,.0f} tokens/s  '
      f'{messages.clock_text(left)} left'
    )
  progress.finish(rows)


def _one_of(input, task) -> str:
  """What the output is named after."""
  if (input is None) == (task is None):
    raise ValueError('expected one of INPUT, a file, and TASK, a seqio task')
  if input is not None and not os.path.exists(input):  # before a model is read
    raise FileNotFoundError(f'INPUT = {input!r}: no such file')
  return os.path.splitext(input)[0] if task is None else task


def _read(input, task, split, lengths, configure_tasks, model, fields):
  """The rows of a file or of a seqio task."""
  if task is None:
    return read_inputs(input, fields)
  configure_tasks(vocabulary=model.vocabulary.path)
  return read_task(task, split, lengths)


def infer_file(
  model_dir: str,
  input: str | None = None,
  output: str | None = None,
  task: str | None = None,
  split: str = 'validation',
  lengths: dict | None = None,
  configure_tasks: Callable = lambda **named: None,
  mode: str = 'clm',
  config: sampling.Config = sampling.Config(),
  stop: Sequence[str] = (),
  banned: Sequence[str] = (),
  batch_size: int = 32,
  at_step: int | None = None,
  weights: str | None = None,
  make_mesh: Callable = mesh.mesh,
  rules: Rules = Rules(),
  say: Callable[[str], None] = print,
) -> str:
  """A file of prompts in, JSONL out: each row with its `output` added.

  With config.results above 1 `output` is a list, the best first. A row's
  `prefix`, where it has one, begins its output.

  Args:
    model_dir: the trained model's, or a Hugging Face folder.
    input: a text file, a prompt a line, or .jsonl with an `input` a line;
      other fields are kept.
    output: default: the input's name with `.out.jsonl`.
    task, split, lengths: a seqio task instead of a file, see `read_task`.
    configure_tasks: called with vocabulary=FILE before the task is looked up.
    mode, stop, banned, batch_size: see `api.Model.complete`.
    config: how tokens are chosen.
    at_step: which checkpoint; None takes the newest.
    weights: 'bfloat16' halves the parameters' memory; None: as they are.
    make_mesh: called without arguments.
    rules: logical to mesh axes.
    say: prints a line.

  Returns:
    The path written.

  Raises:
    FileNotFoundError: there is no input or no model.
    ValueError: a row is not as expected, or has no room in the model.
  """
  source = _one_of(input, task)
  model = api.load(model_dir, at_step, make_mesh(), rules, weights=weights)
  rows = _read(input, task, split, lengths, configure_tasks, model, ('input',))
  settings = dict(
    rows=rows, model=os.path.abspath(model_dir), step=model.step, mode=mode,
    config=config, stop=stop, banned=banned, weights=weights,
  )  # fmt: skip
  inputs = model.ids([x.get('input_ids') or x['input'] for x in rows], mode)
  progress = Progress(output or f'{source}.out.jsonl', settings, len(rows))
  say = say if distributed.is_first() else lambda text: None
  say(f'step {model.step:,} of {model_dir}: {len(rows):,} inputs, mode {mode}')

  def compute(numbers):
    some = [rows[i] for i in numbers]
    made = model.complete(
      [inputs[i] for i in numbers],
      mode,
      config,
      [row.get('prefix', '') for row in some],
      stop,
      banned,
      batch_size,
      numbers,
    )
    texts = [[x.text for x in of_row] for of_row in made]
    results = {
      i: {'output': text if config.results > 1 else text[0]}
      for i, text in zip(numbers, texts)
    }
    return results, sum(len(x.ids) for of_row in made for x in of_row)

  work(rows, list(map(len, inputs)), progress, batch_size, compute, say)
  say(f'wrote {progress.output}')
  return progress.output


def score_file(
  model_dir: str,
  input: str | None = None,
  output: str | None = None,
  task: str | None = None,
  split: str = 'validation',
  lengths: dict | None = None,
  configure_tasks: Callable = lambda **named: None,
  mode: str = 'clm',
  batch_size: int = 32,
  at_step: int | None = None,
  weights: str | None = None,
  make_mesh: Callable = mesh.mesh,
  rules: Rules = Rules(),
  say: Callable[[str], None] = print,
) -> str:
  """Log-probabilities of given targets: JSONL in, JSONL out.

  Each row gets `log_probability`, in nats, the sum over the target's tokens,
  its end included, and `tokens`, how many these are.

  Args:
    input: .jsonl with an `input` and a `target` a line.
    output: default: the input's name with `.scores.jsonl`.
    model_dir, task, split, lengths, configure_tasks, mode, batch_size, at_step,
      weights, make_mesh, rules, say: see `infer_file`.

  Returns, raises: see `infer_file`.
  """
  source = _one_of(input, task)
  model = api.load(model_dir, at_step, make_mesh(), rules, weights=weights)
  rows = _read(
    input, task, split, lengths, configure_tasks, model, ('input', 'target')
  )
  settings = dict(
    rows=rows, model=os.path.abspath(model_dir), step=model.step, mode=mode,
    weights=weights,
  )  # fmt: skip
  inputs = model.ids([x.get('input_ids') or x['input'] for x in rows], mode)
  targets = model.ids([x.get('target_ids') or x['target'] for x in rows], None)
  progress = Progress(output or f'{source}.scores.jsonl', settings, len(rows))
  say = say if distributed.is_first() else lambda text: None
  say(f'step {model.step:,} of {model_dir}: {len(rows):,} targets, mode {mode}')

  def compute(numbers):
    total, counts = model.score(
      [inputs[i] for i in numbers],
      [targets[i] for i in numbers],
      mode,
      batch_size,
    )
    results = {
      i: {'log_probability': float(x), 'tokens': int(n)}
      for i, x, n in zip(numbers, total, counts)
    }
    return results, int(np.sum(counts))

  work(rows, list(map(len, inputs)), progress, batch_size, compute, say)
  say(f'wrote {progress.output}')
  return progress.output
