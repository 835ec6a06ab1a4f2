"""A trained model in Python: `load` reads it, `Model` generates and scores."""

import dataclasses
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from atm.checkpoint import pretrained
from atm.data.vocabulary import Vocabulary
from atm.inference import (
  bucketing,
  generation_defaults,
  prompt_lookup,
  prompts,
  sampling,
  stop_strings,
)
from atm.inference import generate as generate_lib
from atm.inference.few_shot import FewShotMixin
from atm.inference.framed_inputs import fit_inputs, frame_inputs
from atm.inference.framing import TRUNCATIONS
from atm.inference.framing_methods import FramingMixin
from atm.inference.outputs import Generation, collect
from atm.inference.target_scoring import ScoringMixin
from atm.messages import (
  check_arguments,
  check_choice,
  check_count,
  check_fields,
  check_index,
  check_instance,
  check_list,
  check_path,
  check_seed,
  check_text,
  did_you_mean,
  quote,
)
from atm.model import compiler_check, quantized
from atm.model.config import CONFIG_CHOICES, WEIGHTS, ModelConfig
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel import sharding, xla_options
from atm.parallel.sharding import Rules

_logger = logging.getLogger(__name__)
_start = threading.Lock()  # a program that two threads start is compiled once

_check_call = check_arguments(
  inputs=partial(check_list, 'inputs'),
  text=partial(check_text, 'text'),
  mode=partial(check_choice, 'mode', known=prompts.MODES, optional=True),
  batch_size=partial(check_count, 'batch_size'),
  number=partial(check_seed, 'number'),
  truncate=partial(check_choice, 'truncate', known=TRUNCATIONS),
  # By Framing, which makes rows of them.
  **dict.fromkeys(('stop', 'source', 'target')),
)


@dataclasses.dataclass(eq=False)
class Model(FramingMixin, ScoringMixin, FewShotMixin):
  """A trained model with its vocabulary, ready to generate.

  Attributes:
    config: the model's sizes.
    params: its parameters, sharded over `mesh`.
    vocabulary: its vocabulary, or None where it came without.
    mesh, rules: where arrays live.
    step: updates it was trained for.
    generation_defaults: options of `generate` that its generation_config.json
      sets; they count where a caller sets none.
    generation_path: that file.
    forced_bos_id: its `forced_bos_token_id`, which outputs begin with where no
      language is known; None: nothing.
  """

  config: ModelConfig
  params: dict
  vocabulary: Vocabulary | None
  mesh: jax.sharding.Mesh
  rules: Rules
  step: int
  generation_defaults: dict = dataclasses.field(default_factory=dict)
  generation_path: str = ''
  forced_bos_id: int | None = None

  @functools.cached_property
  def _decode_params(self) -> dict:
    with self._use():
      return generate_lib.prepare_params(AlexaTM(self.config), self.params)

  def _use(self):
    return sharding.use_mesh(self.mesh, self.rules)

  # --- Generation

  @_check_call
  def generate(
    self,
    inputs: Sequence[str] | Sequence[Sequence[int]],
    mode: str | None = None,
    batch_size: int = 32,
    **options,
  ) -> list[str] | list[list[int]]:
    """Returns the best generation of each input, see `complete`.

    Args:
      inputs, mode, batch_size: see `complete`.
      options: `prefixes`, `stop`, `banned`, `truncate`, `source`, `target` of
        `complete`, and the fields of `sampling.Config`, by default the model's
        own, see `generation_defaults`, or else greedy.

    Returns:
      Texts for texts, ids (without start, end and padding) for ids, in order.

    Raises:
      ValueError: see `complete`; or an option of another name.
    """
    fields = [field.name for field in dataclasses.fields(sampling.Config)]
    others = 'prefixes', 'stop', 'banned', 'truncate', 'source', 'target'
    known = ('batch_size', *others, *fields)
    for name in options:
      if name not in known:
        near = did_you_mean(name, known, every=True)
        raise ValueError(f'generate has no option {quote(name)}.{near}')
    chosen = {name: options.pop(name) for name in fields if name in options}
    options |= dict(config=sampling.Config(**chosen), batch_size=batch_size)
    return [
      best.text if isinstance(x, str) else best.ids
      for x, (best, *_) in zip(inputs, self.complete(inputs, mode, **options))
    ]

  @_check_call
  def complete(
    self,
    inputs: Sequence[str] | Sequence[Sequence[int]],
    mode: str | None = None,
    config: sampling.Config = sampling.Config(),
    prefixes: Sequence | None = None,
    stop: Sequence[str] = (),
    banned: Sequence[str] | Sequence[Sequence[int]] = (),
    batch_size: int = 32,
    numbers: Sequence[int] | None = None,
    truncate: str = 'refuse',
    source: str | Sequence[str | None] | None = None,
    target: str | Sequence[str | None] | None = None,
  ) -> list[list[Generation]]:
    """Returns, of each input, config.results generations, the best first.

    Args:
      inputs: texts, or lists of encoder ids, to which nothing is added; padding
        on either side of them is dropped.
      mode: 'clm' puts `[CLM]` in front and continues the text; 'denoise'
        returns the text completed. None: 'clm' where the vocabulary has
        `[CLM]`, else as the model was trained. Without effect on ids.
      config: how tokens are chosen; the model's own settings count where it
        was given none, see `generation_defaults`.
      prefixes: what each output begins with: texts, or lists of ids.
      stop: strings that end an output, and are not in its text. They are looked
        for in what is generated, not in the prefix, and as the tokenizer
        normalises them, too; the one that is complete first ends it.
      banned: texts, or lists of ids, that no output has; a text is banned
        behind a space and without one. Default: the model's own.
      batch_size: inputs decoded at a time, those of a like length together.
      numbers: of the inputs, for sampling: an input's tokens depend on its
        number and the seed, not on the others. Default: 0, 1, ...
      truncate: what becomes of an input with more tokens than Config.positions:
        'refuse' raises, 'start' cuts tokens at the input's start, 'end' at its
        end. `<s> [CLM]`, `</s>` and languages stay. `Generation.truncated`
        counts them.
      source, target: the languages of inputs and outputs, of a model with
        `languages`: a code or a name for all ('de', 'deu_Latn', 'pt-BR',
        'German'), or a list with one for each. None: the model's default, which
        texts need. A target's id begins the output, before a prefix.

    Raises:
      ValueError: an unknown mode, or an input, prefix or number of tokens that
        Config.positions has no room for; without an encoder with its output.
    """
    framed = frame_inputs(
      self, inputs, mode, config, prefixes, stop, banned, numbers, truncate,
      source, target,
    )  # fmt: skip
    config, ids = framed.config, framed.ids
    sampler = sampling.Sampler.from_config(
      config, framed.banned, framed.stop_table
    )
    columns = ids, framed.prefixes, framed.numbers, framed.forced
    params = self._decode_params  # made once, before there are threads

    def decode(chosen):
      rows = [[x[i] for i in chosen] for x in columns]
      batch, T, limited = self._batch(
        *rows, sampler, config.max_tokens, batch_size
      )
      with self._use():
        run, given, named = bucketing.select_program(
          AlexaTM(self.config), params, limited, batch, config, T
        )
        with _start:
          outputs = run(*given, **named)
      return collect(outputs, rows[1], self.vocabulary, framed.stop)

    out: list[list[Generation]] = [[]] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for chosen, collected in bucketing.map_batches(
      decode, order, batch_size, self.mesh
    ):
      for i, generations in zip(chosen, collected):
        out[i] = [
          dataclasses.replace(x, truncated=framed.cuts[i]) for x in generations
        ]
    return out

  def _fill_settings(self, config: sampling.Config, banned) -> tuple:
    """Returns settings and bans, the model's own where none were given.

    The first time, a line on standard error describes these.
    """
    config, banned, note = generation_defaults.fill_settings(
      self.generation_path, self.generation_defaults, config, banned
    )
    if note and not self._described:
      self._described = True
      _logger.warning('%s', note)
    return config, banned

  _described = False

  def _batch(
    self, ids, prefixes, numbers, forced, sampler, max_tokens, batch_size
  ):
    """Returns (arrays on the mesh, T, a sampler that ends in their room)."""
    batch, T, room = bucketing.pad_batch(
      self.config, self.mesh, ids, prefixes, numbers, max_tokens, batch_size,
      forced,
    )  # fmt: skip
    batch = sharding.shard_batch(batch, self.mesh, self.rules)
    return batch, T, sampler.replace(max_tokens=np.int32(room))

  @_check_call
  def stream(
    self,
    text: str,
    mode: str | None = None,
    config: sampling.Config = sampling.Config(),
    stop: Sequence[str] = (),
    number: int = 0,
    truncate: str = 'refuse',
    source: str | None = None,
    target: str | None = None,
  ) -> Iterator[str]:
    """Returns the output of one input, as `complete` gives it, in pieces.

    Args:
      text, mode, config, stop, truncate, source, target: see `complete`; greedy
        or sampled, one result.
      number: of the input, for sampling.

    Raises:
      ValueError: see `complete`; or config asks for beams or several results.
    """
    config = config.with_defaults({'beams': 1})  # not the model's own
    config, banned = self._fill_settings(config, ())
    if config.beams > 1 or config.results > 1:
      raise ValueError(
        f'beams = {config.beams}, results = {config.results}: expected 1 of '
        'each where tokens are shown as they come'
      )
    framing = self._framing
    source = framing.find_language('source', source)
    target = framing.find_language('target', target)
    mode, sources, targets = self._resolve([text], mode, source, target)
    stop = framing.stops(stop)
    prefixes = framing.prefixes(None, 1, mode, targets)
    rows = framing.frame_all([text], mode, sources)
    rows, _ = fit_inputs(framing, rows, truncate, prefixes, config.max_tokens)
    batch, T, sampler = self._batch(
      rows, prefixes, [number], framing.list_forced(prefixes, mode, targets),
      sampling.Sampler.from_config(
        config, framing.banned(banned), framing.stop_table(stop)
      ),
      config.max_tokens, 1,
    )  # fmt: skip
    tokens = generate_lib.stream_tokens(
      AlexaTM(self.config), self._decode_params, sampler, batch,
      config.program_seed, T, self._use,
      **prompt_lookup.select_steps(config),
    )  # fmt: skip
    words = self.vocabulary
    return stop_strings.stream_text(
      tokens, words.decode_any, stop, words.revised
    )


@check_arguments(
  directory=partial(check_path, 'directory'),
  at_step=partial(check_index, 'at_step', optional=True),
  mesh=partial(check_instance, 'mesh', kind=jax.sharding.Mesh, optional=True),
  dtype=partial(
    check_choice, 'dtype', known=CONFIG_CHOICES['dtype'], optional=True
  ),
  weights=partial(check_choice, 'WEIGHTS', known=WEIGHTS, optional=True),
  adapter=partial(check_path, 'ADAPTER', optional=True),
)
def load(
  directory: str,
  at_step: int | None = None,
  mesh=None,
  rules: Rules = Rules(),
  dtype: str | None = None,
  weights: str | None = None,
  adapter: str | None = None,
) -> Model:
  """Reads a model from a MODEL_DIR or from a Hugging Face folder.

  Args:
    directory: holds checkpoints/ and vocabulary/, or config.json and weights. A
      LoRA run's is read as its base with the adapters merged.
    at_step: which checkpoint; None takes the best, or the newest.
    mesh: default: all devices, data parallel.
    rules: logical to mesh axes.
    dtype: of activations: 'float32' or 'bfloat16'; None takes the model's own.
    weights: 'bfloat16' keeps parameters and activations in it: half the memory,
      and half to read for a token. 'int8' keeps matrices and tables in it: a
      quarter. Products are int8 x int8 -> int32 then, of activations that are
      scaled anew for each row (dynamic, no calibration). None and 'float32'
      change nothing.
    adapter: the MODEL_DIR of a LoRA run, or a PEFT folder; its adapters are
      merged into the parameters, before `weights` changes them.

  Raises:
    FileNotFoundError: there is no model, or no checkpoint of that step.
    ValueError: it is damaged, or another model than this version knows, or XLA
      computes wrongly; see `pretrained`, `compiler_check.check_compiler`.
  """
  xla_options.set_flags()  # in vain where JAX has started; checked below
  mesh = mesh_lib.make_mesh() if mesh is None else mesh
  source = pretrained.open_pretrained(directory, at_step, adapter)
  weights = source.choose_weights(weights)
  dtype = dtype or source.config.dtype
  config = dataclasses.replace(source.config, dtype=dtype)
  compiler_check.check_compiler(
    dataclasses.replace(config, dtype='bfloat16')
    if weights == 'bfloat16'
    else config,
    trains=False,
    int8=weights == 'int8',
  )
  defaults = generation_defaults.read_defaults(source)
  params = source.read_params(mesh, rules)
  model = Model(
    config, params, source.vocabulary, mesh, rules, source.step, defaults,
    source.generation_path, generation_defaults.read_forced_bos(source),
  )  # fmt: skip
  if weights == 'int8':
    return quantize(model)
  return cast_to_bfloat16(model) if weights == 'bfloat16' else model


@dataclasses.dataclass
class ModelSource:
  """Names a trained model and where its parameters are to live, see `load`.

  The commands infer, score, chat, eval and lm_eval inherit these fields.

  Attributes:
    model_dir: the folder of a training run, or one that `atm import` wrote.
    at_step: the step of a checkpoint; None: the best, or the newest.
    weights: 'bfloat16' is half the memory, 'int8' a quarter; None: as saved.
    adapter: a LoRA run's folder, or one of PEFT, to put on the model.
    make_mesh: called when the command runs, for it asks for devices.
    rules: logical to mesh axes.
  """

  model_dir: str
  _: dataclasses.KW_ONLY
  at_step: int | None = None
  weights: str | None = None
  adapter: str | None = None
  make_mesh: Callable[[], jax.sharding.Mesh] = mesh_lib.make_mesh
  rules: Rules = Rules()
  adapter_mark = None  # the fingerprint of ADAPTER, once it was opened
  checks: ClassVar[dict[str, Callable]] = {
    'model_dir': partial(check_path, 'MODEL_DIR'),
    'at_step': partial(check_index, 'STEP', optional=True),
    'weights': partial(check_choice, 'WEIGHTS', known=WEIGHTS, optional=True),
    'adapter': partial(check_path, 'ADAPTER', optional=True),
  }

  def __post_init__(self):
    check_fields(self)

  def open(self) -> pretrained.PretrainedModel:
    """Describes the model, without its parameters; see `open_pretrained`."""
    named = self.model_dir, self.at_step, self.adapter
    source = pretrained.open_pretrained(*named)
    if self.adapter is not None:
      self.adapter_mark = source.adapter.fingerprint()
    return source

  @property
  def title(self) -> str:
    """The model as log lines have it: its folder, and that of an adapter."""
    return self.model_dir + (f' with {self.adapter}' if self.adapter else '')

  def load(self, at_step: int | None = None) -> Model:
    """Reads the model, of the step that `open` found; see `load`."""
    at_step = self.at_step if at_step is None else at_step
    place = self.make_mesh(), self.rules, None
    return load(self.model_dir, at_step, *place, self.weights, self.adapter)


def quantize(model: Model) -> Model:
  """Returns the model with matrices in int8, and deletes those it had."""

  def convert(path, x):
    if not quantized.is_quantized(path):
      return x
    make = functools.partial(quantized.quantize_parameter, path)
    place = quantized.place_quantized(path, x)
    out = jax.block_until_ready(jax.jit(make, out_shardings=place)(x))
    x.delete()  # one at a time, see cast_to_bfloat16
    return out

  params = jax.tree_util.tree_map_with_path(convert, model.params)
  return dataclasses.replace(model, params=params)


def cast_to_bfloat16(model: Model) -> Model:
  """Returns the model in bfloat16, and deletes the parameters it had."""

  def half(x):
    if x.dtype == jnp.bfloat16:
      return x
    out = x.astype(jnp.bfloat16)
    x.delete()  # one at a time, so that there are never two models in memory
    return out

  config = dataclasses.replace(model.config, dtype='bfloat16')
  params = jax.tree.map(half, model.params)
  return dataclasses.replace(model, config=config, params=params)
