import io
import json
import types

import pytest
import rich.console

from atm.pages import train_summary
from atm.train import metric_writer, trainer


@pytest.fixture
def run(tmp_path):
  rows = [{'step': 0}, {'step': 10}, {'step': 20}]
  for i, row in enumerate(rows):
    for name in ('denoise', 'clm', 'denoise/en', 'clm/en', 'clm/ta'):
      row[f'eval/loss/{name}'] = 7.0 - i
      if i == 0:
        row[f'eval/unigram/{name}'] = 5.5
    row['loss/denoise'] = row['loss/clm'] = 6.0 - i
  with open(tmp_path / metric_writer.METRICS_FILE, 'w') as f:
    f.writelines(json.dumps(row) + '\n' for row in rows)
  return trainer.TrainingResult(str(tmp_path), 20, rows, None, None)


def test_losses_set_the_last_beside_the_first_and_the_unigram(run):
  out = rich.console.Console(file=io.StringIO(), width=100)
  out.print(train_summary.loss_table(run.history))
  text = out.file.getvalue()
  assert 'step 0 -> 20' in ' '.join(text.split())
  assert text.count('7.00 -> 5.00 (5.50)') == 5


def test_the_verdict_says_so_either_way(run):
  assert train_summary.compare_with_unigram(run.history) == [
    'denoise: held-out loss 5.000 is below the 5.500 of a unigram model',
    'clm: held-out loss 5.000 is below the 5.500 of a unigram model',
  ]
  run.history[-1]['eval/loss/clm'] = 5.6
  assert 'NOT below' in train_summary.compare_with_unigram(run.history)[1]


def test_the_curve_is_a_picture(run):
  with open(train_summary.draw_loss_curves(run.model_dir), 'rb') as f:
    assert f.read(8) == b'\x89PNG\r\n\x1a\n'


def test_samples_stand_in_a_table_for_each_objective():
  """Markup of the terminal in a text stays text."""
  texts = {'language': 'en', 'input': '[bold]i', 'output': 'o', 'truth': 't'}
  samples = [{'objective': name, **texts} for name in ('denoise', 'pair')]
  tables = train_summary.sample_tables([*samples, samples[0]])
  assert [t.title.split(':')[0] for t in tables] == ['Denoising', 'Pairs']
  assert [t.row_count for t in tables] == [2, 1]
  out = rich.console.Console(file=io.StringIO(), width=100)
  out.print(tables[0])
  assert '[bold]i' in out.file.getvalue()
  assert 'vocabulary lacks' not in out.file.getvalue()
  (table,) = train_summary.sample_tables([samples[0] | {'output': 'a ⁇'}])
  assert 'characters that the vocabulary lacks' in table.caption


def test_samples_of_a_model_with_more_entries_than_its_vocabulary(
  words, monkeypatch
):
  """Fault seen: a trained run ended in an error over an id behind the last."""
  example = types.SimpleNamespace(language='en'), [5], [6]
  monkeypatch.setattr(train_summary, 'OBJECTIVE_NAMES', ('clm',))
  monkeypatch.setattr(
    train_summary, '_held_out_examples', lambda *of: [example]
  )
  model = types.SimpleNamespace(
    vocabulary=words, generate=lambda *_, max_tokens: [[7, words.size + 3]]
  )
  (sample,) = train_summary.generate_samples(None, model)
  assert sample['output'] == words.decode([7])
