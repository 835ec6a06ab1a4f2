"""Models without an encoder are trained, and refused where one is needed."""

import dataclasses

import jax
import numpy as np
import pytest

from atm.checkpoint import config_json
from atm.data.task_registry import Lengths
from atm.inference import api
from atm.model.lora import LoraConfig
from atm.plan import decode_plan, serve_plan, train_plan
from atm.train import config_checks

from conftest import tiny
from tiny_runs import (
  EIGHT,
  ONE,
  Stop,
  comparable,
  metrics_at,
  small_config,
  small_model,
)

KINDS = 'decoder_only', 'prefix_lm'
ONE_STACK = dict(architecture='decoder_only', encoder_layers=0)


@pytest.mark.parametrize('kind', KINDS)
def test_a_resumed_run_is_that_of_one_device(train, tmp_path, kind):
  """And of eight; the model that it leaves writes and scores."""
  model = small_model(architecture=kind, encoder_layers=0, unroll=2)
  given = dict(model_config=model, config_text='# the config\n')
  whole = train(tmp_path / 'whole', 6, **given)
  with pytest.raises(Stop):
    train(tmp_path / 'cut', 6, stop_at=5, **given)
  train(tmp_path / 'cut', 6, **given)
  assert comparable(tmp_path / 'cut') == comparable(tmp_path / 'whole')
  spread = train(tmp_path / 'eight', 6, EIGHT, **given)
  losses = metrics_at(whole, 6)
  assert losses == pytest.approx(metrics_at(spread, 6), rel=1e-3)
  mesh = ONE()
  loaded = api.load(str(tmp_path / 'whole'), mesh=mesh)
  assert loaded.config.architecture == kind
  assert all(isinstance(x, str) for x in loaded.generate(['All human'] * 2))
  assert np.isfinite(loaded.score(['All human'], ['beings'])[0]).all()
  # Adapters come for free: layers are those of a decoder.
  tuned = train(
    tmp_path / 'tuned', 2, init_from=str(tmp_path / 'whole'),
    model_config=dataclasses.replace(model, dropout=0.0),
    lora=LoraConfig(rank=2, alpha=4.0),
  )  # fmt: skip
  assert metrics_at(tuned, 2)
  merged = api.load(str(tmp_path / 'tuned'), mesh=mesh)
  assert jax.tree.structure(merged.params) == jax.tree.structure(loaded.params)


@pytest.mark.parametrize(
  'changes, message',
  [
    (
      dict(encoder_layers=2),
      "encoder_layers = 2: expected 0 where Config.architecture = 'decoder_on",
    ),
    (dict(ties='all'), "ties = 'all': expected 'none' or 'decoder_head' where"),
    (dict(ties='embeddings'), "ties = 'embeddings': expected 'none' or"),
    (dict(token_types=1), 'token_types = 1: expected 0 where'),
    (dict(encoder_position_offset=2), 'encoder_position_offset = 2: expected'),
    (dict(architecture='decoder'), "Did you mean 'decoder_only'"),
    (dict(architecture='encoder_decoder'), 'encoder_layers = 0: expected a wh'),
    (dict(encoder_layers=False), 'encoder_layers = False'),
  ],
)
def test_values_that_one_stack_has_not(changes, message):
  with pytest.raises(ValueError, match=message):
    tiny(**{**ONE_STACK, **changes})


NEEDS_AN_ENCODER = {
  "PROGRAM = 'serve'": lambda config: serve_plan.plan_engine(config),
  "PROGRAM = 'decode'": lambda config: decode_plan.plan_rows(None, config),
  "PROGRAM = 'encode'": lambda config: decode_plan.plan_rows(
    None, config, 'encode'
  ),
  "INIT_ENCODER = 'runs/mlm'": lambda config: small_config(
    'runs/x', model_config=config, init_encoder='runs/mlm'
  ),
  'FREEZE_ENCODER_STEPS = 3': lambda config: small_config(
    'runs/x', model_config=config, freeze_encoder_steps=3
  ),
  'atm serve': lambda config: config.check_encoder('atm serve'),
}


@pytest.mark.parametrize('what', NEEDS_AN_ENCODER)
def test_what_needs_an_encoder_is_refused(what):
  with pytest.raises(ValueError) as caught:
    NEEDS_AN_ENCODER[what](tiny(**ONE_STACK))
  assert str(caught.value) == (
    f'{what} needs a model with an encoder: expected Config.architecture = '
    "'encoder_decoder', but this model has 'decoder_only'"
  )


@pytest.mark.parametrize(
  'changes', [{}, {**ONE_STACK, 'architecture': 'prefix_lm'}]
)
def test_prompts_are_learned_where_they_are_causal(changes):
  with pytest.raises(ValueError, match="expected Config.architecture = 'dec"):
    small_config(
      'runs/x', model_config=small_model(**changes), prompt_loss=True
    )


def test_no_hugging_face_class_is_claimed():
  with pytest.raises(ValueError, match="architecture = 'prefix_lm': the class"):
    config_json.config_to_hf(tiny(**{**ONE_STACK, 'architecture': 'prefix_lm'}))


def test_rows_have_room_for_both_sides():
  config = tiny(**ONE_STACK)
  assert Lengths.of_model(config).both == (24, 24)
  run = small_config('runs/x', model_config=config, lengths=None)
  assert run.lengths == {'inputs': 24, 'targets': 24}
  check = lambda n: config_checks.check_sizes(
    ONE(), run.rules, config, Lengths(24, n), 8
  )
  check(24)
  with pytest.raises(ValueError, match="'targets': 25}: .* 49 tokens together"):
    check(25)


def test_plans_of_training(tmp_path):
  """FLOPs by formula are those counted in the step."""
  config = small_model(**ONE_STACK)
  plan = train_plan.plan(
    {'inputs': 32, 'targets': 32}, 8, 10, config,
    small_config('runs/x').optimizer_config,
    say=lambda text: None,
  )  # fmt: skip
  assert plan['model_flops'] == pytest.approx(plan['flops_counted'])
