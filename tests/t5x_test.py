"""AlexaTM for t5x: what t5x reads off it; and in t5x, where that is."""

import functools
import importlib.util
import os
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from flax.linen import partitioning

import atm_tasks
from atm import t5x
from atm.data import packing, task_registry
from atm.model import config as config_lib
from atm.model import transformer
from atm.train import step as step_lib

from conftest import tiny

# What the standard rules of t5x's partitioner and of its Adafactor both know.
KNOWN = {'vocab', 'embed', 'mlp', 'heads', 'layers', 'relpos_buckets'}


@pytest.mark.parametrize(
  'changes',
  [
    {},
    dict(ties='all', token_types=2, logits_bias=True, embedding_norm=True),
  ],
)
def test_every_parameter_has_axes_that_t5x_knows(changes):
  """Fault seen: a name that only one of t5x's two sets of rules knows."""
  ids = jnp.ones((2, 8), jnp.int32)
  config = tiny(**changes)
  init = lambda m: m.init(jax.random.key(0), ids, ids, enable_dropout=False)
  made, plain = (init(m(config)) for m in (t5x.AlexaTM, transformer.AlexaTM))
  assert set(made) == {'params', 'params_axes'}
  flat = functools.partial(traverse_util.flatten_dict, sep='/')
  params, wanted = flat(made['params']), flat(nn.unbox(plain['params']))
  axes = flat(partitioning.get_axis_names(made['params_axes']))
  assert set(params) == set(wanted) == set(axes)
  for name, value in params.items():
    assert (value == wanted[name]).all()
    assert len(axes[name]) == value.ndim and set(axes[name]) <= KNOWN, name


def test_decoder_inputs_begin_as_ours(words):
  import seqio

  S, T = 40, 40
  task = task_registry.find_task('udhr_en_clm')
  dataset = task.get_dataset(
    {'inputs': S, 'targets': T}, 'validation', shuffle=False, seed=0
  )
  made = t5x.feature_converter(pack=False)(dataset, {'inputs': S, 'targets': T})
  batch = next(made.batch(4).as_numpy_iterator())
  assert isinstance(t5x.feature_converter(), seqio.EncDecFeatureConverter)
  runs = [
    ((), rows[rows > 0], (rows > 0).sum(1), ())
    for rows in (batch['encoder_input_tokens'], batch['decoder_target_tokens'])
  ]
  ids = packing.SpecialIds.of(words)
  ours = packing.frame_batch(np.arange(4), *runs, (4, S, T), ids)
  inside = ours['decoder_segment_ids'] > 0
  found = batch['decoder_input_tokens']
  assert (found[inside] == ours['decoder_input_tokens'][inside]).all()
  assert (found[:, 0] == words.bos_id).all()
  weights = batch['decoder_loss_weights']
  assert (weights == ours['decoder_loss_weights']).all()


# --- In t5x

NEEDS_T5X = pytest.mark.skipif(
  importlib.util.find_spec('t5x') is None,
  reason='needs a checkout of t5x: see docs/t5x.md',
)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIZES = dict(
  vocab_size=2048, d_model=32, encoder_layers=2, decoder_layers=2,
  encoder_heads=4, decoder_heads=4, encoder_ff=64, decoder_ff=64,
  positions=32, dtype='float32',
)  # fmt: skip
TASK = 'udhr_en_denoise'
# What t5x takes of jestimator, whose own files need an older jax.
STAND_IN = {
  '__init__.py': '',
  'amos.py': 'class ScaleByAmosState:\n  pass\n\n\namos = None\n',
  'amos_helper.py': 'state_partition_rule = None\n',
}


@pytest.fixture(scope='module')
def stand_in(tmp_path_factory):
  """A folder for PYTHONPATH with a package `jestimator`; in sys.path, too."""
  folder = tmp_path_factory.mktemp('stand_in')
  (folder / 'jestimator').mkdir()
  for name, text in STAND_IN.items():
    (folder / 'jestimator' / name).write_text(text)
  sys.path.insert(0, str(folder))
  yield str(folder)
  sys.path.remove(str(folder))


def t5x_model(words, optimizer='adafactor'):
  """Returns t5x's model around ours."""
  from t5x import adafactor, models, optimizers

  rules = adafactor.standard_logical_factor_rules()
  vocabulary = atm_tasks.configured(vocabulary=words.path)
  return models.EncoderDecoderModel(
    t5x.AlexaTM(config_lib.ModelConfig(**SIZES)), vocabulary, vocabulary,
    adafactor.Adafactor(logical_factor_rules=rules)
    if optimizer == 'adafactor' else optimizers.adamw(1e-3),
    feature_converter_cls=t5x.feature_converter,
  )  # fmt: skip


def read_batches(net):
  """Returns an iterator over batches of eight, as t5x reads them."""
  from t5x import utils

  settings = utils.DatasetConfig(
    TASK, {'inputs': 32, 'targets': 32}, 'train', 8, shuffle=True, seed=0,
    use_cached=False, pack=False,
  )  # fmt: skip
  made = utils.get_dataset(settings, 0, 1, net.FEATURE_CONVERTER_CLS)
  return made.as_numpy_iterator()


def assert_loss_is_ours(net, params, batch) -> None:
  """The sum of the losses of a batch is the same by t5x's code and by ours."""
  theirs, _ = net.eval_fn(params, {k: jnp.asarray(v) for k, v in batch.items()})
  inside = lambda name: (batch[name] > 0).astype(np.int32)
  segments = {
    'encoder_segment_ids': inside('encoder_input_tokens'),
    'decoder_segment_ids': inside('decoder_target_tokens'),
    'objective': np.zeros(8, np.int32),
  }
  ours = step_lib.eval_step(
    transformer.AlexaTM(config_lib.ModelConfig(**SIZES)),
    params,
    {**batch, **segments},
  )
  assert abs(ours['loss'].sum() - theirs) < 1e-5 * theirs


@NEEDS_T5X
@pytest.mark.usefixtures('stand_in')
@pytest.mark.parametrize('optimizer', ['adafactor', 'adamw'])
def test_in_t5x(words, optimizer):
  """Trains on a mesh of t5x's, and computes the loss that we compute."""
  from t5x import partitioning, trainer, utils

  net = t5x_model(words, optimizer)
  partitioner = partitioning.PjitPartitioner(
    num_partitions=2,
    logical_axis_rules=partitioning.standard_logical_axis_rules(),
  )
  batches = read_batches(net)
  batch = next(batches)
  key = jax.random.PRNGKey(0)
  begin = utils.TrainStateInitializer(
    optimizer_def=net.optimizer_def, init_fn=net.get_initial_variables,
    partitioner=partitioner,
    input_shapes={k: v.shape for k, v in batch.items()},
    input_types={k: v.dtype for k, v in batch.items()},
  )  # fmt: skip
  training = trainer.Trainer(
    net, train_state=begin.from_scratch(key), partitioner=partitioner,
    eval_names=[], summary_dir=None, train_state_axes=begin.train_state_axes,
    rng=key, learning_rate_fn=lambda step: 1e-2, num_microbatches=None,
  )  # fmt: skip
  losses = [
    float(training.train(batches, 10, start_step=10 * i).result()['loss'].value)
    for i in range(3)
  ]
  assert losses[2] < losses[1] < losses[0]
  params = training.train_state.params
  wide = params['decoder']['layers']['feed_forward']['up']['kernel']
  assert wide.sharding.spec[2] == 'model'
  assert_loss_is_ours(net, params, batch)
  decoded, aux = net.predict_batch_with_aux(
    params, {k: jnp.asarray(v) for k, v in batch.items()}, num_decodes=2,
    return_all_decodes=True,
  )  # fmt: skip
  assert decoded.shape == (8, 2, 32) and np.isfinite(aux['scores']).all()


def train_in_t5x(folder, path: str, words, steps: int):
  """Calls t5x.train with the gin file of docs/t5x.md, and smaller sizes."""
  checkout = os.path.dirname(importlib.util.find_spec('t5x').origin)
  bound = {
    'MODEL_DIR': str(folder / 'run'), 'MIXTURE_OR_TASK_NAME': TASK,
    'TASK_FEATURE_LENGTHS': {'inputs': 32, 'targets': 32}, 'BATCH_SIZE': 8,
    'TRAIN_STEPS': steps, 'train.eval_steps': 1,
    'train.eval_period': 6, 'utils.SaveCheckpointConfig.period': 6,
    'atm_tasks.configured.vocabulary': words.path,
    **{f'model.Config.{name}': value for name, value in SIZES.items()},
  }  # fmt: skip
  paths = [path, os.environ.get('PYTHONPATH', '')]
  done = subprocess.run(
    [sys.executable, '-m', 't5x.train', '--gin_file=alexatm.gin',
     f'--gin_search_paths={folder},{os.path.dirname(checkout)}',
     *(f'--gin.{name}={value!r}' for name, value in bound.items())],
    cwd=folder, env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)},
    stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-4000:]


@NEEDS_T5X
def test_by_the_command_of_t5x(words, stand_in, tmp_path):
  """Six steps and a checkpoint, which goes on; its loss is ours."""
  import orbax.checkpoint as ocp

  with open(os.path.join(ROOT, 'docs', 't5x.md'), encoding='utf-8') as f:
    (gin,) = re.findall(r'```gin\n(.*?)```', f.read(), re.S)
  (tmp_path / 'alexatm.gin').write_text(gin)
  params = {}
  for steps in (6, 12):
    train_in_t5x(tmp_path, stand_in, words, steps)
    path = tmp_path / 'run' / f'checkpoint_{steps}' / 'state'
    saved = ocp.StandardCheckpointer().restore(path)
    assert saved['state']['step'] == steps
    params[steps] = saved['target']
  net = t5x_model(words)
  batch = next(read_batches(net))
  for steps in (6, 12):
    assert_loss_is_ours(net, params[steps], batch)
