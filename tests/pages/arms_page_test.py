"""The page of training runs in arms, and its figures as PNG."""

import importlib.util
import os
import pathlib

import pytest

from atm.pages import arm_records, arms_page, compare_page, render
from atm.pages.arm_charts import group_arms

import arm_runs
from synthetic import EVIL, Page


@pytest.fixture
def file(tmp_path):
  """A file of two arms."""
  path = str(tmp_path / 'arms.jsonl')
  arm_records.write_arm_file(path, arm_runs.make_arms())
  return path


def test_the_file_draws_the_page(file, capsys):
  """Twice the same bytes."""
  path = compare_page.compare_evaluations(file)
  assert path == file.replace('.jsonl', '.html')
  with open(path, encoding='utf-8') as f:
    text = f.read()
  made = Page(text)
  change = made.row('held-out loss, clm')[-1]
  assert change.startswith('−0.4') and f'<strong>{change}</strong>' in text
  assert made.row('recall, 4 shots')[2].startswith('9')
  assert made.row('decoder')[1] == '0, 1, 2'
  assert made.row('200')[0] == '200' and 'decoder minus seq2seq' in made.text
  assert 'held-out' in capsys.readouterr().out
  assert [tag for tag, _ in made.elements].count('svg') > 3
  assert '<script' not in text and 'http' not in text
  compare_page.compare_evaluations(file)
  with open(path, encoding='utf-8') as f:
    assert f.read() == text


def test_runs_draw_the_page_of_their_file(train, tmp_path):
  """The page of the runs, and that of the file beside it, are equal."""
  run = str(train.whole(8))
  output = str(tmp_path / 'c.html')
  compare_page.compare_evaluations({'a': (run,)}, output)
  with open(output, 'rb') as f:
    first = f.read()
  again = compare_page.compare_evaluations(str(tmp_path / 'c.jsonl'))
  assert again == output
  with open(output, 'rb') as f:
    assert f.read() == first
  assert b'a has one run' in first


def test_figures_are_the_same_bytes_twice():
  runs = arm_runs.make_arms()
  made, again = arms_page.draw_figures(runs), arms_page.draw_figures(runs)
  assert list(made) == ['loss', 'shots', 'flops'] and made == again
  assert all(png.startswith(b'\x89PNG') for png in made.values())
  for run in runs:
    run['evaluations'] = []
  assert list(arms_page.draw_figures(runs)) == ['loss']


@pytest.mark.parametrize(
  'change, warning',
  [
    ({}, None),
    ({'seed': 0}, 'Runs of decoder have the same seed.'),
    ({'last_step': 400}, 'decoder2 of decoder is at step 200 of 400.'),
    ({'config': {'d_model': 32}}, 'Runs of decoder differ in d_model.'),
    ({'batch_size': 4}, 'Runs differ in batch size.'),
    ({'flops': [0.0, 1e11, 2.1e11]}, 'not at equal compute'),
  ],
)
def test_what_is_unfair_is_said(change, warning):
  runs = arm_runs.make_arms()
  runs[-1].update(change)
  lines = arms_page.list_warnings(group_arms(runs))
  assert any(warning in line for line in lines) if warning else not lines


def test_sizes_tell_what_arms_differ_in():
  runs = arm_runs.make_arms()
  for run in runs[3:]:
    run['config'] = {'d_model': 32, 'decoder_layers': 7}
  heads, rows = arms_page.sizes_table(group_arms(runs))
  rows = [dict(zip(heads, (text for text, _ in row))) for row in rows]
  assert [row['d_model'] for row in rows] == ['64', '32']
  # A field that a record lacks has its default.
  assert [row['decoder_layers'] for row in rows] == ['32', '7']


def test_names_are_escaped():
  runs = [arm_runs.make_run(f'{EVIL}$x_', seed) for seed in range(2)]
  data = arms_page.arms_page_data(group_arms(runs))
  made = Page(render.render('arms', data))
  assert 'script' not in {tag for tag, _ in made.elements}
  assert EVIL in made.text
  arms_page.draw_figures(runs)  # '$' begins no formula


@pytest.mark.parametrize(
  'runs, message',
  [
    ({}, "RUNS = {}: expected {'arm'"),
    ({'a': ()}, r"RUNS\['a'\] = \(\): expected a folder or more"),
    ({'a': 'runs'}, r"RUNS\['a'\] = 'runs': expected a tuple.*\('runs',\)"),
    ({'a': ('x',), 'b': ('./x',)}, "RUNS has 'x' twice"),
    ({1: ('x',)}, 'RUNS: arm = 1: expected a text'),
    ('gone.jsonl', "RUNS = 'gone.jsonl': not there"),
    (5, 'RUNS = 5'),
  ],
)
def test_what_cannot_be_compared_is_refused(runs, message, tmp_path):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    compare_page.compare_evaluations(runs, str(tmp_path / 'c.html'))
  assert not os.listdir(tmp_path)


def test_a_file_of_another_is_not_replaced(train, tmp_path):
  (tmp_path / 'c.jsonl').write_text('{"input": "mine"}\n')
  with pytest.raises(ValueError, match='is no output of this command'):
    compare_page.compare_evaluations(
      {'a': (str(train.whole(8)),)}, str(tmp_path / 'c.html')
    )


def test_markdown_has_the_tables_of_the_page():
  runs = arm_runs.make_arms()
  text = arms_page.format_markdown(runs)
  assert text == arms_page.format_markdown(runs)
  lines = text.splitlines()
  assert lines[0].startswith('| arm | seeds | parameters |')
  assert any(line.startswith('| 200 | 4.0') for line in lines)
  begin = next(i for i, x in enumerate(lines) if x.startswith('| last point'))
  ends = [x.split('|')[1] for x in lines[begin : lines.index('', begin)]]
  # Fault seen: scores stood there by shots and by FLOPs, the same ones.
  tasks = {each['task'] for run in runs for each in run['evaluations']}
  assert all(sum(task in x for x in ends) == 1 for task in tasks)
  (language,) = (line for line in lines if line.startswith('| clm/en'))
  assert '4.000 [4.000, 4.000]' in language and language.count('|') == 5
  assert any(' decoder is below seq2seq by ' in line for line in lines)


@pytest.fixture
def figures():
  """docs/figures.py, which `make figures` runs."""
  place = os.path.join(os.path.dirname(__file__), '../../docs/figures.py')
  spec = importlib.util.spec_from_file_location('figures', place)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_figures_of_the_study_are_drawn_twice_alike(figures, tmp_path):
  """Of raw metrics alone."""
  assert figures.main(str(tmp_path)) == 1  # no metrics
  arm_records.write_arm_file(str(tmp_path / 'a.jsonl'), arm_runs.make_arms())
  contents = []
  for _ in range(2):
    assert figures.main(str(tmp_path)) == 0
    contents.append({
      path.name: path.read_bytes() for path in tmp_path.iterdir()
    })  # fmt: skip
  assert contents[0] == contents[1]
  assert {*contents[0]} == {
    'a.jsonl', 'a.html', 'a-tables.txt', 'a-loss.png', 'a-shots.png',
    'a-flops.png',
  }  # fmt: skip


def test_losses_of_the_longer_run_are_drawn_twice_alike(figures, tmp_path):
  """docs/results.png, from docs/results.csv."""
  raw = pathlib.Path(__file__).parents[2] / 'docs' / 'results.csv'
  drawn = []
  for name in ('a', 'b'):
    path = tmp_path / f'{name}.csv'
    path.write_bytes(raw.read_bytes())
    drawn.append(pathlib.Path(figures.draw_losses(str(path))).read_bytes())
  assert drawn[0] == drawn[1] and drawn[0].startswith(b'\x89PNG')
