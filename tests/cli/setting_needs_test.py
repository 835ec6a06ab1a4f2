"""A setting that does nothing without another one is refused."""

import pytest

from atm.cli import gin_files, gin_reader, run_settings, setting_needs
from atm.cli.gin_text import UserError


def check(run, *arguments, files=()):
  paths = [gin_files.run_file(run), *map(gin_files.find_file, files)]
  setting_needs.check_needs(
    run, gin_reader.read_configuration(paths, arguments)
  )


@pytest.fixture
def own(tmp_path, monkeypatch):
  """A model that has settings of its own, in ./own."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'own').mkdir()
  (tmp_path / 'own' / 'generation_config.json').write_text('{}')


@pytest.mark.parametrize(
  'run, argument, message',
  [
    ('pretrain', 'TEXT_DIR="my text"', "TEXT_DIR = 'my text', but MIXTURE_OR_"
     "TASK_NAME = 'udhr': leave out TEXT_DIR, or set .* = 'text'$"),
    ('vocab', 'PAIRS="x.jsonl"', "or set MIXTURE_OR_TASK_NAME = 'pairs'"),
    ('finetune', 'TEXT_DIR="x"', "but MIXTURE_OR_TASK_NAME = 'pairs'"),
    ('pretrain', 'PAIRS_WEIGHTS={"a": 1}', "or set .* = 'pairs'"),
    ('cache', 'PAIRS_MODE="denoise"', 'PAIRS = None: .* or name PAIRS'),
    ('pretrain', 'LIMIT=4', 'but ASK_EVERY = None: leave out LIMIT'),
    ('infer', 'SPLIT="train"', 'or name a TASK'),
    ('infer', 'choosing.Config.top_k=4', 'temperature = None: leave out choos'),
    ('infer', 'choosing.Config.length_penalty=0.6', 'set choosing.Config.'),
    ('eval', 'choosing.Config.early_stopping=True', 'set choosing.Config.'),
    ('infer', ['MODEL_DIR="x"', 'choosing.Config.top_p=0.5'], 'leave out'),
    ('infer', ['TEMPERATURE=0', 'MODEL_DIR="own"', 'choosing.Config.top_k=4'],
     'temperature = 0: leave out'),
    ('export', ['FORMAT="peft"', 'SHARD_GIB=1'], "'peft': leave out SHARD"),
    ('serve', ['BEAM_GROUPS=0', 'BEAMS=2'], 'BEAM_GROUPS = 0: leave out BEAMS'),
  ],
)  # fmt: skip
def test_what_does_nothing_alone(own, run, argument, message):
  """Fault seen: a run named its TEXT_DIR, and trained on another text."""
  with pytest.raises(UserError, match=message):
    check(run, *([argument] if isinstance(argument, str) else argument))


@pytest.mark.parametrize(
  'run, arguments',
  [
    ('pretrain', ['TEXT_DIR="x"', 'MIXTURE_OR_TASK_NAME="text"']),
    ('pretrain', ['TEXT_DIR="x"', 'MIXTURE_OR_TASK_NAME="my_own"']),
    ('pretrain', ['TEXT_DIR=None', 'LIMIT=32']),  # what they are anyway
    ('finetune', ['PAIRS="x"', 'PAIRS_MODE="denoise"']),
    ('pretrain', ['LIMIT=4', 'ASK_EVERY=100']),
    ('eval', ['LIMIT=4', 'SPLIT="test"']),
    ('infer', ['SPLIT="train"', 'TASK="x"']),
    ('serve', ['BEAMS=2']),
    ('serve', ['BEAM_GROUPS=0']),
    ('infer', ['TEMPERATURE=0.5', 'choosing.Config.top_k=4']),
    ('infer', ['T=0.5', 'TEMPERATURE=%T', 'choosing.Config.min_p=0.1']),
    ('infer', ['choosing.Config.temperature=0.5', 'choosing.Config.top_k=4']),
    (
      'infer',
      ['choosing.Config.beams=4', 'choosing.Config.length_penalty=2'],
    ),
    ('chat', ['choosing.Config.top_k=4']),  # /set temperature comes later
    # The model's own settings may have beams, or sample.
    ('infer', ['MODEL_DIR="own"', 'choosing.Config.top_k=4']),
    ('infer', ['MODEL_DIR="own"', 'choosing.Config.length_penalty=2']),
  ],
)
def test_what_counts(own, run, arguments):
  check(run, *arguments)


def test_files_may_say_more_than_counts(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine.gin').write_text("TEXT_DIR = 'x'\n")
  check('pretrain', files=['mine.gin'])


def test_needs_are_of_settings_that_there_are():
  known = set.union(
    *map(run_settings.list_own_macros, run_settings.run_names())
  )
  for need in setting_needs.NEEDS:
    for name in (*need.settings, need.other):
      assert name in known or name.startswith('choosing.Config.')
