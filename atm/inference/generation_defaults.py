"""A model's own settings of generation, read off its generation_config.json.

Names in the file are those of transformers' GenerationConfig; what they become
are options of `api.Model.generate`.
"""

import contextlib
import logging
from collections.abc import Mapping

from atm.checkpoint.pretrained import PretrainedModel
from atm.data.token_ids import check_ids
from atm.inference import sampling
from atm.messages import (
  check_choice,
  check_flag,
  check_list,
  check_number,
  quote,
)
from atm.model.config import ModelConfig

_logger = logging.getLogger(__name__)

# Names in the file -> fields of `sampling.Config`.
_FIELDS = {
  'num_beams': 'beams',
  'max_new_tokens': 'max_tokens',
  'min_new_tokens': 'min_tokens',
  **{
    name: name
    for name in (
      'length_penalty', 'early_stopping', 'top_k', 'top_p', 'min_p',
      'repetition_penalty', 'no_repeat_ngram_size',
      'encoder_no_repeat_ngram_size', 'prompt_lookup_num_tokens',
    )
  },
}  # fmt: skip
# What transformers takes where a model samples and says no more.
_SAMPLING = {'temperature': 1.0, 'top_k': 50}
# Fields that do nothing without beams, and without a temperature.
_OF_BEAMS = {'length_penalty', 'early_stopping'}
_OF_SAMPLING = {'top_k', 'top_p', 'min_p'}
# Read by others, or of no effect on which tokens are chosen.
_ELSEWHERE = {
  'do_sample', 'temperature', 'max_length', 'min_length', 'bad_words_ids',
  'suppress_tokens', 'forced_eos_token_id', 'forced_bos_token_id',
  'pad_token_id', 'bos_token_id', 'transformers_version', 'use_cache',
  'remove_invalid_values', 'num_assistant_tokens',
  'num_assistant_tokens_schedule', 'assistant_confidence_threshold',
  'assistant_lookbehind', 'target_lookbehind', 'return_dict_in_generate',
}  # fmt: skip
# What a run may keep with its model.
_SETTABLE = {*_FIELDS} | {
  'do_sample', 'temperature', 'max_length', 'min_length', 'bad_words_ids',
  'suppress_tokens', 'forced_eos_token_id', 'forced_bos_token_id',
}  # fmt: skip
# Values with which a name that is not known here changes nothing.
_NEUTRAL = {
  'typical_p': 1.0, 'encoder_repetition_penalty': 1.0, 'guidance_scale': 1.0,
  'num_return_sequences': 1, 'num_beam_groups': 1,
}  # fmt: skip


def read_defaults(source: PretrainedModel) -> dict:
  """Returns the options of `api.Model.generate` that a folder sets.

  A warning names what of them is not supported.

  Raises:
    ValueError: see `convert_defaults`.
  """
  path = source.generation_path
  options, left = convert_defaults(
    source.generation_config, path, source.config
  )
  if left:
    _logger.warning('%s: not supported, left out: %s', path, ', '.join(left))
  return options


def convert_defaults(
  content: Mapping, path: str, config: ModelConfig
) -> tuple[dict, list[str]]:
  """Converts the content of a generation_config.json.

  Args:
    content: names and values of the file; None is as if not said.
    path: of the file, for errors.
    config: the model's.

  Returns:
    (options of `api.Model.generate`; what of the file is not supported, a text
    of each).

  Raises:
    ValueError: a value is out of its range; names the file.
  """
  said = {name: x for name, x in content.items() if x is not None}
  with _naming(path):
    options = {
      _FIELDS[k]: _check(k, x) for k, x in said.items() if k in _FIELDS
    }
    options |= _convert_lengths(said) | _convert_sampling(said)
    if banned := _convert_bans(said, config):
      options['banned'] = banned
  left = _list_unsupported(said, config)
  if options.get('beams', 1) > 1 and options.pop('temperature', 0):
    left.append(f'do_sample with num_beams = {options["beams"]}')
  if said.get('forced_eos_token_id') in (config.end_id, [config.end_id]):
    options['forced_eos'] = True
  return options, left


def check_own_settings(content: Mapping, config: ModelConfig) -> None:
  """Raises ValueError unless GENERATION is what a model's file may say.

  Args:
    content: names of transformers' GenerationConfig, and values.
    config: the model's.
  """
  for name in content:
    check_choice('a name in GENERATION', name, sorted(_SETTABLE))
  _, left = convert_defaults(content, 'GENERATION', config)
  if left:
    raise ValueError(
      f'GENERATION: not supported: {", ".join(left)}. Leave it out'
    )


def read_forced_bos(source: PretrainedModel) -> int | None:
  """Returns the `forced_bos_token_id` of a folder's generation_config.json.

  Raises ValueError where it is no id of the model; names the file.
  """
  name, most = 'forced_bos_token_id', source.config.vocab_size - 1
  found = source.generation_config.get(name)
  with _naming(source.generation_path):
    return check_number(name, found, least=0, most=most, optional=True)


@contextlib.contextmanager
def _naming(path: str):
  """Puts a file's name in front of the errors about values in it."""
  try:
    yield
  except ValueError as e:
    raise ValueError(f'{path}: {e}') from e


def _check(name: str, value):
  """Returns the value of a field; an error names it as the file does."""
  field = _FIELDS.get(name, name)
  try:
    return sampling.Config.checks[field](value)
  except ValueError as e:
    raise ValueError(str(e).replace(field, name, 1)) from e


def _convert_lengths(said: Mapping) -> dict[str, int]:
  """Returns the lengths that count the decoder's start token, without it."""
  lengths = {}
  if 'max_length' in said and 'max_new_tokens' not in said:
    lengths['max_tokens'] = (
      check_number('max_length', said['max_length'], 2) - 1
    )
  if 'min_length' in said and 'min_new_tokens' not in said:
    least = check_number('min_length', said['min_length'], 0)
    lengths['min_tokens'] = max(0, least - 1)
  return lengths


def _convert_sampling(said: Mapping) -> dict[str, float]:
  """Returns how tokens are sampled, if they are."""
  if not check_flag('do_sample', said.get('do_sample', False)):
    return {}
  found = {**_SAMPLING, **{k: said[k] for k in _SAMPLING if k in said}}
  return {name: _check(name, x) for name, x in found.items()}


def _convert_bans(said: Mapping, config: ModelConfig) -> list[list[int]]:
  """Returns the ids that are not written."""
  size, name = config.vocab_size, 'bad_words_ids'
  rows = enumerate(check_list(name, said.get(name, [])))
  bans = [check_ids(f'{name}[{i}]', row, size) for i, row in rows]
  name = 'suppress_tokens'
  ids = check_ids(name, said.get(name, []), size)
  return bans + [[i] for i in ids if i != config.end_id]


def _list_unsupported(said: Mapping, config: ModelConfig) -> list[str]:
  """Returns what changes outputs in transformers, and not here."""
  ids = {
    'forced_eos_token_id': config.end_id,
    'eos_token_id': config.end_id,
    'decoder_start_token_id': config.start_id,
  }
  left = []
  for name, value in said.items():
    if name in ids:
      neutral = value in (ids[name], [ids[name]])
    else:
      neutral = name in _FIELDS or name in _ELSEWHERE or not value
      neutral |= name.startswith(('output_', 'cache_', '_'))
      neutral |= value == _NEUTRAL.get(name, ...)
    if not neutral:
      left.append(f'{name} = {quote(value, 40)}')
  if config.end_id in (said.get('suppress_tokens') or ()):
    left.append(f'suppress_tokens with the end token {config.end_id}')
  return left


def fill_settings(
  path: str, defaults: Mapping, config: sampling.Config, banned=()
) -> tuple[sampling.Config, object, str | None]:
  """Returns settings with a model's own where none were given.

  Args:
    path: of the file that the model's are of.
    defaults: options of `api.Model.generate`, the model's.
    config, banned: what a caller gave.

  Returns:
    (settings, bans, a line about those that are the model's; None: none is).
  """
  fields = {name: x for name, x in defaults.items() if name != 'banned'}
  filled, plain = config.with_defaults(fields), sampling.Config()
  names = filled.given - config.given
  names -= set() if filled.beams > 1 else _OF_BEAMS
  names -= set() if filled.temperature else _OF_SAMPLING
  taken = [
    f'{name} {getattr(filled, name)}'
    for name in sorted(names)
    if getattr(filled, name) != getattr(plain, name)
  ]
  own = defaults.get('banned', ())
  if own and isinstance(banned, list | tuple) and not banned:
    banned = own
    taken.append(f'banned {len(own)}')
  note = f'settings of {path}: {", ".join(taken)}' if taken else None
  return filled, banned, note
