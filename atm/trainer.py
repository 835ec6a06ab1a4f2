"""The training loop."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
import os
import signal
import threading
import time
from collections.abc import Callable

import jax

from atm import (
  cache,
  checkpoint,
  data,
  evaluate,
  metrics,
  model,
  objectives,
  optimizer,
  sharding,
  step,
  warm_start,
)
from atm import vocabulary as vocabulary_lib
from atm.sharding import Rules
from atm.stream import Stream
from atm.vocabulary import Vocabulary


@dataclasses.dataclass
class Run:
  """What a finished run leaves for the report."""

  model_dir: str
  step: int
  history: list[dict]
  vocabulary: Vocabulary
  held_out: evaluate.HeldOut


def train(
  model_dir: str,
  mixture: str,
  lengths: dict[str, int],
  batch_size: int,
  train_steps: int,
  model_config: model.Config,
  optimizer_config: optimizer.Config,
  vocabulary: str | None = None,
  make_mesh: Callable = sharding.mesh,
  rules: Rules = Rules(),
  seed: int = 0,
  z_loss: float = 0.0,
  init_encoder: str | None = None,
  freeze_encoder_steps: int = 0,
  row_passes: int = 1,
  cache_dir: str | None = None,
  verify_cache: bool = True,
  stream: bool = False,
  log_every: int = 10,
  eval_every: int = 100,
  eval_rows: int = 64,
  save_every: int = 100,
  keep: int | None = 3,
  train_vocabulary: Callable = data.vocab,
  configure_tasks: Callable = lambda **named: None,
  config_text: str = '',
  say: Callable[[str], None] = print,
) -> Run:
  """Trains until `train_steps`, from the newest checkpoint there is.

  A run is a function of its arguments: stopped anywhere and started again it
  gives the same parameters, bit for bit.

  Args:
    model_dir: gets config.gin, vocabulary/, rows/, checkpoints/,
      metrics.jsonl and tensorboard/.
    mixture: a seqio task or mixture, see `data`.
    lengths: {'inputs': S, 'targets': T}.
    batch_size: B, rows a step over all devices.
    train_steps: updates in all.
    model_config: the model.
    optimizer_config: the optimizer.
    vocabulary: a SentencePiece file; None trains model_dir/vocabulary, of the
      model's size, on the mixture's text.
    make_mesh: called without arguments, once devices may be used.
    rules: logical to mesh axes.
    seed: of parameters, shuffle, noise and dropout.
    z_loss: see `loss.cross_entropy`.
    init_encoder: a fresh run's encoder starts from this MODEL_DIR or Hugging
      Face folder, see `warm_start`.
    freeze_encoder_steps: updates, from the first, that leave the encoder and
      its embedding as they are, see `step.train_step`. The paper freezes its
      pre-trained encoder for the first 100,000 or so. May be another number
      when a run is resumed, unless a run that began with 0 were to freeze now.
    row_passes: `passes` of `cache.build`.
    cache_dir: rows that `cache.build` made; None builds model_dir/rows.
    verify_cache: compare the checksums of the rows' files before the first
      step, shared by the hosts; a resumed run compares what the manifests say
      with its checkpoint.
    stream: train on seqio's own stream of the mixture, see `Stream`; only
      the validation split has rows.
    log_every, eval_every, save_every: in steps.
    eval_rows: held-out rows of each task in an evaluation.
    keep: how many checkpoints; None keeps all.
    train_vocabulary: called with (mixture, directory, size) where there is
      none.
    configure_tasks: called before the mixture is looked up, and again with
      vocabulary=FILE before a task is read.
    config_text: kept in model_dir/config.gin and in every checkpoint.
    say: prints a line.

  Raises:
    ValueError: settings that do not fit each other; nothing is changed then.
  """
  # --- Check, before anything is written
  check_numbers(
    BATCH_SIZE=batch_size, TRAIN_STEPS=train_steps, LOG_EVERY=log_every,
    EVAL_EVERY=eval_every, SAVE_EVERY=save_every, KEEP=keep or 1,
    ROW_PASSES=row_passes,
  )  # fmt: skip
  check_freeze(freeze_encoder_steps)
  sizes = data.Lengths.of(lengths)
  mesh = make_mesh()
  check_sizes(mesh, rules, model_config, sizes, batch_size)
  hosts = (jax.process_index(), jax.process_count())
  host_rows = data.host_rows(batch_size, *hosts)
  configure_tasks()
  data.find(mixture)

  latest = checkpoint.latest_step(model_dir)
  if latest is None and init_encoder is not None:
    warm_start.check(model_config, init_encoder)

  # --- Vocabulary and data
  if cache_dir is not None and vocabulary is None:
    vocabulary = os.path.join(cache_dir, 'vocabulary')
  words = open_vocabulary(
    vocabulary, model_dir, mixture, model_config, train_vocabulary, latest
  )
  configure_tasks(vocabulary=words.path)
  rows_dir = cache_dir or os.path.join(model_dir, 'rows')
  if cache_dir is None:
    cache.build(
      mixture, words.path, lengths, rows_dir,
      ('validation',) if stream else ('train', 'validation'), row_passes,
      configure_tasks=configure_tasks, say=say,
    )  # fmt: skip
  opened = functools.partial(
    data.load, mixture, vocabulary=words, lengths=sizes, directory=rows_dir,
    # A resumed run compares digests, and every row's own hash when it is read.
    verify=hosts if verify_cache and not latest else None,
  )  # fmt: skip
  held_parts = opened(split='validation')
  if stream:
    batches = Stream(mixture, words, sizes, batch_size, seed)
    parts = []
  else:
    parts = opened(split='train', passes=row_passes)
    batches = data.Batches(parts, words, sizes, batch_size, seed)
    tokens = sum(part.rows.tokens for part in parts)
    say(f'{mixture}: {len(parts)} tasks, {tokens:,} tokens of training rows')

  # --- Model and state
  checkpoints = checkpoint.Checkpoints(model_dir, keep)
  start = latest or 0
  then = checkpoints.meta(start) if start else {}
  apart = encoder_apart(start, then, freeze_encoder_steps)
  net = model.AlexaTM(model_config)
  tx = optimizer.make(optimizer_config, apart)
  abstract = step.abstract_state(net, tx, mesh, rules)
  count = sum(x.size for x in jax.tree.leaves(abstract.params))
  say(f'model: {count:,} parameters on {mesh_text(mesh)}')
  meta = {
    'model': dataclasses.asdict(model_config),
    'vocabulary': words.sha256,
    'data': {
      'mixture': mixture,
      'seed': seed,
      'batch_size': batch_size,
      'rows': 'stream' if stream else data.digest(parts),
    },
    'lengths': lengths,
    'encoder_apart': apart,
    'config': config_text,
  }
  flops = flops_between(model_config, batch_size, sizes, freeze_encoder_steps)
  log = Log(say, train_steps, batch_size, sizes, flops)
  if start:
    check_resumable(then, meta)
    log.restore(then['log'])
    state = checkpoints.restore(start, abstract)
    say(f'resumed from step {start:,} in {checkpoints.directory}')
  else:
    state = step.init_state(net, tx, seed, abstract)
    if latest is not None:  # imported weights, without an optimizer
      params = checkpoints.restore_params(latest, abstract.params)
      state = state.replace(params=params)
      say(f'starting from the weights in {checkpoints.directory}/{latest}')
    elif init_encoder is not None:
      params = warm_start.encoder(
        state.params, model_config, init_encoder, words, say
      )
      state = state.replace(params=params)
  keep_beside(model_dir, words, meta)
  writer = metrics.Writer(model_dir, rewind_to=start)
  held_out = evaluate.HeldOut(
    net, held_parts, words, sizes, batch_size, seed, eval_rows, mesh, rules
  )

  def evaluate_now(done: int):
    row = held_out(state.params)
    if not done:
      row |= evaluate.unigram(parts, held_out, model_config.vocab_size)
    writer.write(done, row)
    losses = (
      f'{name} {row[key]:.3f}'
      for name in objectives.NAMES
      if (key := f'eval/loss/{name}') in row
    )
    say(f'step {done:,} held out: ' + ', '.join(losses))

  def save(done: int):
    position = {**meta['data'], 'step': done}
    now = {**meta, 'data': position, 'log': log.partial()}
    checkpoints.save(done, state, now)

  def compiled(batch: dict, frozen: bool):
    clock = time.perf_counter()
    update = functools.partial(
      step.train_step, net, tx, seed=seed, z_loss=z_loss, frozen=frozen
    )
    update = jax.jit(update, donate_argnums=0).lower(state, batch).compile()
    until = f' with the encoder frozen to step {freeze_encoder_steps:,}'
    seconds = time.perf_counter() - clock
    say(f'compiled{until if frozen else ""} in {seconds:.1f} s')
    return update

  # --- Loop
  metrics.peak_flops()  # measured now, on one device, not within a step
  with contextlib.ExitStack() as finally_:
    finally_.enter_context(sharding.use(mesh, rules))
    finally_.callback(writer.close)
    finally_.callback(checkpoints.close)
    stop = finally_.enter_context(stop_signals())
    if not start:
      evaluate_now(0)
    mine = lambda number: batches(number, host_rows)
    feed = data.ahead(mine, start, train_steps)
    finally_.callback(feed.close)
    for done, host_batch in enumerate(feed, start + 1):
      batch = sharding.place(host_batch, mesh, rules)
      if done == start + 1:
        update = compiled(batch, frozen=start < freeze_encoder_steps)
        log.begin(start)
      elif done - 1 == freeze_encoder_steps:
        jax.block_until_ready(state)  # its time is the frozen steps'
        with log.pause():
          say(f'step {done - 1:,}: from here on the encoder trains too')
          update = compiled(batch, frozen=False)
      state, values = update(state, batch)
      log.add(values)
      if done % log_every == 0 or done == train_steps:
        writer.write(done, log.emit(done))
      with log.pause():
        if done % eval_every == 0 or done == train_steps:
          evaluate_now(done)
        stopping = bool(stop) and done < train_steps
        if done % save_every == 0 or done == train_steps or stopping:
          save(done)
      if stopping:
        say(f'stopped and saved at step {done:,}; the same command goes on.')
        raise KeyboardInterrupt
  return Run(model_dir, train_steps, metrics.read(model_dir), words, held_out)


@contextlib.contextmanager
def stop_signals():
  """Yields a list that is non-empty once SIGINT or SIGTERM has come.

  A second signal acts as it did before.
  """
  came: list[int] = []
  if threading.current_thread() is not threading.main_thread():
    yield came
    return
  before = {}

  def handler(number, frame):
    came.append(number)
    signal.signal(number, before[number])

  for number in (signal.SIGINT, signal.SIGTERM):
    before[number] = signal.signal(number, handler)
  try:
    yield came
  finally:
    for number, old in before.items():
      signal.signal(number, old)


def check_numbers(**values) -> None:
  """Raises ValueError unless all are whole numbers above 0."""
  for name, value in values.items():
    if not isinstance(value, int) or value < 1:
      raise ValueError(f'{name} = {value!r}: expected a whole number above 0')


def check_freeze(steps) -> None:
  """Raises ValueError unless `steps` is a whole number, 0 or more."""
  number = isinstance(steps, int | float) and not isinstance(steps, bool)
  if not number or not isinstance(steps, int) or steps < 0:
    text = f'FREEZE_ENCODER_STEPS = {steps!r}: expected a whole number from 0'
    if number and math.isfinite(steps):
      text += f'. Did you mean {max(0, round(steps))}?'
    raise ValueError(text)


def encoder_apart(start: int, then: dict, freeze: int) -> bool:
  """Whether the optimizer keeps the encoder's state apart; as the run began.

  Args:
    start: the checkpoint's step; 0: there is none.
    then: its meta.
    freeze: FREEZE_ENCODER_STEPS.

  Raises:
    ValueError: a run that keeps it with the rest's is to freeze the encoder.
  """
  if not start:
    return freeze > 0
  apart = then.get('encoder_apart', False)
  if freeze > start and not apart:
    raise ValueError(
      f'FREEZE_ENCODER_STEPS = {freeze}, but this MODEL_DIR began with 0 and '
      f'has trained its encoder for {start} steps: use 0, or another MODEL_DIR'
    )
  return apart


def flops_between(
  config: model.Config, batch_size: int, lengths, freeze: int
) -> Callable[[int, int], float]:
  """A function: the model FLOPs from after step `first` to step `last`."""
  sizes = (config, batch_size, *lengths.both)
  of_frozen = metrics.train_flops(*sizes, frozen=True)
  of_full = metrics.train_flops(*sizes)

  def between(first: int, last: int) -> float:
    frozen = max(0, min(last, freeze) - first)
    return frozen * of_frozen + (last - first - frozen) * of_full

  return between


def open_vocabulary(
  path, model_dir, mixture, config, train, latest
) -> Vocabulary:
  """The vocabulary at `path`, or the run's own, trained where missing.

  Raises:
    ValueError: the run has weights (of step `latest`) but no vocabulary.
  """
  own = os.path.join(model_dir, 'vocabulary')
  if path is None and not os.path.exists(own):
    if latest is not None:
      raise ValueError(
        f'MODEL_DIR = {model_dir!r} has weights but no vocabulary: set '
        'VOCABULARY to the one they were trained with'
      )
    train(mixture, own, config.vocab_size)
  words = Vocabulary(path or own)
  check_vocabulary(words, config)
  return words


def mesh_text(mesh) -> str:
  sizes = ' x '.join(f'{name} {n}' for name, n in mesh.shape.items())
  return f'{mesh.size} {jax.devices()[0].platform} device(s) ({sizes})'


def check_sizes(mesh, rules, config: model.Config, lengths, batch_size: int):
  """Raises ValueError for sizes that the mesh or the model cannot hold."""
  for name, n in (('inputs', lengths.inputs), ('targets', lengths.targets)):
    if n > config.positions:
      raise ValueError(
        f'TASK_FEATURE_LENGTHS[{name!r}] = {n} is more than '
        f'Config.positions = {config.positions}'
      )
  batch = {'batch': ('BATCH_SIZE', batch_size)}
  sharding.check_divides(mesh, rules, batch)
  step.check_mesh(mesh, rules, config)


def check_vocabulary(words: Vocabulary, config: model.Config) -> None:
  """Raises ValueError where the model does not fit the vocabulary."""
  if words.size > config.vocab_size:
    raise ValueError(
      f'the vocabulary {words.path} has {words.size} pieces, more than '
      f'Config.vocab_size = {config.vocab_size}'
    )
  for name, piece in (
    ('pad_id', words.pad_id),
    ('start_id', words.bos_id),
    ('end_id', words.eos_id),
  ):
    if getattr(config, name) != piece:
      raise ValueError(
        f'Config.{name} = {getattr(config, name)}, but it is {piece} in the '
        f'vocabulary {words.path}'
      )


def check_resumable(then: dict, now: dict) -> None:
  """Raises ValueError where the data would not go on as it began."""
  names = {'mixture': 'MIXTURE_OR_TASK_NAME'}
  for key, value in now['data'].items():
    before = then['data'].get(key, value)
    if before != value and key == 'rows':
      raise ValueError(
        'the rows of tokens are not those that this MODEL_DIR was trained on '
        'so far: use the same CACHE_DIR, ROW_PASSES and STREAM, or another '
        'MODEL_DIR'
      )
    if before != value:
      raise ValueError(
        f'{names.get(key, key.upper())} = {value!r}, but this MODEL_DIR was '
        f'trained with {before!r}: use that, or another MODEL_DIR'
      )
  if then['vocabulary'] != now['vocabulary']:
    raise ValueError(
      'the checkpoint was trained with another vocabulary than this run has: '
      'use the one in MODEL_DIR/vocabulary, or another MODEL_DIR'
    )


def keep_beside(model_dir: str, words: Vocabulary, meta: dict) -> None:
  """Puts config.gin and the vocabulary into model_dir."""
  with open(os.path.join(model_dir, 'config.gin'), 'w') as f:
    f.write(meta['config'])
  path = os.path.join(model_dir, 'vocabulary', vocabulary_lib.MODEL_FILE)
  if not os.path.exists(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as f:
      f.write(words.model)


class Log:
  """Sums metrics between log lines, with rates and time left.

  Keeps at most one step unread: adding a step's metrics waits for the step
  before it.
  """

  def __init__(
    self,
    say: Callable[[str], None],
    last: int,
    batch_size: int,
    lengths,
    flops: Callable[[int, int], float],
  ):
    """Takes the run's last step and its `flops_between`."""
    self.say, self.last, self.flops = say, last, flops
    self.places = {
      'input': batch_size * lengths.inputs,
      'target': batch_size * lengths.targets,
    }
    self.unread, self.latest = None, {}
    self.sums, self.steps = collections.Counter(), 0
    self.earlier = (0, 0.0)  # steps and tokens that this process did not do

  def begin(self, done: int) -> None:
    """Starts the clock, `done` steps into the run."""
    self.first, self.clock, self.spent = done, time.perf_counter(), 0.0

  @contextlib.contextmanager
  def pause(self):
    """Leaves what happens inside out of the rates."""
    start = time.perf_counter()
    yield
    self.clock += time.perf_counter() - start

  def add(self, values: dict) -> None:
    """Takes a dispatched step's metrics; waits for the step before it."""
    self._read()
    self.unread = values

  def _read(self) -> None:
    if self.unread is None:
      return
    self.latest = {k: float(v) for k, v in jax.device_get(self.unread).items()}
    self.sums.update(self.latest)
    self.steps += 1
    self.unread = None

  def partial(self) -> dict:
    """What a checkpoint keeps, so that a resumed log goes on exactly."""
    self._read()
    return {'sums': dict(self.sums), 'steps': self.steps}

  def restore(self, partial: dict) -> None:
    self.sums = collections.Counter(partial['sums'])
    self.steps = partial['steps']
    self.earlier = (self.steps, self._tokens())

  def _tokens(self) -> float:
    return self.sums['tokens/input'] + self.sums['tokens/target']

  def emit(self, done: int) -> dict[str, float]:
    """Prints a line, returns the row for metrics.jsonl, and starts anew."""
    self._read()
    seconds = time.perf_counter() - self.clock
    self.clock += seconds
    self.spent += seconds
    row = self._row(done, seconds)
    speed = self.flops(self.first, done) / self.spent
    left = self.flops(done, self.last) / speed
    by_name = ', '.join(
      f'{k[5:]} {v:.3f}' for k, v in row.items() if k.startswith('loss/')
    )
    self.say(
      f'step {done:,}/{self.last:,}  loss {row["loss"]:.3f} ({by_name})  '
      f'{row["tokens_per_second"]:,.0f} tokens/s  '
      + (f'mfu {row["mfu"]:.0%}  ' if 'mfu' in row else '')
      + f'{metrics.clock_text(left)} left'
    )
    self.sums, self.steps, self.earlier = collections.Counter(), 0, (0, 0.0)
    return row

  def _row(self, done: int, seconds: float) -> dict[str, float]:
    s, targets = self.sums, max(1.0, self.sums['tokens/target'])
    row = {
      'loss': s['sum/loss'] / targets,
      'accuracy': s['sum/accuracy'] / targets,
      'z_loss': s['sum/z_loss'] / targets,
    }
    for name in objectives.NAMES:
      if s[f'weight/loss/{name}']:
        total = s[f'sum/loss/{name}']
        row[f'loss/{name}'] = total / s[f'weight/loss/{name}']
    for name in ('grad_norm', 'param_norm', 'learning_rate'):
      row[name] = self.latest[name]
    for side, places in self.places.items():
      row[f'tokens/{side}'] = s[f'tokens/{side}']
      row[f'padding/{side}'] = 1 - s[f'tokens/{side}'] / (places * self.steps)
    steps, tokens = self.steps - self.earlier[0], self._tokens()
    row['tokens_per_second'] = (tokens - self.earlier[1]) / seconds
    row['seconds_per_step'] = seconds / steps
    if peak := metrics.peak_flops():
      row['mfu'] = self.flops(done - steps, done) / seconds / peak
    return row
