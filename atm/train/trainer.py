"""A training run: it checks its settings, opens its inputs and state, loops."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import jax

from atm import messages
from atm.checkpoint import config_json, paths, pretrained, warm_start
from atm.checkpoint.manager import CheckpointManager
from atm.checkpoint.pretrained import PretrainedModel
from atm.data import mixture_stats, task_registry
from atm.data.vocabulary import Vocabulary
from atm.model import compiler_check, lora, parameters
from atm.model.transformer import AlexaTM
from atm.parallel import distributed, sharding, xla_options
from atm.parallel import mesh as mesh_lib
from atm.train import (
  config_checks,
  held_out_loss,
  lora_base,
  optimizer,
  trackers,
)
from atm.train import step as step_lib
from atm.train.best_tracker import check_best_metric
from atm.train.config import TrainConfig
from atm.train.goodput import Goodput
from atm.train.initial_state import StateOpener
from atm.train.inputs import Inputs, open_inputs
from atm.train.loop import Loop
from atm.train.metric_logger import MetricLogger
from atm.train.run_folder import RunFolder


@dataclasses.dataclass
class TrainingResult:
  """What a finished run leaves for the report."""

  model_dir: str
  step: int
  history: list[dict]
  vocabulary: Vocabulary
  held_out: held_out_loss.HeldOutLoss
  stopped_early: bool = False


def train(config: TrainConfig) -> TrainingResult:
  """Trains until `train_steps`, from the newest intact checkpoint there is.

  A run is a function of its settings: stopped anywhere and started again it
  gives the same parameters, bit for bit.

  Raises:
    ValueError: settings that do not fit the mesh, the model to start from or
      the checkpoint, or another run is at work in model_dir; nothing is changed
      then. Or XLA computes wrongly, see `compiler_check`; nothing is trained.
    checksums.DamageError: no checkpoint there is intact; nothing is changed.
    manager.SaveError: one could not be written.
    FloatingPointError: see `abort_after_nonfinite`.
    KeyboardInterrupt: a signal came; the step it ended with is saved.
  """
  goodput = Goodput()
  trackers.check_tracker_package(config.tracker)
  xla_options.set_flags()  # before the devices are asked for
  if not distributed.is_main_process():
    config = dataclasses.replace(config, say=lambda text: None)
  with contextlib.ExitStack() as held:
    folder = held.enter_context(RunFolder(config.model_dir).lock())
    held.enter_context(messages.note_work(folder.describe_progress))
    mesh, rules = config.make_mesh(), config.rules
    config_checks.check_sizes(
      mesh, rules, config.model_config, config.sizes, config.batch_size,
      config.micro_batches,
    )  # fmt: skip
    config_checks.check_platform(mesh, config.model_config)
    sharding.host_rows(mesh, rules, config.batch_size)  # raises unless divided
    source = find_source(config, folder)
    adapted = find_adapted(config, folder)
    held.enter_context(folder.lock_checkpoints())
    inputs = open_inputs(config, folder, source)
    words = inputs.vocabulary
    meta = describe(config, inputs)
    same = {**meta, 'config': folder.step_found, 'mesh': mesh_text(mesh)}
    distributed.check_processes_agree(**same)
    compiler_check.check_compiler(
      config.model_config, options=config.xla_options
    )
    model, log = AlexaTM(config.model_config), MetricLogger(config)
    checkpoints = CheckpointManager(
      folder.path, config.keep, config.on_save_error, log=config.say
    )
    step, tx, state = StateOpener(
      config, model, mesh, checkpoints, meta, log
    ).open(source, words)
    print_export_warning(config, meta)
    base = open_base(config, folder, adapted, mesh, state.params)
    generation = choose_generation_config(source, words), config.generation
    folder.save_setup(config.config_text, words, *generation)
    folder.save_data(config.mixture, mixture_stats.describe_parts(inputs.parts))

    held_out = held_out_loss.HeldOutLoss(config, model, inputs, mesh, base)
    ask = config.ask_every and config.make_asker(
      config.model_config, words, mesh, rules, config.say
    )
    check_best_metric(config, held_out, ask)
    loop = Loop(
      config, folder, mesh,
      bind_update=functools.partial(
        bind_train_step, model, tx, rules, seed=config.seed, lora=config.lora,
        z_loss=config.z_loss, label_smoothing=config.label_smoothing,
        micro_batches=config.micro_batches, freeze=config.freeze,
        prompt_loss=config.prompt_loss,
      ),
      inputs=inputs, held_out=held_out, ask=ask, checkpoints=checkpoints,
      meta=meta, log=log, goodput=goodput, base=base,
    )  # fmt: skip
    early = loop.run(step, state)
    return TrainingResult(
      folder.path, loop.done, folder.metrics(), words, held_out, early
    )


# JAX keeps what it compiled of a function: a second run of the process with the
# same settings, as one that is resumed, gets the same. `constrain` reads rules.
@functools.lru_cache(maxsize=2)
def bind_train_step(
  model: AlexaTM, tx, rules: sharding.Rules, **settings
) -> Callable:
  """Returns `step.train_step` as a function: (state, batch) -> its result."""
  return functools.partial(step_lib.train_step, model, tx, **settings)


def find_source(
  config: TrainConfig, folder: RunFolder
) -> PretrainedModel | None:
  """Finds the mixture, and the model that a fresh run starts from, if any."""
  config.configure_tasks()
  task_registry.find_task(config.mixture)
  if config.checkpoint_dir is not None:
    distributed.run_main_process_first(
      lambda: paths.set_checkpoint_dir(folder.path, config.checkpoint_dir)
    )
  if folder.step_found is not None:
    return None
  if config.init_encoder is not None:
    encoder = warm_start.open_source(config.init_encoder)
    warm_start.check_encoder(config.model_config, encoder)
  if config.init_from is None:
    return None
  source = pretrained.open_pretrained(config.init_from)
  pretrained.check_float(source.meta, f'INIT_FROM = {config.init_from!r}')
  config_checks.check_same_model(config.model_config, source)
  return source


def find_adapted(
  config: TrainConfig, folder: RunFolder
) -> PretrainedModel | None:
  """Finds the model that a run trains adapters of, if it does.

  Raises ValueError where it is not the one that a resumed run began with, lacks
  tokens that the run needs, or has no matrix that LORA_TARGETS name.
  """
  if config.lora is None:
    return None
  source = lora_base.find_base(
    folder.path, config.init_from, folder.step_found is not None
  )
  pretrained.check_float(source.meta, f'INIT_FROM = {config.init_from!r}')
  config_checks.check_same_model(config.model_config, source)
  there, rows = source.config.vocab_size, config.model_config.vocab_size
  if rows != there:
    raise ValueError(
      f'LORA_RANK = {config.lora.rank}, but the model gets {rows:,} rows of '
      f'embeddings, and INIT_FROM = {config.init_from!r} has {there:,}: '
      'adapters hold no new tokens; leave out what needs them, or LORA_RANK'
    )
  # Before rows are built: raises for a target that is nowhere.
  net = AlexaTM(config.model_config)
  shapes = jax.eval_shape(lambda: parameters.init_params(net, 0))
  lora.list_adapted(shapes, config.lora)
  return source


def open_base(
  config: TrainConfig,
  folder: RunFolder,
  source: PretrainedModel | None,
  mesh,
  params: dict,
) -> lora_base.LoraBase | None:
  """Reads the base of a run that trains `params` as adapters, if it does."""
  count = count_numbers(params)
  if config.lora is None:
    config.say(f'model: {count:,} parameters on {mesh_text(mesh)}')
    return None
  base = lora_base.read_base(
    config.lora, source, mesh, config.rules, config.lora_base_dtype
  )
  if folder.step_found is None:
    base.write_description(folder.path, config.init_from)
  whole = count_numbers(base.params)
  config.say(
    f'model: {whole:,} parameters in {config.lora_base_dtype}, and adapters of '
    f'{count:,}, {count / whole:.2%}, on {mesh_text(mesh)}'
  )
  return base


def choose_generation_config(source: PretrainedModel | None, words) -> dict:
  """Returns the generation_config.json that a run keeps of its source.

  None where the run adds markers: it then learns to go on with texts, and what
  a translation is forced to begin with would spoil them.
  """
  if source is None:
    return {}
  old = source.vocabulary
  gains = old is not None and words.special_ids() != old.special_ids()
  return {} if gains else source.generation_config


def describe(config: TrainConfig, inputs: Inputs) -> dict:
  """Returns what every checkpoint says of its run, as JSON."""
  data = {
    'mixture': config.mixture,
    'seed': config.seed,
    'batch_size': config.batch_size,
    'rows': inputs.digest,
  }
  pairs = [part for part in inputs.parts if part.objective.name == 'pair']
  if len(pairs) > 1:
    data['pairs_rates'] = [part.rate for part in pairs]
  adapters = config.lora and dataclasses.asdict(config.lora)
  return {
    'model': dataclasses.asdict(config.model_config),
    'lora': adapters and {**adapters, 'targets': [*adapters['targets']]},
    'vocabulary': inputs.vocabulary.sha256,
    'data': data,
    'lengths': config.lengths,
    'optimizer': optimizer.describe_state(config.optimizer_config),
    'skip_steps': [list(steps) for steps in config.skip_steps],
    'freeze': [*config.freeze],
    'config': config.config_text,
  }


def count_numbers(tree) -> int:
  """Returns how many numbers the arrays of a tree have."""
  return sum(x.size for x in jax.tree.leaves(tree))


def print_export_warning(config: TrainConfig, meta: dict) -> None:
  """Says why a model cannot be exported, if it cannot."""
  why = config_json.explain_no_format(config.model_config)
  if why and 'hf_config' not in meta:
    config.say(f'`atm export` will refuse this model: {why}')


def mesh_text(mesh) -> str:
  """Returns a mesh as a user reads it: '8 cpu device(s) (data 2 x fsdp 4)'."""
  sizes = mesh_lib.format_sizes(mesh.shape)
  kind, n = jax.devices()[0].platform, jax.process_count()
  over = f' of {n} processes' if n > 1 else ''
  return f'{mesh.size} {kind} device(s){over} ({sizes})'
