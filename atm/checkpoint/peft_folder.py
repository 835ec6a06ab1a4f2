"""PEFT folders: adapter_config.json and adapter_model.safetensors.

Hugging Face's PEFT saves low-rank adapters by the names of the modules that
they change, which `hf_keys` knows: here they are of the matrices in `lora`'s
form, stacked layers in one.

Letters: I inputs, O outputs of a matrix, r rank, L layers; V, D of a table.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from atm import fileio, storage
from atm.checkpoint import hf_folder, hf_keys
from atm.checkpoint.hf_keys import WeightsError
from atm.checkpoint.torch_reader import Tensor
from atm.messages import did_you_mean, quote
from atm.model import embeddings, lora
from atm.model.config import ModelConfig
from atm.model.lora import LoraConfig

CONFIG_FILE = 'adapter_config.json'
WEIGHT_FILES = 'adapter_model.safetensors', 'adapter_model.bin'
PREFIX = 'base_model.model.'  # of every key
_PART = re.compile(r'(.+)\.lora_(?:(A|B)\.weight|embedding_(A|B))')
# What PEFT saves of an embedding that is adapted, beside the adapter.
_BASE = re.compile(r'(.+?)(\.base_layer)?\.weight')
# Fields that change what is computed by more than A B, where they are set.
_OTHERS = (
  'modules_to_save', 'use_dora', 'lora_bias', 'fan_in_fan_out',
  'layer_replication', 'trainable_token_indices', 'target_parameters',
  'alora_invocation_tokens', 'use_qalora', 'use_bdlora', 'arrow_config',
  'kasa_config', 'monteclora_config', 'megatron_config',
)  # fmt: skip
# Ways to begin that leave the base as it is; 'pissa' and others change it.
_PLAIN_STARTS = (True, False, None, 'gaussian', 'eva', 'orthogonal')
_FORM = {
  'peft_type': str, 'r': int, 'lora_alpha': fileio.Finite,
  'lora_dropout?': fileio.Finite, 'use_rslora?': bool,
  'alpha_pattern?': ({str: fileio.Finite}, None), 'bias?': str,
  'base_model_name_or_path?': (str, None),
}  # fmt: skip


class Place(NamedTuple):
  """What of our parameters a module's matrix is."""

  path: tuple[str, ...]
  layer: int | None  # of a stacked parameter
  is_embedding: bool

  @property
  def keys(self) -> tuple[str, str]:
    """The endings of the keys of A and of B."""
    if self.is_embedding:
      return '.lora_embedding_A', '.lora_embedding_B'
    return '.lora_A.weight', '.lora_B.weight'

  def turn(self, first: np.ndarray, second: np.ndarray) -> tuple:
    """Returns ours (A, B) of PEFT's, and PEFT's of ours."""
    # The LM head, a table [V, D], is a linear layer there: D inputs, V outputs.
    if self.path[-1] in lora.quantized.ROW_TABLES and not self.is_embedding:
      return second, first
    return first.T, second.T


class PeftAdapter(NamedTuple):
  """What a PEFT folder holds.

  Attributes:
    config: of all matrices; the scales of others are part of their B.
    arrays: path of a parameter -> {'a': A, 'b': B}, float32.
    base: the name of the model that PEFT adapted, '' if unknown.
    copies: path of a table -> reads the one that PEFT saved beside its adapter.
  """

  config: LoraConfig
  arrays: dict[tuple[str, ...], dict[str, np.ndarray]]
  base: str
  copies: dict[tuple[str, ...], Callable[[], np.ndarray]]


def is_peft_folder(directory: str) -> bool:
  """Tells whether a folder has an adapter_config.json."""
  return storage.exists(os.path.join(directory, CONFIG_FILE))


def list_modules(
  config: ModelConfig, hf_config: dict, shapes: Mapping
) -> dict[str, Place]:
  """Returns the name of a module -> the matrix of ours that it computes with.

  A tied table is several modules'.

  Args:
    config: the model's.
    hf_config: its config.json.
    shapes: path of a parameter -> what has its shape.
  """
  layout, modules = hf_keys.get_layout(hf_config), {}
  for path, like in shapes.items():
    if path[-1] == 'kernel':
      keys = layout.keys(path, like.shape)
      stacked = hf_folder.is_stacked(path)
      for i, key in enumerate(keys):
        place = Place(path, i if stacked else None, False)
        modules[key.removesuffix('.weight')] = place
  tables = {**layout.tables}
  if tables['encoder_embedding'] == 'model.shared.weight':
    tables |= hf_keys.UNTIED_TABLES  # its embeddings are modules of their own
  tied = config.ties in ('embeddings', 'all')
  for name, ours in (
    ('encoder_embedding', 'encoder_embedding'),
    ('decoder_embedding', f'{"encoder" if tied else "decoder"}_embedding'),
    ('lm_head', embeddings.name_head(config)),
  ):
    module = tables[name].removesuffix('.weight')
    modules[module] = Place((ours,), None, name != 'lm_head')
  return modules


# --- Reading


def read_peft_folder(
  directory: str, config: ModelConfig, hf_config: dict, shapes: Mapping
) -> PeftAdapter:
  """Reads the adapters of a PEFT folder, for a model.

  Ranks and alphas that differ by module are brought to one. Layers without an
  adapter have one of zeros.

  Args:
    directory: has adapter_config.json and adapter_model.safetensors or .bin.
    config, hf_config, shapes: see `list_modules`.

  Raises:
    FileNotFoundError: a file is missing.
    WeightsError: the adapters are damaged, of another model, or not plain LoRA.
  """
  path = os.path.join(directory, CONFIG_FILE)
  described = hf_folder.read_json_object(path)
  _check_config(described, path)
  modules = list_modules(config, hf_config, shapes)
  parts, copies = _read_parts(directory, modules)
  for module, pair in parts.items():
    _check_shapes(directory, module, pair, shapes[modules[module].path].shape)
  rank = max(a.shape[-1] for a, _ in parts.values())
  paths = sorted({'/'.join(modules[module].path) for module in parts})
  try:
    lora_config = LoraConfig(
      rank, float(described['lora_alpha']),
      float(described.get('lora_dropout', 0)),
      tuple(f'^{x}$' for x in paths), described.get('use_rslora', False),
    )  # fmt: skip
  except ValueError as e:
    raise WeightsError(f'{path}: {e}') from e
  patterns = described.get('alpha_pattern') or {}
  arrays: dict = {}
  for module, (a, b) in parts.items():
    alpha = _find_alpha(patterns, module, lora_config.alpha)
    root = a.shape[-1] ** 0.5 if lora_config.rslora else a.shape[-1]
    if (factor := alpha / root / lora_config.scale) != 1:
      b = b * np.float32(factor)
    extra = rank - a.shape[-1]
    pair = np.pad(a, [(0, 0), (0, extra)]), np.pad(b, [(0, extra), (0, 0)])
    arrays.setdefault(modules[module].path, {})[module] = pair
  return PeftAdapter(
    lora_config,
    {
      path: _join(directory, found, modules, shapes[path].shape)
      for path, found in arrays.items()
    },
    described.get('base_model_name_or_path') or '',
    copies,
  )


def _check_config(described: dict, path: str) -> None:
  """Raises WeightsError unless an adapter_config.json is of plain LoRA."""
  try:
    fileio.check_json(described, _FORM, path)
  except ValueError as e:
    raise WeightsError(str(e)) from e
  kind = described['peft_type']
  if kind != 'LORA':
    raise WeightsError(
      f"{path}: peft_type = {quote(kind)}: expected 'LORA'; merge others with "
      "PEFT's merge_and_unload, save the model, and name its folder"
    )
  fields = [name for name in _OTHERS if described.get(name)]
  fields += ['bias'] if described.get('bias', 'none') != 'none' else []
  if described.get('init_lora_weights') not in _PLAIN_STARTS:
    fields.append('init_lora_weights')
  if fields:
    raise WeightsError(
      f'{path}: {fields[0]} = {quote(described[fields[0]])} is more than '
      "adapters of matrices, which alone are read here: merge it with PEFT's "
      'merge_and_unload, save the model, and name its folder'
    )


def _open_weights(directory: str) -> dict[str, Tensor]:
  """Returns the tensors of a PEFT folder; reads none."""
  for name in WEIGHT_FILES:
    path = os.path.join(directory, name)
    if storage.exists(path):
      return hf_folder.open_file(path)
  raise FileNotFoundError(f'no {WEIGHT_FILES[0]} in {directory!r}')


def _read_parts(directory: str, modules: Mapping[str, Place]) -> tuple:
  """Returns module -> ours (A, B), and `PeftAdapter.copies`."""
  bare = {name.removeprefix('model.'): name for name in modules}
  pairs, copies = {}, {}
  for key, tensor in _open_weights(directory).items():
    inner = key.removeprefix(PREFIX)
    named = _PART.fullmatch(inner) or _BASE.fullmatch(inner)
    module = named and bare.get(named[1].removeprefix('model.'))
    place = modules.get(module)
    whole = named and named.re is _BASE
    if whole and named[1] == 'model.shared':
      place = modules['model.encoder.embed_tokens']
    is_table = place and place.path[-1] in lora.quantized.ROW_TABLES
    if place and whole and is_table:
      copies[place.path] = tensor.read
      continue
    end = inner.removeprefix(named[1]) if named else ''
    if not place or end not in place.keys or tensor.dtype not in (
      hf_folder.FLOATS
    ):  # fmt: skip
      raise WeightsError(
        f'{directory}: {quote(key)} is no adapter of a matrix of this model.'
        + did_you_mean(named[1] if named else inner, modules)
      )
    part = 'AB'[place.keys.index(end)]
    pairs.setdefault(module, {})[part] = tensor.read().astype(np.float32)
  for module, pair in pairs.items():
    if len(pair) < 2:
      (lost,) = {'A', 'B'} - pair.keys()
      raise WeightsError(f'{directory}: {module} has no lora_{lost}')
  if not pairs:
    raise WeightsError(f'{directory} has no adapters')
  parts = {k: modules[k].turn(x['A'], x['B']) for k, x in pairs.items()}
  return parts, copies


def _check_shapes(directory: str, module: str, pair, shape: tuple) -> None:
  """Raises WeightsError unless A B has the shape of a matrix."""
  a, b = pair
  fits = a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0] > 0
  if not fits or (a.shape[0], b.shape[1]) != tuple(shape[-2:]):
    raise WeightsError(
      f'{directory}: the adapter of {module}, {list(a.shape)} x '
      f'{list(b.shape)}, does not fit the matrix, {list(shape[-2:])}: take the '
      'model that it was trained on'
    )


def _find_alpha(patterns: Mapping, module: str, alpha: float) -> float:
  """Returns the alpha of a module by PEFT's alpha_pattern."""
  for pattern, own in patterns.items():
    try:
      if re.match(rf'(.*\.)?({pattern})$', module):
        return float(own)
    except re.error:
      continue  # a name that is no pattern
  return alpha


def _join(
  directory: str, found: Mapping[str, tuple], modules: Mapping, shape: tuple
) -> dict[str, np.ndarray]:
  """Returns the adapter of a parameter, of those of its modules."""
  name, (a, b) = next(iter(found.items()))
  path, layer, _ = modules[name]
  if layer is not None:
    arrays = {k: np.zeros((shape[0], *x.shape), np.float32)
              for k, x in (('a', a), ('b', b))}  # fmt: skip
    for module, (a, b) in found.items():
      i = modules[module].layer
      arrays['a'][i], arrays['b'][i] = a, b
    return arrays
  users = [module for module, place in modules.items() if place.path == path]
  alike = all(
    module in found and all(map(np.array_equal, found[module], (a, b)))
    for module in users
  )
  if not alike:
    raise WeightsError(
      f'{directory}: {" and ".join(users)} are one matrix in this model, so '
      f'all need equal adapters, and {name} has its own: leave out embeddings '
      "and lm_head of target_modules, or save the model that PEFT's "
      'merge_and_unload makes'
    )
  return {'a': a, 'b': b}


# --- Writing


def write_peft_folder(
  folder: str,
  config: LoraConfig,
  arrays: Mapping[tuple[str, ...], Mapping[str, np.ndarray]],
  modules: Mapping[str, Place],
  base: str,
) -> None:
  """Writes adapter_config.json and adapter_model.safetensors.

  Args:
    folder: an empty one.
    config: the adapters'.
    arrays: path of a parameter -> {'a': A, 'b': B}.
    modules: of the model, see `list_modules`.
    base: the name of the model that was adapted.
  """
  adapted = [m for m, place in modules.items() if place.path in arrays]
  alpha = int(config.alpha) if config.alpha == int(config.alpha) else (
    config.alpha
  )  # fmt: skip
  described = {
    'peft_type': 'LORA', 'task_type': 'SEQ_2_SEQ_LM',
    'base_model_name_or_path': base, 'inference_mode': True, 'r': config.rank,
    'lora_alpha': alpha, 'lora_dropout': config.dropout,
    'use_rslora': config.rslora, 'target_modules': name_targets(
      adapted, modules
    ), 'bias': 'none', 'fan_in_fan_out': False, 'init_lora_weights': True,
    'modules_to_save': None, 'rank_pattern': {}, 'alpha_pattern': {},
  }  # fmt: skip
  tensors = {}
  for module in adapted:
    place = modules[module]
    pair = (arrays[place.path][name] for name in ('a', 'b'))
    if place.layer is not None:
      pair = (x[place.layer] for x in pair)
    for end, value in zip(place.keys, place.turn(*pair)):
      value = np.ascontiguousarray(value, np.float32)
      tensors[f'{PREFIX}{module}{end}'] = value
  fileio.write_json(os.path.join(folder, CONFIG_FILE), described)
  hf_folder.write_tensors(os.path.join(folder, WEIGHT_FILES[0]), tensors)


def name_targets(adapted: Iterable[str], modules: Iterable[str]) -> list[str]:
  """Returns PEFT's target_modules: the shortest endings of adapted names.

  PEFT adapts each module whose name ends in one of them.
  """
  adapted, deepest = {*adapted}, max(name.count('.') for name in modules) + 1
  for depth in range(1, deepest):
    ends = {'.'.join(name.split('.')[-depth:]) for name in adapted}
    if {name for name in modules if _ends_in(name, ends)} == adapted:
      return sorted(ends)
  return sorted(adapted)


def _ends_in(name: str, ends: Iterable[str]) -> bool:
  """Tells whether a name ends in one of some names, at a point."""
  return any(f'.{name}'.endswith(f'.{end}') for end in ends)
