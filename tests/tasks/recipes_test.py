"""The recipes of gin/recipes: what they bind, and what they read."""

import glob
import json
import os

import pytest

import gin
from atm.cli import commands, gin_config, gin_files
from atm_tasks.pretraining import pair_text, pairs

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
RECIPES = sorted(glob.glob(f'{ROOT}/gin/recipes/*.gin'))
# As benchmarks/recipes.py writes them.
FILES = {
  'translation/train.de': 'Guten Tag\nDanke\n',
  'translation/train.en': 'Good day\nThanks\n',
  'summarisation/train.tsv': 'text\tsummary\nA long text.\tA text\n',
  'question_answering/train.jsonl': json.dumps(
    {'question': 'What?', 'context': 'It is a pen.', 'answer': 'a pen'}
  ),
  'intents/train.tsv': 'sentence\tframe\nlamp on\tTurnOn; name = lamp\n',
}
PAIRS = {
  'translation': ('Guten Tag', 'Good day', 'de', 'en'),
  'summarisation': ('A long text.', 'A text'),
  'question_answering': ('What? It is a pen.', 'a pen'),
  'intents': ('lamp on', 'TurnOn; name = lamp'),
}


@pytest.mark.parametrize('path', RECIPES, ids=os.path.basename)
def test_a_recipe_reads_its_form(path, tmp_path, monkeypatch):
  """And its head names a command, the text and what was measured."""
  name = os.path.basename(path).removesuffix('.gin')
  with open(path) as f:
    head = f.read().split('\n\n')[0]
  for part in (
    f'--gin_file=recipes/{name}.gin', 'benchmarks/recipes.py prepare',
    'atm eval', 'Expected', 'Baselines', 'licence',
  ):  # fmt: skip
    assert part.lower() in head.lower(), part
  monkeypatch.chdir(tmp_path)
  for file, content in FILES.items():
    where = tmp_path / 'data' / 'recipes' / file
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(content)
  files = [gin_files.find_file(f) for f in ('runs/finetune.gin', path)]
  bindings = ["INIT_FROM = 'base'", "MODEL_DIR = 'tuned'"]
  with gin.unlock_config():
    gin_config.apply_config(files, bindings, set())
    setting = commands.get_setting
    languages = setting('SOURCE_LANGUAGE'), setting('TARGET_LANGUAGE')
    reader = pair_text.PairReader(*languages, columns=setting('PAIRS_COLUMNS'))
    paths = setting('PAIRS')
  gin.clear_config()
  (shard,) = range(len(pairs.PairsSource(paths, 0.0).list_shards('train')))
  source = pairs.PairsSource(paths, 0.0, reader=reader)
  first = next(source.texts('train', shard))
  assert tuple(json.loads(first)) == PAIRS[name]
