"""The state that a run goes on from: restored, of another model, or fresh."""

import dataclasses
import functools

import jax
import optax

from atm import fileio
from atm.checkpoint import new_rows, recovery, warm_start
from atm.checkpoint.manager import CheckpointManager
from atm.checkpoint.pretrained import PretrainedModel, check_float
from atm.data.vocabulary import Vocabulary
from atm.data.vocabulary_extension import find_begins_as
from atm.model.transformer import AlexaTM
from atm.train import config_checks, freezing, optimizer
from atm.train import step as step_lib
from atm.train.config import TrainConfig
from atm.train.metric_logger import MetricLogger
from atm.train.step import State

# One object for equal settings: JAX keeps what it compiled by functions.
_make_optimizer = functools.lru_cache(maxsize=4)(optimizer.make_optimizer)
# Where a run begins: after so many steps, updated by this, in this state.
Start = tuple[int, optax.GradientTransformation, State]
# Of a checkpoint's meta, what a run needs that goes on; see `check_json`.
META = {
  'data': dict,
  'vocabulary': str,
  'log': {'sums': {str: float}},
  'optimizer?': (dict, None),
  'skip_steps?': [[int]],
  'encoder_apart?': bool,
  'freeze?': [str],
}


@dataclasses.dataclass
class StateOpener:
  """Opens the state that a run goes on from, and puts it on a mesh."""

  config: TrainConfig
  model: AlexaTM
  mesh: jax.sharding.Mesh
  checkpoints: CheckpointManager
  # To be kept in the checkpoints; gets `encoder_apart` and `hf_config`.
  meta: dict
  # Goes on from that of the checkpoint.
  log: MetricLogger

  def open(self, source: PretrainedModel | None, words: Vocabulary) -> Start:
    """Returns the newest intact state, or else a fresh one.

    A fresh one has the parameters of `source`, or the encoder of INIT_ENCODER,
    if either is given.
    """
    number, start = recovery.read_newest_intact(self.checkpoints, self._restore)
    if start is None:
      return self._begin(source, words)
    folder = self.checkpoints.directory
    self.config.say(
      f'resumed from step {start[0]:,} in {folder}'
      if start[0]
      else f'starting from the weights in {folder}/{number}'
    )
    return start

  def _begin(self, source: PretrainedModel | None, words: Vocabulary) -> Start:
    """Returns a fresh state."""
    config = self.config
    tx, abstract = self._abstract(source.meta if source else {}, 0)
    state = step_lib.init_state(
      self.model, tx, config.seed, abstract, config.lora
    )
    if source is not None and config.lora is None:
      state = state.replace(params=self._read_source(source, words))
      config.say(
        f'starting from {config.init_from}, trained for {source.step:,} steps'
      )
    if config.init_encoder is not None:
      encoder = warm_start.open_source(config.init_encoder)
      params = warm_start.init_encoder(
        state.params, config.model_config, encoder, words, config.say
      )
      state = state.replace(params=params)
    return 0, tx, state

  def _read_source(self, source: PretrainedModel, words: Vocabulary) -> dict:
    """Returns the parameters of `source`, with rows for what is new."""
    config, old = self.config, source.vocabulary
    rows, there = config.model_config.vocab_size, source.config.vocab_size
    if rows == there and (old is None or words.size == old.size):
      return source.read_params(self.mesh, config.rules, as_saved=False)
    if old is None:
      old = words
      source = dataclasses.replace(source, vocabulary=old)
    new = words.pieces(range(old.size, words.size))
    config.say(new_rows.describe_tokens(new, there, rows))
    return new_rows.read_extended(
      source, config.model_config, words,
      find_begins_as(old, config.new_languages), self.mesh, config.rules,
    )  # fmt: skip

  def _restore(self, number: int) -> Start:
    """Returns the state in a checkpoint, or a fresh one from its weights."""
    config, then = self.config, self.checkpoints.meta(number)
    check_float(then, f'MODEL_DIR = {config.model_dir!r}')
    if self.checkpoints.has_optimizer(number):
      where = f'the meta of step {number:,} in {self.checkpoints.directory}'
      fileio.check_json(then, META, where)
      tx, abstract = self._abstract(then, number)
      config_checks.check_resumable(then, self.meta)
      self.log.restore(then['log'])
      trees = self.checkpoints.restore(number, abstract.to_trees())
      return number, tx, State.from_trees(trees)
    if config.init_from is not None:
      raise ValueError(
        f'INIT_FROM = {config.init_from!r}, but MODEL_DIR = '
        f'{config.model_dir!r} has weights to start from: leave out INIT_FROM, '
        'or use another MODEL_DIR'
      )
    tx, abstract = self._abstract(then, 0)  # imported weights
    state = step_lib.init_state(self.model, tx, config.seed, abstract)
    trees = self.checkpoints.restore(number, {'params': abstract.params})
    return 0, tx, state.replace(params=trees['params'])

  def _abstract(self, then: dict, after: int):
    """Returns the optimizer and abstract state, of meta and steps done."""
    config = self.config
    apart = config_checks.decide_split(after, then, config.freeze_encoder_steps)
    self.meta['encoder_apart'] = apart
    if 'hf_config' in then:
      self.meta['hf_config'] = then['hf_config']
    tx = _make_optimizer(config.optimizer_config, apart, config.freeze)
    abstract = step_lib.abstract_state(
      self.model, tx, self.mesh, config.rules, config.lora
    )
    freezing.check_frozen(config.freeze, abstract.params)
    return tx, abstract
