"""Writes public_generate.npz and .json beside it: decoding of public models.

Prompts through transformers' `generate` by the tiny models of public/ and by
blenderbot_generate, with what their generation_config.json hold: a forced first
token, n-grams that are not repeated, a forced end, beams. Prompts where
rounding could change a choice are left out. Deterministic by seeds and on one
thread; downloads nothing. Needs the extra:

  pip install -e '.[hf]'
  python tests/golden/make_public_generate.py

Shapes: B prompts, S inputs, T new tokens.
"""

import copy
import json

import make_hf
import numpy as np
import torch
import transformers
from make_generate import EMPTY, MARGIN, NOISES, Noise
from make_hf import HERE

PROMPTS = 100
ROUND = 60  # prompts drawn at a time, of each length
LENGTHS = (4, 9, 14)  # no prompt is padded: n-grams with padding are no n-grams
NEW_TOKENS = 12
SEED = 7

# What begins the decoder's ids besides its start token: languages that are
# forced, or that stand in place of the start token; None: nothing.
MODELS = {
  'blenderbot_generate': 'forced',
  'public/mbart25': 'start',
  'public/mbart50': 'forced',
  'public/m2m_100': 'forced',
  'public/nllb': 'forced',
  'public/pegasus': None,
}
BEAM = dict(num_beams=4, early_stopping=False, length_penalty=1.0)
SETTINGS = {
  'greedy_2': dict(no_repeat_ngram_size=2),
  'greedy_3': dict(no_repeat_ngram_size=3, min_length=6),
  'greedy_end': dict(encoder_no_repeat_ngram_size=1, forced_eos=True),
  'beam_2': dict(BEAM, no_repeat_ngram_size=2),
  'beam_3': dict(
    BEAM, no_repeat_ngram_size=3, length_penalty=0.6, early_stopping=True,
    min_length=5, forced_eos=True,
  ),
  'beam_never': dict(
    BEAM, no_repeat_ngram_size=2, encoder_no_repeat_ngram_size=2,
    length_penalty=2.0, early_stopping='never', min_new_tokens=5,
  ),
}  # fmt: skip


def load(name: str) -> torch.nn.Module:
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
    HERE / name, attn_implementation='eager', dtype=torch.float32
  )
  return model.eval()


def specials(config) -> set[int]:
  return {
    config.pad_token_id,
    config.bos_token_id,
    config.eos_token_id,
    config.decoder_start_token_id,
  }


def draw(rng, config) -> dict[str, np.ndarray]:
  """Prompts [B, S] that end in the end token, and a language of each [B]."""
  ids = [x for x in range(config.vocab_size) if x not in specials(config)]
  prompts = np.full((ROUND * len(LENGTHS), max(LENGTHS)), EMPTY)
  for i, row in enumerate(prompts):
    length = LENGTHS[i % len(LENGTHS)]
    # Of few ids, so that a prompt repeats some.
    row[: length - 1] = rng.choice(rng.choice(ids, 8), length - 1)
    row[length - 1] = config.eos_token_id
  languages = rng.choice(ids[-20:], 2, replace=False)
  return {'inputs': prompts, 'languages': rng.choice(languages, len(prompts))}


def decode(model, kind, batch, settings, noise=None):
  """Runs `generate` on the prompts of a length and a language together.

  Returns:
    (ids [B, T] behind the start token, with the end token, EMPTY behind it;
    the scores [B] of beams, of greedy ids the least lead of a choice).
  """
  config = model.config
  settings = dict(settings)
  if settings.pop('forced_eos', False):
    settings['forced_eos_token_id'] = config.eos_token_id
  B = len(batch['inputs'])
  ids, values = np.full((B, NEW_TOKENS), EMPTY), np.zeros(B, np.float32)
  lengths = (batch['inputs'] != EMPTY).sum(axis=1)
  groups = np.stack([lengths, batch['languages']], axis=1)
  for length, language in np.unique(groups, axis=0):
    rows = np.flatnonzero((groups == (length, language)).all(axis=1))
    begin = {}
    if kind == 'forced':
      begin = dict(forced_bos_token_id=int(language))
    elif kind == 'start':
      begin = dict(decoder_start_token_id=int(language))
    made = make_hf.generation_config(
      config,
      **{
        'max_new_tokens': NEW_TOKENS,
        'return_dict_in_generate': True,
        'output_scores': True,
        **begin,
        **settings,
      },
    )
    model.generation_config = made
    source = torch.from_numpy(batch['inputs'][rows, :length])
    given = {} if noise is None else {'logits_processor': [Noise(noise)]}
    result = model.generate(
      source, attention_mask=torch.ones_like(source), generation_config=made,
      **given,
    )  # fmt: skip
    new = result.sequences[:, 1:].numpy()
    ends = new == config.eos_token_id
    new = np.where(ends.cumsum(axis=1) - ends > 0, EMPTY, new)
    ids[rows, : new.shape[1]] = new
    if settings.get('num_beams', 1) > 1:
      values[rows] = result.sequences_scores
    else:
      best = torch.stack(result.scores, 1).topk(2).values.numpy()
      lead = np.where(new == EMPTY, np.inf, best[..., 0] - best[..., 1])
      values[rows] = lead.min(axis=1)
  return ids, values


def robust(model, double, kind, batch, settings) -> np.ndarray:
  """[B]: whether rounding cannot change the ids."""
  ids, values = decode(model, kind, batch, settings)
  same = lambda other: (other[0] == ids).all(axis=1)
  kept = same(decode(double, kind, batch, settings))
  if settings.get('num_beams', 1) == 1:
    return kept & (values >= MARGIN)
  for noise in range(NOISES):
    kept &= same(decode(model, kind, batch, settings, noise))
  return kept


def take(batch, rows) -> dict[str, np.ndarray]:
  return {key: value[rows] for key, value in batch.items()}


def draw_robust(model, kind, number: int) -> dict[str, np.ndarray]:
  """PROMPTS prompts that are robust under all settings."""
  double = copy.deepcopy(model).double()
  rng = np.random.default_rng([SEED, number])
  kept = []
  while sum(len(x['inputs']) for x in kept) < PROMPTS:
    batch = draw(rng, model.config)
    for settings in SETTINGS.values():
      batch = take(batch, robust(model, double, kind, batch, settings))
    kept.append(batch)
    print(f'  {len(batch["inputs"])} of {ROUND * len(LENGTHS)} kept')
  batch = {key: np.concatenate([x[key] for x in kept]) for key in kept[0]}
  return take(batch, np.arange(PROMPTS))


def report(model, kind, batch, outs) -> None:
  """Prints how much each setting matters, and asserts that it does."""
  for name, (ids, _) in outs.items():
    settings = dict(SETTINGS[name])
    plain = dict(num_beams=settings.get('num_beams', 1))
    without, _ = decode(model, kind, batch, plain)
    differ = (without != ids).any(axis=1).mean()
    lengths = (ids != EMPTY).sum(axis=1)
    print(
      f'  {name}: lengths {lengths.min()}-{lengths.max()}, '
      f'{len(np.unique(ids, axis=0))} outputs, differ from plain {differ:.2f}'
    )
    assert differ > 0.05, name


def main() -> None:
  torch.set_num_threads(1)
  torch.set_grad_enabled(False)
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  arrays = {}
  for number, (folder, kind) in enumerate(MODELS.items()):
    if not (HERE / folder / 'config.json').exists():
      continue
    print(folder)
    model, name = load(folder), folder.rpartition('/')[2]
    batch = draw_robust(model, kind, number)
    outs = {s: decode(model, kind, batch, x) for s, x in SETTINGS.items()}
    report(model, kind, batch, outs)
    arrays |= {f'{name}.{k}': v.astype(np.int16) for k, v in batch.items()}
    for setting, (ids, values) in outs.items():
      arrays[f'{name}.{setting}'] = ids.astype(np.int16)
      if setting.startswith('beam'):
        arrays[f'{name}.{setting}.scores'] = values
  np.savez_compressed(HERE / 'public_generate.npz', **arrays)
  about = {'models': MODELS, 'settings': SETTINGS, 'new_tokens': NEW_TOKENS}
  lines = [f'"{name}": {json.dumps(x)}' for name, x in about.items()]
  text = '{\n' + ',\n'.join(lines) + '\n}\n'
  assert json.loads(text) == about
  (HERE / 'public_generate.json').write_text(text)


if __name__ == '__main__':
  main()
