"""Tasks of the small files in testdata/evaluation, and runs of them."""

import json
import os

import jax

from atm.evals import runner, text_metrics
from atm.inference import api
from atm.model.config import ModelConfig
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules

from small_models import init

DATA = os.path.join(os.path.dirname(__file__), 'testdata', 'evaluation')


def tasks(*names, **options):
  import atm_tasks

  return atm_tasks.suite(names, DATA, **options)


def run(model, some, folder, **changes):
  evaluation = runner.SuiteEvaluation(
    'model', make_tasks=list, suite='s', output=str(folder),
    say=lambda text: None,
    **{'batch_size': 8, **changes},
  )  # fmt: skip
  found, missing = evaluation.evaluate_tasks(model, some)
  assert not missing
  return found


def rows(folder, name: str) -> list[dict]:
  with open(f'{folder}/predictions/{name}.jsonl') as f:
    return list(map(json.loads, f))


def random_model(words) -> api.Model:
  """Makes a small untrained model."""
  config = ModelConfig(
    vocab_size=words.size, d_model=32, encoder_layers=1, decoder_layers=2,
    encoder_heads=4, decoder_heads=4, encoder_ff=64, decoder_ff=64,
    positions=256, dtype='float32', init_std=0.3,
  )  # fmt: skip
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  return api.Model(config, init(config), words, mesh, Rules(), 7)


def go_offline(tmp_path, monkeypatch):
  """Keeps spBLEU's model out of reach until the generator ends."""

  def unreachable(*_):
    raise OSError('no network')

  spm = 'sacrebleu.tokenizers.tokenizer_spm'
  monkeypatch.setattr(f'{spm}.SACREBLEU_DIR', str(tmp_path / 'sacrebleu'))
  monkeypatch.setattr(f'{spm}.download_file', unreachable)
  text_metrics._spbleu.cache_clear()
  yield
  text_metrics._spbleu.cache_clear()
