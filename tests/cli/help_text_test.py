"""Every setting of every run is told: what it is for, and what by default."""

import os
import re

import pytest

import atm
from atm.cli import commands, help_text, run_settings

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(atm.__file__)))


@pytest.mark.parametrize('run', commands.RUNS)
def test_every_setting_has_a_meaning(run):
  listed = [s for group in help_text.list_settings(run).values() for s in group]
  assert {s.name for s in listed} == run_settings.list_own_macros(run)
  for group in help_text.list_beside(run).values():
    listed += group
  assert [s.name for s in listed if not s.meaning] == []


@pytest.mark.parametrize('run', commands.RUNS)
def test_help_is_readable(run):
  text = help_text.format_help(run)
  lines = text.splitlines()
  assert max(map(len, lines)) <= 80
  assert text.startswith(f'usage: atm {run} ')
  assert re.search(rf'^  atm {run} --gin', text, re.M), 'an example'
  for name in run_settings.list_own_macros(run):
    assert re.search(rf'^  {name} ( \(required\)|= )', text, re.M), name


def test_help_tells_defaults_and_files():
  text = help_text.format_help('finetune')
  assert 'settings of runs/finetune.gin, as --gin.NAME=VALUE' in text
  assert 'and of runs/pretrain.gin, which that includes:' in text
  assert re.search(r'^  DECAY_STEPS = TRAIN_STEPS  ', text, re.M)
  assert re.search(r'^  INIT_FROM  \(required\)  ', text, re.M)
  assert text.count('\n  TRAIN_STEPS = ') == 1
  text = help_text.format_help('infer')
  assert '\nchoosing.Config: Settings of generation' in text
  assert '\n  top_k = 0 ' in text and '\n  max_tokens = ' not in text
  assert 'optimizer.Config' not in text and 'configure_tasks = ' not in text
  assert text.endswith('infer_file.configure_tasks=@atm_tasks.configure')


def test_a_long_value_and_a_long_meaning_are_wrapped():
  setting = help_text.Setting('NAME', repr('x ' * 50), 'word ' * 30)
  lines = help_text.format_setting(setting).splitlines()
  assert len(lines) > 4 and max(map(len, lines)) <= 80
  assert lines[0].startswith("  NAME = 'x x") and lines[-1].startswith(' ' * 35)


def test_the_document_is_what_the_code_says():
  with open(f'{ROOT}/docs/settings.md', encoding='utf-8') as f:
    same = f.read() == help_text.format_document()
  assert same, 'write it again: python docs/settings.py > docs/settings.md'
