"""The training loop."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable

import jax

from atm import (
  checkpoint,
  data,
  evaluate,
  metrics,
  model,
  optimizer,
  sharding,
  step,
)
from atm import vocabulary as vocabulary_lib
from atm.sharding import Rules
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
  row_passes: int = 1,
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
    row_passes: see `data.load`.
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
  for name, value in (
    ('BATCH_SIZE', batch_size), ('TRAIN_STEPS', train_steps),
    ('LOG_EVERY', log_every), ('EVAL_EVERY', eval_every),
    ('SAVE_EVERY', save_every), ('KEEP', keep or 1),
  ):  # fmt: skip
    if not isinstance(value, int) or value < 1:
      raise ValueError(f'{name} = {value!r}: expected a whole number above 0')
  lengths_ = data.Lengths.of(lengths)
  mesh = make_mesh()
  check_sizes(mesh, rules, model_config, lengths_, batch_size)
  hosts = (jax.process_index(), jax.process_count())
  host_rows = data.host_rows(batch_size, *hosts)
  configure_tasks()
  data.find(mixture)

  # --- Vocabulary and data
  own = os.path.join(model_dir, 'vocabulary')
  if vocabulary is None and not os.path.exists(own):
    train_vocabulary(mixture, own, model_config.vocab_size)
  words = Vocabulary(vocabulary or own)
  check_vocabulary(words, model_config)
  configure_tasks(vocabulary=words.path)
  rows_dir = os.path.join(model_dir, 'rows')
  load = functools.partial(
    data.load, mixture, vocabulary=words, lengths=lengths_, directory=rows_dir
  )
  parts = load('train', passes=row_passes, say=say)
  held_parts = load('validation', say=say)
  batches = data.Batches(parts, words, lengths_, batch_size, seed)
  tokens = sum(part.rows.tokens for part in parts)
  say(f'{mixture}: {len(parts)} tasks, {tokens:,} tokens of training rows')

  # --- Model and state
  net = model.AlexaTM(model_config)
  tx = optimizer.make(optimizer_config)
  abstract = step.abstract_state(net, tx, mesh, rules)
  count = sum(x.size for x in jax.tree.leaves(abstract.params))
  say(f'model: {count:,} parameters on {mesh_text(mesh)}')
  checkpoints = checkpoint.Checkpoints(model_dir, keep)
  start = checkpoints.latest()
  if start is None:
    start, state = 0, step.init_state(net, tx, seed, abstract)
  else:
    check_resumable(checkpoints.meta(start), words, seed, batch_size, mixture)
    state = checkpoints.restore(start, abstract)
    say(f'resumed from step {start:,} in {checkpoints.directory}')
  meta = {
    'model': dataclasses.asdict(model_config),
    'vocabulary': words.sha256,
    'data': {'mixture': mixture, 'seed': seed, 'batch_size': batch_size},
    'lengths': lengths,
    'config': config_text,
  }
  keep_beside(model_dir, words, meta)

  # --- Compile
  held_out = evaluate.HeldOut(
    net, held_parts, words, lengths_, batch_size, seed, eval_rows, mesh, rules
  )
  update = jax.jit(
    functools.partial(step.train_step, net, tx, seed=seed, z_loss=z_loss),
    donate_argnums=0,
  )
  writer = metrics.Writer(model_dir, rewind_to=start)
  log = Log(
    writer, say, train_steps, batch_size, lengths_,
    metrics.train_flops(model_config, batch_size, *lengths_.sizes),
  )  # fmt: skip

  def evaluate_now(number):
    row = held_out(state.params)
    if number == 0:
      row |= evaluate.unigram(parts, held_out, model_config.vocab_size)
    writer.write(number, row)
    say(
      f'step {number:,} held out: '
      + ', '.join(
        f'{name} {row[f"eval/loss/{name}"]:.3f}'
        for name in objective_names(parts)
        if f'eval/loss/{name}' in row
      )
    )

  def save(number):
    position = {**meta['data'], 'step': number}
    checkpoints.save(number, state, {**meta, 'data': position})

  # --- Loop: at most one step ahead of what has been read back
  with sharding.use(mesh, rules), contextlib.ExitStack() as finally_:
    finally_.callback(writer.close)
    finally_.callback(checkpoints.close)
    if start == 0:
      evaluate_now(0)
    pending = None
    done = start
    try:
      if start < train_steps:
        first = sharding.place(batches(start, host_rows), mesh, rules)
        clock = time.perf_counter()
        update = update.lower(state, first).compile()
        say(f'compiled in {time.perf_counter() - clock:.1f} s')
        log.begin(start)
      for number in range(start, train_steps):
        batch = sharding.place(batches(number, host_rows), mesh, rules)
        state, values = update(state, batch)
        done = number + 1
        if pending is not None:
          log.add(number, jax.device_get(pending))
        pending = values
        at_end = done == train_steps
        if done % log_every == 0 or at_end:
          log.add(done, jax.device_get(pending))
          pending = None
          log.emit(done)
        if done % eval_every == 0 or at_end:
          with log.pause():
            evaluate_now(done)
        if done % save_every == 0 or at_end:
          with log.pause():
            save(done)
    except KeyboardInterrupt:
      if done % save_every and done > start:
        save(done)
      say(f'stopped at step {done:,} and saved; the same command goes on.')
      raise
  return Run(model_dir, train_steps, metrics.read(model_dir), words, held_out)


def objective_names(parts) -> list[str]:
  return sorted({part.objective.name for part in parts}, reverse=True)


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
  sharding.check_divides(mesh, rules, {
    'batch': ('BATCH_SIZE', batch_size),
    'embed': ('Config.d_model', config.d_model),
    'vocab': ('Config.vocab_size', config.vocab_size),
  })  # fmt: skip
  for stack in ('encoder', 'decoder'):
    sharding.check_divides(mesh, rules, {
      'heads': (f'Config.{stack}_heads', getattr(config, f'{stack}_heads')),
      'mlp': (f'Config.{stack}_ff', getattr(config, f'{stack}_ff')),
    })  # fmt: skip


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


def check_resumable(meta, words, seed, batch_size, mixture) -> None:
  """Raises ValueError where the data would not go on as it began."""
  now = {'mixture': mixture, 'seed': seed, 'batch_size': batch_size}
  names = {'mixture': 'MIXTURE_OR_TASK_NAME', 'batch_size': 'BATCH_SIZE'}
  for key, value in now.items():
    then = meta['data'][key]
    if then != value:
      raise ValueError(
        f'{names.get(key, key.upper())} = {value!r}, but this MODEL_DIR was '
        f'trained with {then!r}: use that, or another MODEL_DIR'
      )
  if meta['vocabulary'] != words.sha256:
    raise ValueError(
      f'the checkpoint was trained with another vocabulary than {words.path}'
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
  """Sums metrics between log lines; writes them with rates and time left."""

  def __init__(self, writer, say, last: int, batch_size, lengths, flops):
    self.writer, self.say, self.last, self.flops = writer, say, last, flops
    self.slots = {
      'input': batch_size * lengths.inputs,
      'target': batch_size * lengths.targets,
    }
    self.sums: dict[str, float] = collections.defaultdict(float)
    self.steps, self.latest = 0, {}

  def begin(self, number: int) -> None:
    self.first, self.clock = number, time.perf_counter()
    self.spent = 0.0  # seconds in steps since `first`

  @contextlib.contextmanager
  def pause(self):
    """Leaves what happens inside out of the rates."""
    start = time.perf_counter()
    yield
    self.clock += time.perf_counter() - start

  def add(self, number: int, values: dict) -> None:
    """Adds the metrics of a step, read back."""
    self.steps += 1
    for name, value in values.items():
      self.sums[name] += float(value)
    self.latest = {k: float(v) for k, v in values.items()}

  def emit(self, number: int) -> None:
    seconds = time.perf_counter() - self.clock
    self.clock += seconds
    self.spent += seconds
    row = self._row(seconds)
    self.writer.write(number, row)
    left = self.spent / (number - self.first) * (self.last - number)
    by_name = ', '.join(
      f'{k[5:]} {v:.3f}' for k, v in row.items() if k.startswith('loss/')
    )
    self.say(
      f'step {number:,}/{self.last:,}  loss {row["loss"]:.3f} ({by_name})  '
      f'{row["tokens_per_second"]:,.0f} tokens/s  '
      + (f'mfu {row["mfu"]:.0%}  ' if 'mfu' in row else '')
      + f'{int(left) // 60}:{int(left) % 60:02d} left'
    )
    self.sums.clear()
    self.steps = 0

  def _row(self, seconds: float) -> dict[str, float]:
    s, targets = self.sums, max(1.0, self.sums['tokens/target'])
    row = {
      'loss': s['sum/loss'] / targets,
      'accuracy': s['sum/accuracy'] / targets,
      'z_loss': s['sum/z_loss'] / targets,
    }
    for name in sorted(s):
      if name.startswith('weight/loss/') and s[name]:
        name = name.removeprefix('weight/')
        row[name] = s[f'sum/{name}'] / s[f'weight/{name}']
    for name in ('grad_norm', 'param_norm', 'learning_rate'):
      row[name] = self.latest[name]
    for side, slots in self.slots.items():
      row[f'tokens/{side}'] = s[f'tokens/{side}']
      row[f'padding/{side}'] = 1 - s[f'tokens/{side}'] / (slots * self.steps)
    real = s['tokens/input'] + s['tokens/target']
    row['tokens_per_second'] = real / seconds
    row['seconds_per_step'] = seconds / self.steps
    if peak := metrics.peak_flops():
      row['mfu'] = self.flops * self.steps / seconds / peak
    return row
