"""The study of docs/study.md in its smallest form: nothing is trained here."""

import importlib
import os
import pathlib
import subprocess
import sys
import time
import types

import pytest

from atm.pages import arm_records

import arm_runs

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def study(monkeypatch):
  """benchmarks/study.py."""
  monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
  return importlib.import_module('study')


@pytest.fixture
def calls(study, monkeypatch):
  """Commands that the study ran; one that is named fails."""
  made = []

  def start(command, **options):
    made.append(command[command.index('atm') + 1 :])
    failed = any(name in command for name in calls_fail)
    return types.SimpleNamespace(wait=lambda: int(failed))

  calls_fail = []
  monkeypatch.setattr(study.subprocess, 'Popen', start)
  return types.SimpleNamespace(made=made, fail=calls_fail)


def test_arms_cost_the_same(study):
  """Within 2%, as docs/study.md says; seen to fail without a fitted width."""
  wanted = study.row_flops(study.make_config('seq2seq'))
  for arm, (_, prompt_loss, _) in [*study.ARMS.items()][1:]:
    config = study.make_config(arm)
    own = study.row_flops(config, prompt_loss)
    assert own == pytest.approx(wanted, rel=0.02)
    assert config.encoder_layers == 0 and config.d_model == study.WIDTH


def test_a_study_that_was_cut_off_goes_on(study, calls, tmp_path):
  made = study.Study(str(tmp_path), 80, None, [*study.ARMS])
  assert len(os.listdir(tmp_path / 'text')) == 12  # the Declaration
  made.write_settings()
  text = (tmp_path / 'prefix.gin').read_text()
  assert "architecture = 'prefix_lm'" in text and 'TRAIN_STEPS = 80' in text
  text = (tmp_path / 'decoder_low_rate.gin').read_text()
  assert 'LEARNING_RATE = 0.0015\n' in text
  made.prepare()
  calls.fail.append('--gin.STEP=40')
  with pytest.raises(RuntimeError, match='seq2seq-0-4-shots-40 failed'):
    made.run_one('seq2seq', 0, None)
  before = len(calls.made)
  calls.fail.clear()
  made.run_one('seq2seq', 0, None)
  assert before == 2 + 1 + 3 + 2  # vocabulary and rows, training, questions
  assert [c[0] for c in calls.made[before:]] == ['eval', 'eval']
  log = (tmp_path / 'study.log').read_text().splitlines()
  assert len(log) == before + 2 and 'status 1' in log[before - 1]
  made.run_all()
  every = {tuple(c) for c in calls.made}
  assert sum(c[0] == 'pretrain' for c in every) == 15
  assert sum(c[0] == 'eval' for c in every) == 15 * 6


def test_metrics_have_the_oracle(study, tmp_path, monkeypatch):
  monkeypatch.setattr(arm_records, 'read_arms', lambda arms: [
    {**run, 'evaluations': [
      {**e, 'task': task} for e in run['evaluations'] if e['step'] == 200
      for task in ('in_context_recall', 'in_context_recall_choice')
    ]}
    for run in arm_runs.make_arms()
  ])  # fmt: skip
  path = str(tmp_path / 'runs.jsonl')
  study.collect(str(tmp_path), path)
  (first, *_) = arm_records.read_arm_file(path)
  assert {e['oracle'] for e in first['evaluations']} == {100.0}
  assert (tmp_path / 'runs.html').exists()


def test_after_a_failure_no_other_run_begins(study, calls, tmp_path):
  """Fault seen: one began in the place of that which had failed."""
  made = study.Study(str(tmp_path), 80, None, [*study.ARMS])
  calls.fail.append('pretrain')
  with pytest.raises(RuntimeError, match='-0 failed'):
    made.run_all()
  assert len(calls.made) <= len(os.sched_getaffinity(0))


def test_a_signal_ends_the_runs_of_a_study(tmp_path):
  """Fault seen: they went on, and their locks refused a second start."""
  (tmp_path / 'atm.py').write_text(
    'import os, sys, time\n'
    'open(f"run-{os.getpid()}", "w").close()\n'
    'time.sleep(0 if sys.argv[1] in ("vocab", "cache") else 600)\n'
  )
  script = [sys.executable, str(ROOT / 'benchmarks' / 'study.py')]
  with subprocess.Popen(
    [*script, 'run', str(tmp_path)],
    env={**os.environ, 'PYTHONSAFEPATH': ''},
    stderr=subprocess.PIPE,
    text=True,
  ) as study:
    count = 2 + len(os.sched_getaffinity(0))
    deadline = time.monotonic() + 120
    while len([*tmp_path.glob('run-*')]) < count:
      assert study.poll() is None and time.monotonic() < deadline
      time.sleep(0.1)
    study.terminate()
    error = study.communicate(timeout=30)[1]
  assert study.returncode == 1
  assert error.startswith('error: ') and 'run again' in error
  for path in tmp_path.glob('run-*'):
    with pytest.raises(ProcessLookupError):
      os.kill(int(path.name[len('run-') :]), 0)
  assert not [*tmp_path.glob('logs/*-0.done')]


def test_shipped_tables_are_of_the_shipped_metrics():
  """Of docs/study.md; `make figures` writes them."""
  from atm.pages import arm_records, arms_page

  folder = ROOT / 'docs' / 'study'
  runs = arm_records.read_arm_file(str(folder / 'runs.jsonl'))
  assert {run['last_step'] for run in runs} == {8000}
  written = (folder / 'runs-tables.txt').read_text(encoding='utf-8')
  assert arms_page.format_markdown(runs) == written
