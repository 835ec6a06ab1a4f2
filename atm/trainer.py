"""The training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable

import jax

from atm import (
  cache,
  checkpoint,
  checks,
  data,
  evaluate,
  hosts,
  interrupts,
  metrics,
  model,
  objectives,
  optimizer,
  sharding,
  step,
  warm_start,
)
from atm import vocabulary as vocabulary_lib
from atm.progress import Log
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
  checks.check_numbers(
    BATCH_SIZE=batch_size, TRAIN_STEPS=train_steps, LOG_EVERY=log_every,
    EVAL_EVERY=eval_every, SAVE_EVERY=save_every, KEEP=keep or 1,
    ROW_PASSES=row_passes,
  )  # fmt: skip
  checks.check_freeze(freeze_encoder_steps)
  sizes = data.Lengths.of(lengths)
  mesh = make_mesh()
  checks.check_sizes(mesh, rules, model_config, sizes, batch_size)
  mine = sharding.host_rows(mesh, rules, batch_size)
  say = say if hosts.is_first() else lambda text: None
  configure_tasks()
  data.find(mixture)

  latest = checkpoint.latest_step(model_dir)
  if latest is None and init_encoder is not None:
    warm_start.check(model_config, init_encoder)

  # --- Vocabulary and data
  if cache_dir is not None and vocabulary is None:
    vocabulary = os.path.join(cache_dir, 'vocabulary')
  words = hosts.first_then_all(lambda: open_vocabulary(
    vocabulary, model_dir, mixture, model_config, train_vocabulary, latest
  ))  # fmt: skip
  configure_tasks(vocabulary=words.path)
  rows_dir = cache_dir or os.path.join(model_dir, 'rows')
  if cache_dir is None:
    hosts.first_then_all(lambda: cache.build(
      mixture, words.path, lengths, rows_dir,
      ('validation',) if stream else ('train', 'validation'), row_passes,
      configure_tasks=configure_tasks, say=say,
    ))  # fmt: skip
  opened = functools.partial(
    data.load, mixture, vocabulary=words, lengths=sizes, directory=rows_dir,
    # A resumed run compares digests, and every row's own hash when it is read.
    verify=hosts.share() if verify_cache and not latest else None,
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
  apart = checks.encoder_apart(start, then, freeze_encoder_steps)
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
  hosts.check_same(**{**meta, 'config': latest}, mesh=mesh_text(mesh))
  flops = flops_between(model_config, batch_size, sizes, freeze_encoder_steps)
  log = Log(say, train_steps, batch_size, sizes, flops)
  if start:
    checks.check_resumable(then, meta)
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
  writer = metrics.Silent()
  if hosts.is_first():
    writer = metrics.Writer(model_dir, rewind_to=start)
  held_out = evaluate.HeldOut(
    net, held_parts, words, sizes, batch_size, seed, eval_rows, mesh, rules
  )

  def evaluate_now(done: int):
    row = held_out(state.params)
    if not done and hosts.is_first():
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
    hosts.wait_for_all()  # Gloo's first meeting on a CPU waits 30 s and fails
    return update

  # --- Loop
  metrics.peak_flops()  # measured now, on one device, not within a step
  with contextlib.ExitStack() as finally_:
    finally_.enter_context(sharding.use(mesh, rules))
    finally_.callback(writer.close)
    finally_.callback(checkpoints.close)
    stop = finally_.enter_context(interrupts.stop_signals())
    if not start:
      evaluate_now(0)
    feed = data.ahead(lambda n: batches(n, mine), start, train_steps)
    finally_.callback(feed.close)
    for done, host_batch in enumerate(feed, start + 1):
      batch = sharding.place(host_batch, mesh, rules, batch_size)
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
  checks.check_vocabulary(words, config)
  return words


def mesh_text(mesh) -> str:
  sizes = ' x '.join(f'{name} {n}' for name, n in mesh.shape.items())
  kind, n = jax.devices()[0].platform, jax.process_count()
  over = f' of {n} processes' if n > 1 else ''
  return f'{mesh.size} {kind} device(s){over} ({sizes})'


def keep_beside(model_dir: str, words: Vocabulary, meta: dict) -> None:
  """Puts config.gin and the vocabulary into model_dir, for all hosts."""
  if not hosts.is_first():
    return
  with open(os.path.join(model_dir, 'config.gin'), 'w') as f:
    f.write(meta['config'])
  path = os.path.join(model_dir, 'vocabulary', vocabulary_lib.MODEL_FILE)
  if not os.path.exists(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as f:
      f.write(words.model)
