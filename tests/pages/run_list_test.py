"""The list of runs, from what lies in their folders."""

import json
import os
import re

import pytest

from atm.checkpoint import best_step
from atm.cli import main
from atm.pages import run_list, train_page
from atm.train import crash_report, run_folder


@pytest.fixture
def make_run(tmp_path):
  """Returns a function that writes the folder of a run."""

  def make(name, steps, of=None, old=0):
    path = tmp_path / name
    path.mkdir(parents=True)
    rows = [
      {'step': step, 'loss': 4.0, 'tokens/input': 600.0, 'tokens/target': 400.0,
       'eval/loss/denoise': 9 - step / 10, 'eval/loss/pair': 2.5}
      for step in range(10, steps + 1, 10)
    ]  # fmt: skip
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (path / 'metrics.jsonl').write_text(text)
    (path / 'lock').touch()
    (path / 'config.gin').write_text(f'TRAIN_STEPS = {of}\n' if of else 'A = 1')
    for file in path.iterdir():
      os.utime(file, (2e9 - old, 2e9 - old))
    return path

  return make


def read(path):
  return run_list.read_run_facts(str(path), path.name)


def test_states_of_runs(make_run):
  assert read(make_run('done', 30, 30)).state == 'finished'
  assert read(make_run('new', 0, 30)).state == 'stopped'
  run = make_run('run', 20, 30)
  assert read(run).state == 'stopped'
  failure = run / crash_report.FAILURE_FILE
  failure.write_text('Traceback')
  os.utime(failure, (2e9, 2e9))
  assert read(run).state == 'failed'
  os.utime(run / 'metrics.jsonl', (2e9 + 9, 2e9 + 9))  # it went on
  assert read(run).state == 'stopped'
  with run_folder.RunFolder(str(run)).lock():
    assert read(run).state == 'running'
  assert read(run).state == 'stopped'


def test_a_run_that_stopped_early_is_finished(make_run):
  run = make_run('run', 20, 30)
  for stopped_at, state in ((20, 'finished'), (10, 'stopped')):
    best = best_step.BestStep(10, 'eval/loss/pair', 2.5, stopped_at)
    best_step.write_best(str(run), best)
    assert read(run).state == state
  facts = dict(train_page._list_best(str(run)))
  assert facts == {
    'best checkpoint': 'step 10, eval/loss/pair = 2.5',
    'stopped early': 'step 10 (PATIENCE)',
  }


def test_facts_of_a_run(make_run):
  facts = read(make_run('run', 20, 30))
  assert (facts.step, facts.last_step, facts.tokens) == (20, 30, 2000)
  assert facts.losses == {'denoise': 7.0, 'pair': 2.5}
  assert facts.goodput is None and facts.changed == 2e9
  (cells,) = run_list.format_cells([facts], 2e9 + 3700)
  assert cells == {
    'run': 'run', 'state': 'stopped', 'step': '20', 'of': '30',
    'denoise': '7.000', 'pair': '2.500', 'tokens': '2,000', 'goodput': '',
    'idle': '1:01:40',
  }  # fmt: skip


def test_a_damaged_run_hides_no_other(make_run, tmp_path, capsys):
  make_run('a/b/whole', 20, 30)
  damaged = make_run('damaged', 20, old=50)
  (damaged / 'metrics.jsonl').write_text('[1]\n')
  assert main.main(['runs', str(tmp_path)]) == 0
  out = capsys.readouterr().out
  assert re.search(r'a/b/whole +stopped +20 +30 +7\.000 +2\.500', out), out
  assert re.search(r'damaged +damaged  ', out), out
  assert 'line 1: it is [1]: expected an object' in out
  page = (tmp_path / run_list.PAGE).read_text()
  assert page.index('a/b/whole') < page.index('<th scope="row">damaged')
  assert page.count('role="img"') == 1 and '2 runs' in page


def test_runs_are_looked_for_three_levels_deep(make_run, tmp_path):
  for name in ('a', 'b/c/d', 'b/.hidden', 'e/f/g/h', 'a/inside'):
    make_run(name, 10)
  (tmp_path / 'b' / 'text').mkdir()
  found = [*run_list.find_runs(str(tmp_path))]
  assert found == [str(tmp_path / name) for name in ('a', 'b/c/d')]
  begun = tmp_path / 'begun'  # and has no metrics yet
  begun.mkdir()
  for name in ('config.gin', 'lock'):
    (begun / name).touch()
  assert str(begun) in run_list.find_runs(str(tmp_path))
  assert read(begun).state == 'stopped' and read(begun).step is None


def test_pages_link_to_reports(make_run, tmp_path):
  run = make_run('group/<run>', 10)
  (run / 'report.html').touch()
  folder = str(tmp_path / 'group')
  run_list.write_run_list(folder, str(tmp_path / 'page.html'))
  page = (tmp_path / 'page.html').read_text()
  assert '<a href="group/&lt;run&gt;/report.html">&lt;run&gt;</a>' in page


def test_a_folder_without_runs(tmp_path, capsys):
  assert main.main(['runs', str(tmp_path)]) == 2
  assert 'expected a folder with the folders of runs' in capsys.readouterr().err
  assert main.main(['runs', str(tmp_path / 'none')]) == 2
  assert os.listdir(tmp_path) == []
