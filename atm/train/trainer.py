"""A training run: what it is checked for, what it opens, where it begins."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable

import jax

from atm import fileio, messages
from atm.checkpoint import (
  manager,
  paths,
  pretrained,
  reader,
  recovery,
  warm_start,
)
from atm.data import batches as batches_lib
from atm.data import cache, registry, vocabulary_training
from atm.data import vocabulary as vocabulary_lib
from atm.data.streaming import Stream
from atm.data.vocabulary import Vocabulary
from atm.model import config as config_lib
from atm.model import flops as flops_lib
from atm.model import transformer
from atm.parallel import distributed, sharding
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.train import (
  config_checks,
  held_out_loss,
  metric_writer,
  optimizer,
  run_lock,
)
from atm.train import step as step_lib
from atm.train.goodput import Goodput
from atm.train.loop import Loop
from atm.train.metric_logger import Log


@dataclasses.dataclass
class Run:
  """What a finished run leaves for the report."""

  model_dir: str
  step: int
  history: list[dict]
  vocabulary: Vocabulary
  held_out: held_out_loss.HeldOut


@run_lock.held
def train(
  model_dir: str,
  mixture: str,
  lengths: dict[str, int],
  batch_size: int,
  train_steps: int,
  model_config: config_lib.Config,
  optimizer_config: optimizer.Config,
  vocabulary: str | None = None,
  make_mesh: Callable = mesh_lib.make_mesh,
  rules: Rules = Rules(),
  seed: int = 0,
  z_loss: float = 0.0,
  micro_batches: int = 1,
  skip_steps: tuple[tuple[int, int], ...] = (),
  abort_after_nonfinite: int = 10,
  init_from: str | None = None,
  init_encoder: str | None = None,
  freeze_encoder_steps: int = 0,
  row_passes: int = 1,
  cache_dir: str | None = None,
  verify_cache: bool = True,
  stream: bool = False,
  log_every: int = 10,
  eval_every: int = 100,
  eval_rows: int = 64,
  ask_every: int | None = None,
  make_asker: Callable | None = None,
  profile_steps: tuple[int, int] | None = None,
  xla_options: dict | None = None,
  save_every: int = 100,
  checkpoint_dir: str | None = None,
  keep: int | None = 3,
  on_save_error: str = 'stop',
  train_vocabulary: Callable = vocabulary_training.train_vocabulary,
  configure_tasks: Callable = lambda **named: None,
  config_text: str = '',
  say: Callable[[str], None] = print,
) -> Run:
  """Trains until `train_steps`, from the newest intact checkpoint there is.

  A run is a function of its arguments: stopped anywhere and started again it
  gives the same parameters, bit for bit. Two at once in one model_dir are
  refused.

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
    micro_batches: parts of the batch that a step runs one after another, to
      save memory; changes the update by rounding only, and dropout's draws.
    skip_steps: ranges (first, last) of steps, both included and numbered as
      in the log, whose batches are not trained on: such a step changes
      nothing but the number of the step.
    abort_after_nonfinite: so many steps in a row whose loss or gradient is
      not finite, and whose update was skipped therefore, end the run.
    init_from: a fresh run starts from all parameters of this model, a MODEL_DIR
      or a Hugging Face folder, and takes its vocabulary; see
      `config_checks.check_same_model` for what of `model_config` may differ.
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
    ask_every: evaluations of so many steps, and the last, ask the questions of
      a suite, too; a multiple of eval_every; None asks none.
    make_asker: called with (model_config, vocabulary, mesh, rules, say), gives
      what asks, see `during_training.FewShotEvaluator`.
    profile_steps: (first, last) steps that JAX's profiler records into
      model_dir/profile, for TensorBoard or Perfetto.
    xla_options: `changes` of `xla_options.compile_program`, for the step.
    checkpoint_dir: where checkpoints lie if not in model_dir, a folder of
      gs:// say; model_dir keeps its name.
    keep: how many checkpoints; None keeps all.
    on_save_error: 'stop', or 'go_on' without the checkpoint that could not be
      written; the last one must be.
    train_vocabulary: called with (mixture, directory, size) where there is
      none.
    configure_tasks: called before the mixture is looked up, and again with
      vocabulary=FILE before a task is read.
    config_text: kept in model_dir/config.gin and in every checkpoint.
    say: prints a line.

  Raises:
    ValueError: settings that do not fit each other, or another run is at work
      in model_dir; nothing is changed then.
    checksums.DamageError: no checkpoint there is intact; nothing is changed.
    manager.SaveError: one could not be written.
    FloatingPointError: see `abort_after_nonfinite`.
    KeyboardInterrupt: a signal came; the step it ended with is saved.
  """
  good = Goodput()
  # --- Check, before anything is written
  config_checks.check_numbers(
    BATCH_SIZE=batch_size, TRAIN_STEPS=train_steps, LOG_EVERY=log_every,
    EVAL_EVERY=eval_every, SAVE_EVERY=save_every, ROW_PASSES=row_passes,
    ABORT_AFTER_NONFINITE=abort_after_nonfinite,
  )  # fmt: skip
  manager.check_keep(keep)
  config_checks.check_freeze(freeze_encoder_steps)
  messages.check_choice('ON_SAVE_ERROR', on_save_error, manager.ON_ERROR)
  config_checks.check_skip_steps(skip_steps)
  config_checks.check_z_loss(z_loss)
  config_checks.check_profile(profile_steps)
  config_checks.check_ask_every(ask_every, eval_every)
  sizes = registry.Lengths.of(lengths)
  mesh = make_mesh()
  config_checks.check_sizes(mesh, rules, model_config, sizes, batch_size)
  config_checks.check_micro_batches(mesh, rules, batch_size, micro_batches)
  mine = sharding.host_rows(mesh, rules, batch_size)
  say = say if distributed.is_main_process() else lambda text: None
  configure_tasks()
  registry.find_task(mixture)
  if checkpoint_dir is not None:
    distributed.run_main_process_first(
      lambda: paths.set_checkpoint_dir(model_dir, checkpoint_dir)
    )
  latest = reader.latest_step(model_dir)
  config_checks.check_one_start(model_dir, init_from, init_encoder)
  source = None
  if latest is None and init_encoder is not None:
    encoder = warm_start.open_source(init_encoder)
    warm_start.check_encoder(model_config, encoder)
  if latest is None and init_from is not None:
    source = pretrained.open_pretrained(init_from)
    config_checks.check_same_model(model_config, source)

  # --- Vocabulary and data
  if cache_dir is not None and vocabulary is None:
    vocabulary = os.path.join(cache_dir, 'vocabulary')
  words = distributed.run_main_process_first(lambda: open_vocabulary(
    vocabulary, model_dir, mixture, model_config, train_vocabulary, latest,
    source,
  ))  # fmt: skip
  configure_tasks(vocabulary=words.path)
  rows_dir = cache_dir
  if cache_dir is None:
    rows_dir = os.path.join(model_dir, 'rows')
    distributed.run_main_process_first(lambda: cache.build(
      mixture, words.path, lengths, rows_dir,
      ('validation',) if stream else ('train', 'validation'), row_passes,
      configure_tasks=configure_tasks, say=say,
    ))  # fmt: skip
  opened = functools.partial(
    batches_lib.load_parts, mixture, vocabulary=words, lengths=sizes,
    directory=rows_dir,
    # A resumed run compares digests, and every row's own hash when it is read.
    verify=distributed.process_share() if verify_cache and not latest else None,
  )  # fmt: skip
  held_parts = opened(split='validation')
  if stream:
    batches = Stream(mixture, words, sizes, batch_size, seed)
    parts = []
  else:
    parts = opened(split='train', passes=row_passes)
    batches = batches_lib.Batches(parts, words, sizes, batch_size, seed)
    tokens = sum(part.rows.tokens for part in parts)
    rows = sum(len(part.rows) for part in parts)
    say(
      f'{mixture}: {len(parts)} tasks, {tokens:,} tokens in {rows:,} training '
      f'rows, read {train_steps * batch_size / rows:,.1f} times in all'
    )

  # --- Model and state
  meta = {
    'model': dataclasses.asdict(model_config),
    'vocabulary': words.sha256,
    'data': {
      'mixture': mixture,
      'seed': seed,
      'batch_size': batch_size,
      'rows': 'stream' if stream else batches_lib.hash_parts(parts),
    },
    'lengths': lengths,
    'optimizer': optimizer.kind(optimizer_config),
    'skip_steps': [list(steps) for steps in skip_steps],
    'config': config_text,
  }
  distributed.check_processes_agree(
    **{**meta, 'config': latest}, mesh=mesh_text(mesh)
  )
  net = transformer.AlexaTM(model_config)
  flops = flops_between(model_config, batch_size, sizes, freeze_encoder_steps)
  log = Log(say, train_steps, batch_size, sizes, flops, abort_after_nonfinite)
  checkpoints = manager.CheckpointManager(
    model_dir, keep, on_error=on_save_error, log=say
  )

  def begin(then: dict, after: int):
    """The optimizer and the state's shapes of a run after some steps."""
    apart = config_checks.encoder_apart(after, then, freeze_encoder_steps)
    meta['encoder_apart'] = apart
    if 'hf_config' in then:
      meta['hf_config'] = then['hf_config']
    tx = optimizer.make(optimizer_config, apart)
    return tx, step_lib.abstract_state(net, tx, mesh, rules)

  def restored(number: int):
    """(steps done, optimizer, state) of a checkpoint."""
    then = checkpoints.meta(number)
    if checkpoints.has_optimizer(number):
      tx, abstract = begin(then, number)
      config_checks.check_resumable(then, meta)
      log.restore(then['log'])
      trees = checkpoints.restore(number, abstract.to_trees())
      return number, tx, step_lib.State.from_trees(trees)
    if init_from is not None:
      raise ValueError(
        f'INIT_FROM = {init_from!r}, but MODEL_DIR = {model_dir!r} has weights '
        'to start from: leave out INIT_FROM, or use another MODEL_DIR'
      )
    tx, abstract = begin(then, 0)  # imported weights
    state = step_lib.init_state(net, tx, seed, abstract)
    params = checkpoints.restore(number, {'params': abstract.params})['params']
    return 0, tx, state.replace(params=params)

  at, found = recovery.read_newest_intact(checkpoints, restored)
  if found is not None:
    start, tx, state = found
    say(
      f'resumed from step {start:,} in {checkpoints.directory}'
      if start
      else f'starting from the weights in {checkpoints.directory}/{at}'
    )
  else:
    start, (tx, abstract) = 0, begin(source.meta if source else {}, 0)
    state = step_lib.init_state(net, tx, seed, abstract)
    if source is not None:
      params = source.read_params(mesh, rules, as_saved=False)
      state = state.replace(params=params)
      say(f'starting from {init_from}, trained for {source.step:,} steps')
    if init_encoder is not None:
      encoder = warm_start.open_source(init_encoder)
      params = warm_start.init_encoder(
        state.params, model_config, encoder, words, say
      )
      state = state.replace(params=params)
  count = sum(x.size for x in jax.tree.leaves(state.params))
  say(f'model: {count:,} parameters on {mesh_text(mesh)}')
  keep_beside(model_dir, words, meta)
  held_out = held_out_loss.HeldOut(
    net, held_parts, words, sizes, batch_size, seed, eval_rows, mesh, rules
  )
  asks = None
  if ask_every:
    asks = make_asker(model_config, words, mesh, rules, say)
  # A fresh run writes its evaluation at step 0 anew.
  first = distributed.is_main_process()
  rewind = start or -1
  writer = (
    metric_writer.Writer(model_dir, rewind) if first else metric_writer.Silent()
  )
  Loop(
    model_dir, train_steps, log_every, eval_every, save_every, skip_steps,
    freeze_encoder_steps, profile_steps, xla_options,
    update=functools.partial(
      step_lib.train_step, net, tx, seed=seed, z_loss=z_loss,
      micro_batches=micro_batches,
    ),
    batch=lambda number: batches(number, mine),
    batch_size=batch_size, mesh=mesh, rules=rules, held_out=held_out,
    asks=asks, ask_every=ask_every or 1,
    unigram=lambda: held_out_loss.unigram(
      parts, held_out, model_config.vocab_size
    ),
    checkpoints=checkpoints, meta=meta, log=log, writer=writer, good=good,
    say=say,
  ).run(start, state)  # fmt: skip
  return Run(
    model_dir, train_steps, metric_writer.read(model_dir), words, held_out
  )


def flops_between(
  config: config_lib.Config, batch_size: int, lengths, freeze: int
) -> Callable[[int, int], float]:
  """A function: the model FLOPs from after step `first` to step `last`."""
  sizes = (config, batch_size, *lengths.both)
  of_frozen = flops_lib.train_flops(*sizes, frozen=True)
  of_full = flops_lib.train_flops(*sizes)

  def between(first: int, last: int) -> float:
    frozen = max(0, min(last, freeze) - first)
    return frozen * of_frozen + (last - first - frozen) * of_full

  return between


def open_vocabulary(
  path, model_dir, mixture, config, train, latest, source=None
) -> Vocabulary:
  """The vocabulary at `path`, or the run's own, trained where missing.

  A run that starts from `source`, a PretrainedModel, has that one's.

  Raises:
    ValueError: the run has weights (of step `latest`, or the source's) but no
      vocabulary, or one that they were not trained with.
  """
  own = os.path.join(model_dir, 'vocabulary')
  if source is not None:
    words = config_checks.vocabulary_of(source, path)
    if os.path.exists(own) and Vocabulary(own).sha256 != words.sha256:
      raise ValueError(
        f'{own} is not the vocabulary that INIT_FROM = {source.directory!r} '
        'was trained with: remove it, or use another MODEL_DIR'
      )
    config_checks.check_vocabulary(words, config)
    return words
  if path is None and not os.path.exists(own):
    if latest is not None:
      raise ValueError(
        f'MODEL_DIR = {model_dir!r} has weights but no vocabulary: set '
        'VOCABULARY to the one they were trained with'
      )
    train(mixture, own, config.vocab_size)
  words = Vocabulary(own if path is None else path)
  config_checks.check_vocabulary(words, config)
  return words


def mesh_text(mesh) -> str:
  sizes = ' x '.join(f'{name} {n}' for name, n in mesh.shape.items())
  kind, n = jax.devices()[0].platform, jax.process_count()
  over = f' of {n} processes' if n > 1 else ''
  return f'{mesh.size} {kind} device(s){over} ({sizes})'


def keep_beside(model_dir: str, words: Vocabulary, meta: dict) -> None:
  """Puts config.gin and the vocabulary into model_dir, for all hosts."""
  if not distributed.is_main_process():
    return
  fileio.write_atomically(
    os.path.join(model_dir, 'config.gin'), meta['config'].encode()
  )
  path = os.path.join(model_dir, 'vocabulary', vocabulary_lib.MODEL_FILE)
  if not os.path.exists(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fileio.write_atomically(path, words.model)
