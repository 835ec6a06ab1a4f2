"""Training runs small enough for tests, and what is compared of them."""

import functools
import os
import shutil

import jax
import numpy as np

from atm.checkpoint import paths
from atm.model import config as config_lib
from atm.parallel import mesh as mesh_lib
from atm.train import metric_writer, optimizer, trainer
from atm.train.config import TrainConfig

ONE = lambda: mesh_lib.make_mesh(devices=jax.devices()[:1])
EIGHT = functools.partial(mesh_lib.make_mesh, data=2, fsdp=2, tensor=2)


class Stop(Exception):
  """Raised where a run is to be cut off."""


def small_model(**changes) -> config_lib.ModelConfig:
  """Returns a model for the vocabulary of the shipped text."""
  sizes = dict(
    vocab_size=2048, d_model=32, encoder_layers=2, decoder_layers=2,
    encoder_heads=4, decoder_heads=4, encoder_ff=64, decoder_ff=64,
    positions=64, dtype='float32',
  )  # fmt: skip
  return config_lib.ModelConfig(**{**sizes, **changes})


def small_config(directory, steps=8, **changes) -> TrainConfig:
  """Returns the settings of a small run."""
  settings = dict(
    model_dir=str(directory), mixture='udhr', train_steps=steps, batch_size=16,
    lengths={'inputs': 32, 'targets': 32},
    model_config=small_model(dropout=0.1),
    optimizer_config=optimizer.OptimizerConfig(
      learning_rate=1e-3, decay_steps=20
    ),
    make_mesh=ONE, log_every=1, eval_every=4, eval_rows=2, save_every=3,
    keep=None,
  )  # fmt: skip
  return TrainConfig(**{**settings, **changes})


class Trainer:
  """Calls trainer.train with small settings; rows are built once."""

  def __init__(self, vocabulary, folder):
    """Takes the vocabulary, and a folder of rows and of whole runs."""
    self.vocabulary, self.folder = vocabulary, folder

  def __call__(
    self, directory, steps, make_mesh=ONE, stop_at=None, **changes
  ) -> trainer.TrainingResult:
    """Trains in a folder; raises Stop when step `stop_at` is logged."""
    import atm_tasks

    rows, mine = str(self.folder / 'rows'), f'{directory}/rows'
    shared = not {'mixture', 'vocabulary'} & {*changes}
    if shared and os.path.exists(rows):
      shutil.copytree(rows, mine, dirs_exist_ok=True)
    lines = []

    def say(text):
      lines.append(text)
      if stop_at is not None and text.startswith(f'step {stop_at}/'):
        raise Stop

    settings = dict(
      vocabulary=self.vocabulary.path, make_mesh=make_mesh,
      configure_tasks=atm_tasks.configure, say=say,
    )  # fmt: skip
    try:
      run = trainer.train(small_config(directory, steps, **settings | changes))
    finally:
      if shared and os.path.exists(mine) and not os.path.exists(rows):
        shutil.copytree(mine, rows)
    run.lines = lines
    return run

  def whole(self, steps, make_mesh=ONE):
    """Returns the MODEL_DIR of a run that nothing happened to.

    It is the same for all who ask for it; nobody changes it.
    """
    import atm_tasks

    made = self.folder / f'{steps}-{make_mesh().size}'
    if not made.exists():
      begun = f'{made}.begun'
      self(begun, steps, make_mesh, config_text='# the config\n')
      os.rename(begun, made)
      # Not the vocabulary of its rows.
      atm_tasks.configure(vocabulary=self.vocabulary.path)
    return made


def parameters(directory, step, item='params') -> dict[str, np.ndarray]:
  """Returns path -> array of an item of a checkpoint, read by Orbax alone."""
  import orbax.checkpoint as ocp

  path = os.path.join(directory, paths.CHECKPOINTS, str(step), item)
  with ocp.StandardCheckpointer() as reader:
    tree = reader.restore(path)
  return {
    jax.tree_util.keystr(k): np.asarray(v)
    for k, v in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def comparable(directory) -> list[dict]:
  """Returns metrics without those that tell the time."""
  clocks = ('tokens_per_second', 'seconds_per_step', 'mfu', 'goodput')
  return [
    {k: v for k, v in row.items() if k not in clocks}
    for row in metric_writer.read_metrics(str(directory))
  ]


def metrics_at(run, step) -> dict:
  """Returns what was held out at a step, but for the unigram's."""
  row = [r for r in run.history if r['step'] == step][-1]
  return {k: v for k, v in row.items() if k.startswith('eval/loss')}
