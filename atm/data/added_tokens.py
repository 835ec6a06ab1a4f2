"""The special and added tokens of a public model's folder.

Four files and the tokenizer's class have a say in which tokens are matched in a
text as they are, and which leave no trace in an output. The order is that of
transformers 5: tokenizer_config.json's `added_tokens_decoder`, or, without it,
special_tokens_map.json, added_tokens.json and tokenizer.json; then the named
and the extra special tokens that are not among them.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from atm import fileio
from atm.messages import quote

# In the order in which transformers adds them.
NAMED = (
  'bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token',
  'mask_token',
)  # fmt: skip
FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')
MBART_CODES = tuple(
  """
  ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ
  ko_KR lt_LT lv_LV my_MM ne_NP nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN
  """.split()
)
MBART50_CODES = MBART_CODES + tuple(
  """
  af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN
  pl_PL ps_AF pt_XX sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES
  sl_SI
  """.split()
)


@dataclasses.dataclass(frozen=True)
class AddedTokens:
  """Tokens that stand for themselves in a text.

  Attributes:
    added: arguments of `tokenizers.AddedToken`, in the order of adding.
    named: name, 'pad_token' say -> token.
    extra: special tokens without a name, languages for example.
    ids: of tokens that the files give one.
  """

  added: list[dict]
  named: dict[str, str]
  extra: list[str] = dataclasses.field(default_factory=list)
  ids: dict[str, int] = dataclasses.field(default_factory=dict)


def collect_tokens(
  name: str,
  settings: Mapping,
  special_map: Mapping,
  added_map: Mapping,
  tokenizer: Mapping,
  where: str,
) -> AddedTokens:
  """Returns the tokens that transformers adds to a vocabulary.

  Args:
    name: the tokenizer's class.
    settings, special_map, added_map, tokenizer: tokenizer_config.json,
      special_tokens_map.json, added_tokens.json, tokenizer.json; {} without.
    where: what an error begins with, the folder.

  Raises:
    ValueError: an entry is no token.
  """
  settings = dict(settings)
  additional = settings.pop('additional_special_tokens', None)
  if additional is not None and not settings.get('extra_special_tokens'):
    settings['extra_special_tokens'] = additional
  read = _Reader(where)
  fileio.check_json(
    settings,
    {
      'added_tokens_decoder?': dict,
      'extra_special_tokens?': (list, dict, None),
    },
    where,
  )
  fileio.check_json(tokenizer, {'added_tokens?': ([dict], None)}, where)
  if 'added_tokens_decoder' in settings:
    by_id = read.by_id(settings['added_tokens_decoder'].items())
  else:
    settings |= special_map
    special = [settings[key] for key in NAMED if key in settings]
    special += settings.get('extra_special_tokens') or []
    special = {read.content(value) for value in special}
    by_id = {
      read.id(i): read.token(
        {'content': x, 'special': x in special, 'normalized': x not in special}
      )
      for x, i in added_map.items()
    }
    listed = tokenizer.get('added_tokens') or []
    by_id |= read.by_id((x.get('id'), x) for x in listed)
  given = {token['content']: token for token in by_id.values()}
  added = [by_id[i] for i in sorted(by_id)]
  named = {}
  for key, value in _list_named(name, settings).items():
    token = read.token(value)
    named[key] = token['content']
    added.append(given.get(token['content'], token))
  extra = [read.token(x) for x in _list_extra(name, settings)]
  unique = {}
  for token in (*added, *extra):
    unique.setdefault(token['content'], token)
  for content in named.values():
    unique[content] = {**unique[content], 'special': True}
  contents = [token['content'] for token in extra]
  ids = {token['content']: i for i, token in by_id.items()}
  return AddedTokens(list(unique.values()), named, contents, ids)


class _Reader:
  """Reads tokens as JSON files write them."""

  def __init__(self, where: str):
    self.where = where

  def token(self, value) -> dict:
    """Returns the arguments of an AddedToken; a text is a special token."""
    if isinstance(value, str):
      value = {'content': value, 'special': True, 'normalized': False}
    content = value.get('content') if isinstance(value, dict) else None
    if not isinstance(content, str) or not content:
      raise ValueError(
        f'{self.where}: {quote(value)}: expected a token, a text or an object '
        "with its 'content'"
      )
    flags = {key: bool(value[key]) for key in FLAGS if key in value}
    return {'content': content, **flags}

  def content(self, value) -> str:
    return self.token(value)['content'] if value is not None else ''

  def id(self, value) -> int:
    try:
      return int(value)
    except (TypeError, ValueError):
      raise ValueError(
        f'{self.where}: {quote(value)}: expected the id of an added token'
      ) from None

  def by_id(self, items: Iterable) -> dict[int, dict]:
    return {self.id(i): self.token(value) for i, value in items}


def _list_named(name: str, settings: Mapping) -> dict:
  """Returns key -> named token, as its class has it by default."""
  defaults = dict.fromkeys(NAMED)
  if name == 'PegasusTokenizer':
    defaults |= {
      'eos_token': '</s>', 'unk_token': '<unk>', 'pad_token': '<pad>',
      'mask_token': '<mask_2>',
    }  # fmt: skip
  elif name == 'M2M100Tokenizer':
    defaults |= {
      'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>',
      'sep_token': '</s>', 'pad_token': '<pad>',
    }  # fmt: skip
  elif name.startswith(('MBart', 'Nllb', 'Blenderbot')):
    defaults |= {
      'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>',
      'sep_token': '</s>', 'pad_token': '<pad>', 'cls_token': '<s>',
      'mask_token': '<mask>',
    }  # fmt: skip
  more = {
    key: value
    for key, value in settings.items()
    if key.endswith('_token') and isinstance(value, str | dict)
  }
  named = {**defaults, **more}
  if isinstance(mask := named['mask_token'], str) and mask == '<mask>':
    # fairseq's mask takes the spaces in front of it.
    named['mask_token'] = {
      'content': mask, 'lstrip': True, 'special': True,
      'normalized': name == 'NllbTokenizer',
    }  # fmt: skip
  if isinstance(settings.get('extra_special_tokens'), dict):
    named |= settings['extra_special_tokens']
  return {key: value for key, value in named.items() if value is not None}


def _list_extra(name: str, settings: Mapping) -> list:
  """Returns the special tokens without a name, as its class has them."""
  extra = settings.get('extra_special_tokens')
  if isinstance(extra, list):
    return extra
  additional = settings.get('additional_special_tokens') or []
  if name == 'MBartTokenizer':
    return [*MBART_CODES, *additional]
  if name == 'MBart50Tokenizer':
    return [*additional, *MBART50_CODES]
  if name == 'PegasusTokenizer':
    mask = settings.get('mask_token_sent', '<mask_1>')
    masks = [mask] if mask and mask not in additional else []
    offset = int(settings.get('offset', 103))
    return [*masks, *(f'<unk_{i}>' for i in range(2, offset))]
  return list(additional)
