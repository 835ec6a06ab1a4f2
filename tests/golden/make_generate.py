"""Writes the references of decoding beside it: generate.* and processors.npz.

Many prompts through transformers' `generate`, under many settings, by a tiny
random model whose outputs are of many lengths and hang on the prompts. Prompts
where rounding could change a choice are left out. Deterministic by seeds and
on one thread; downloads nothing. Needs the extra:

  pip install -e '.[hf]'
  python tests/golden/make_generate.py

Shapes: B prompts, S inputs, R returned, T new tokens, P prefix, V vocabulary.
"""

import collections
import copy
import itertools
import json

import make_hf
import numpy as np
import torch
import transformers
from make_hf import HERE, NEW_TOKENS
from transformers import generation

NAME = 'blenderbot_generate'
MODEL = dict(
  d_model=32,
  vocab_size=96,
  max_position_embeddings=40,
  encoder_layers=2,
  decoder_layers=2,
  encoder_attention_heads=4,
  decoder_attention_heads=4,
  encoder_ffn_dim=64,
  decoder_ffn_dim=64,
  scale_embedding=True,
  pad_token_id=0,
  bos_token_id=1,
  eos_token_id=2,
  decoder_start_token_id=1,
)
# Chosen so that about two thirds of the outputs end, at many lengths, and that
# few are the same.
SEED = 3
END_BIAS = 2.0
LOGIT_SCALE = 2.5
ATTENTION_SCALE = 3.0
POSITION_SCALE = 8.0
# Chosen so that each processor leaves out ids that those before it do not.
PROCESSORS_SEED = 53

PROMPTS = 200
ROUND = 100  # prompts drawn at a time
INPUTS = 20
PREFIX = 4
LOGPROBS = 20  # prompts with log-probabilities
EMPTY = -1  # after the end

# A greedy choice leads by as much. Beams are the same with as much noise,
# uniform and of either sign, on every log-probability.
MARGIN = 5e-4
NOISE = 2.5e-4
NOISES = 8

MIN_TOKENS = 8
REPETITION = 1.3


def random_model() -> torch.nn.Module:
  """A model whose tokens hang on the prompt and end by chance."""
  config = transformers.BlenderbotConfig(
    activation_function='gelu',
    encoder_no_repeat_ngram_size=0,
    forced_eos_token_id=None,
    attn_implementation='eager',
    **MODEL,
  )
  model = transformers.BlenderbotForConditionalGeneration(config).eval()
  make_hf.randomise(model, SEED)
  rng = np.random.default_rng(SEED + 1)
  decoder = model.model.decoder
  # The head is tied to the embeddings: without the signs, a token would be its
  # own likeliest successor.
  signs = torch.from_numpy(rng.choice([-1.0, 1.0], config.d_model))
  decoder.layer_norm.weight.mul_(LOGIT_SCALE * signs)
  decoder.embed_positions.weight.mul_(POSITION_SCALE)
  for layer in decoder.layers:
    for attention in [layer.self_attn, layer.encoder_attn]:
      attention.q_proj.weight.mul_(ATTENTION_SCALE)
      attention.out_proj.weight.mul_(ATTENTION_SCALE)
  model.final_logits_bias[0, config.eos_token_id] += END_BIAS
  return model


def load() -> torch.nn.Module:
  return transformers.BlenderbotForConditionalGeneration.from_pretrained(
    HERE / NAME, attn_implementation='eager', dtype=torch.float32
  ).eval()


def specials(config) -> set[int]:
  return {
    config.pad_token_id,
    config.bos_token_id,
    config.eos_token_id,
    config.decoder_start_token_id,
  }


def draw(rng, config, count: int, words) -> dict[str, np.ndarray]:
  """Prompts [B, S] and prefixes [B, P], half of which end in a word's head."""
  ids = [x for x in range(config.vocab_size) if x not in specials(config)]
  prompts = np.full((count, INPUTS), config.pad_token_id)
  prefix = np.full((count, PREFIX), EMPTY)
  heads = [word[:-1] for word in words if len(word) > 1]
  for row, forced in zip(prompts, prefix):
    length = rng.integers(2, INPUTS + 1)
    row[:length] = rng.choice(ids, length)
    length = rng.integers(1, PREFIX + 1)
    forced[:length] = rng.choice(ids, length)
    if heads and rng.random() < 0.5:
      head = heads[rng.integers(len(heads))][-length:]
      forced[length - len(head) : length] = head
  return {'input_ids': prompts, 'prefix_ids': prefix}


class Noise(generation.LogitsProcessor):
  def __init__(self, seed: int):
    self.generator = torch.Generator().manual_seed(seed)

  def __call__(self, input_ids, scores):
    noise = torch.rand(scores.shape, generator=self.generator)
    return scores + NOISE * (2 * noise - 1)


def decode(model, batch, settings, noise=None) -> dict[str, np.ndarray]:
  """Runs `generate` on the prompts, those with prefixes of a length together.

  Returns:
    ids [B, R, T], without start token and prefix, with the end token, EMPTY
    after it; of beams, scores [B, R]; of greedy ids, logprobs [B, R, T] by the
    logits unprocessed (0 after the end), and margins [B], the least lead of a
    choice.
  """
  config = model.config
  settings = dict(settings)
  prefixed = settings.pop('prefix', False)
  R = settings.get('num_return_sequences', 1)
  greedy = settings.get('num_beams', 1) == 1
  made = make_hf.generation_config(
    config,
    return_dict_in_generate=True,
    output_scores=True,
    output_logits=greedy,
    **settings,
  )
  model.generation_config = made  # else a None would take the default
  B = len(batch['input_ids'])
  out = {'ids': np.full((B, R, NEW_TOKENS), EMPTY)}
  if greedy:
    out['logprobs'] = np.zeros((B, R, NEW_TOKENS), np.float32)
    out['margins'] = np.zeros(B)
  else:
    out['scores'] = np.zeros((B, R), np.float32)
  lengths = (batch['prefix_ids'] != EMPTY).sum(axis=1) * prefixed
  for length in np.unique(lengths):
    rows = np.flatnonzero(lengths == length)
    source = torch.from_numpy(batch['input_ids'][rows])
    given = {}
    if prefixed:
      start = np.full((len(rows), 1), config.decoder_start_token_id)
      prefix = batch['prefix_ids'][rows, :length]
      given['decoder_input_ids'] = torch.from_numpy(np.hstack([start, prefix]))
    if noise is not None:
      given['logits_processor'] = [Noise(noise)]
    result = model.generate(
      source,
      attention_mask=(source != config.pad_token_id).long(),
      generation_config=made,
      **given,
    )
    new = result.sequences[:, 1 + length :].numpy()
    assert new.shape[1] <= NEW_TOKENS
    ends = new == config.eos_token_id
    new = np.where(ends.cumsum(axis=1) - ends > 0, EMPTY, new)
    T = new.shape[1]
    out['ids'][rows, :, :T] = new.reshape(len(rows), R, T)
    if greedy:
      best = torch.stack(result.scores, 1).topk(2).values.numpy()
      lead = np.where(new == EMPTY, np.inf, best[..., 0] - best[..., 1])
      out['margins'][rows] = lead.min(axis=1)
      each = torch.stack(result.logits, 1).log_softmax(-1).numpy()
      each = np.take_along_axis(each, np.maximum(new, 0)[..., None], 2)
      each = np.where(new == EMPTY, 0, each[..., 0])
      out['logprobs'][rows, 0, :T] = each
    else:
      out['scores'][rows] = result.sequences_scores.reshape(-1, R)
  return out


def commonest(rows, n: int) -> list[list[int]]:
  """The words of n ids in rows, the commonest first."""
  found = collections.Counter(
    tuple(row[t : t + n]) for row in rows for t in range(len(row) - n + 1)
  )
  ranked = sorted(found.items(), key=lambda x: (-x[1], x[0]))
  return [list(word) for word, _ in ranked]


def holds(word, other) -> bool:
  n = len(other)
  return any(word[t : t + n] == other for t in range(len(word) - n + 1))


def choose_words(config, rows) -> list[list[int]]:
  """Words of one, two and three ids out of those that were made.

  None holds another, so that each can bite.
  """
  chosen = []
  for n, count in [(1, 2), (3, 20), (2, 6)]:
    words = [
      word
      for word in commonest(rows, n)
      if not specials(config) & set(word)
      and not any(holds(word, x) or holds(x, word) for x in chosen)
    ]
    chosen += words[:count]
  return sorted(chosen, key=len)


def choose_edges(config, rows) -> list[list[int]]:
  """Words with start and end tokens.

  The end token alone, which is not banned; the end token after one or two ids;
  and the start token before the commonest first ids.
  """
  end, start = config.eos_token_id, config.decoder_start_token_id
  pairs = [w for w in commonest(rows, 2) if w[-1] == end][:4]
  triples = [
    w for w in commonest(rows, 3) if w[-1] == end and w[1:] not in pairs
  ][:8]
  firsts = commonest([row[:1] for row in rows if row[0] != end], 1)
  return [[end], *pairs, *triples, *[[start, *w] for w in firsts[:3]]]


def all_settings(words, edges) -> dict[str, dict]:
  """Under their names, the arguments of `generate`, and whether of a prefix."""
  plain = dict(max_new_tokens=NEW_TOKENS, num_beams=1)
  beam = dict(max_new_tokens=NEW_TOKENS, num_beams=4, length_penalty=1.0)
  minimum = dict(min_new_tokens=MIN_TOKENS)
  banned = dict(bad_words_ids=words)
  repetition = dict(repetition_penalty=REPETITION)
  early = dict(length_penalty=0.6, early_stopping=True)
  never = dict(length_penalty=2.0, early_stopping='never')
  return {
    'greedy': plain,
    'greedy_min': {**plain, **minimum},
    'greedy_banned': {**plain, **banned},
    'greedy_banned_edges': {**plain, 'bad_words_ids': edges},
    'greedy_repetition': {**plain, **repetition},
    'greedy_prefix': {**plain, 'prefix': True},
    'greedy_prefix_all': {
      **plain,
      'prefix': True,
      **minimum,
      **banned,
      **repetition,
    },
    'beam4': beam,
    'beam4_early': {**beam, **early},
    'beam4_never': {**beam, **never},
    'beam3': {**beam, 'num_beams': 3, 'num_return_sequences': 3},
    'beam4_banned_min': {**beam, **minimum, **banned},
    'beam4_repetition': {**beam, **repetition},
    'beam4_prefix': {**beam, 'prefix': True, 'length_penalty': 2.0},
  }


def robust(model, double, batch, settings) -> np.ndarray:
  """[B]: whether rounding cannot change the ids."""
  out = decode(model, batch, settings)
  same = lambda other: (other['ids'] == out['ids']).all(axis=(1, 2))
  kept = same(decode(double, batch, settings))
  if 'margins' in out:
    return kept & (out['margins'] >= MARGIN)
  for noise in range(NOISES):
    kept &= same(decode(model, batch, settings, noise))
  return kept


def take(batch, rows) -> dict[str, np.ndarray]:
  return {key: value[rows] for key, value in batch.items()}


def draw_robust(model, settings, words):
  """(PROMPTS prompts that are robust under all settings, how many were not)."""
  double = copy.deepcopy(model).double()
  rng = np.random.default_rng(SEED + 3)
  kept, dropped = [], collections.Counter()
  while sum(len(x['input_ids']) for x in kept) < PROMPTS:
    batch = draw(rng, model.config, ROUND, words)
    for name, each in settings.items():
      good = robust(model, double, batch, each)
      dropped[name] += int((~good).sum())
      batch = take(batch, good)
    kept.append(batch)
  batch = {key: np.concatenate([x[key] for x in kept]) for key in kept[0]}
  return take(batch, np.arange(PROMPTS)), dict(dropped)


def check_one_by_one(model, batch, settings, out) -> None:
  """The same ids without other prompts in the batch, and without padding."""
  for row in range(LOGPROBS):
    one = take(batch, [row])
    length = (one['input_ids'] != model.config.pad_token_id).sum()
    one['input_ids'] = one['input_ids'][:, :length]
    alone = decode(model, one, settings)
    np.testing.assert_array_equal(alone['ids'][0], out['ids'][row])
    for key in {'scores', 'logprobs'} & set(out):
      np.testing.assert_allclose(alone[key][0], out[key][row], atol=1e-5)


def report(config, outs) -> None:
  """Prints how much the settings matter, and asserts that they do."""
  first = {name: out['ids'][:, 0] for name, out in outs.items()}
  differ = lambda a, b: float((first[a] != first[b]).any(axis=1).mean())
  for name, ids in first.items():
    lengths = (ids != EMPTY).sum(axis=1)
    ended = (ids == config.eos_token_id).any(axis=1)
    tokens = [len(set(row[row != EMPTY])) for row in ids]
    print(
      f'{name}: ended {ended.mean():.2f},'
      f' lengths {lengths.min()}-{lengths.max()}'
      f' mean {lengths.mean():.1f} ({len(set(lengths))} different),'
      f' distinct outputs {len(np.unique(ids, axis=0))},'
      f' distinct ids a row {np.mean(tokens):.1f},'
      f' ids in use {len(np.unique(ids[ids != EMPTY]))},'
      f' differ from greedy {differ(name, "greedy"):.2f},'
      f' from beam4 {differ(name, "beam4"):.2f}'
    )
  ids = first['greedy']
  ended = (ids == config.eos_token_id).any(axis=1)
  assert 1 / 3 < ended.mean() < 0.9
  assert len(set((ids != EMPTY).sum(axis=1))) > 10
  assert len(np.unique(ids, axis=0)) > 0.9 * PROMPTS
  for name, share in {
    'greedy_min': 0.1,
    'greedy_banned': 0.3,
    'greedy_banned_edges': 0.3,
    'greedy_repetition': 0.3,
    'greedy_prefix': 0.9,
    'beam4': 0.5,
  }.items():
    assert differ(name, 'greedy') > share, name
  for name in outs:
    if name.startswith('beam') and name != 'beam4':
      assert differ(name, 'beam4') > 0.1, name
  for row in outs['beam3']['ids']:
    assert len(np.unique(row, axis=0)) == 3
  gaps = -np.diff(outs['beam3']['scores'], axis=1)
  print(f'beam3: least gap of scores {gaps.min():.1e}')
  assert gaps.min() > 0


def decoding() -> None:
  """Writes blenderbot_generate/, generate.npz and generate.json."""
  model = random_model()
  model.generation_config = make_hf.generation_config(model.config)
  model.save_pretrained(HERE / NAME, safe_serialization=True)
  model = load()
  config = model.config
  sample = draw(np.random.default_rng(SEED + 2), config, PROMPTS, [])
  ids = decode(model, sample, {})['ids'][:, 0]
  rows = [row[row != EMPTY].tolist() for row in ids]
  words, edges = choose_words(config, rows), choose_edges(config, rows)
  settings = all_settings(words, edges)
  batch, dropped = draw_robust(model, settings, words)
  print('dropped, by setting:', dropped)
  assert len(np.unique(batch['input_ids'], axis=0)) == PROMPTS
  outs = {name: decode(model, batch, s) for name, s in settings.items()}
  for name, out in outs.items():
    check_one_by_one(model, batch, settings[name], out)
  report(config, outs)
  for n in [1, 2, 3]:
    some = {'bad_words_ids': [word for word in words if len(word) == n]}
    other = decode(model, batch, some)['ids'] != outs['greedy']['ids']
    share = float(other.any(axis=(1, 2)).mean())
    print(f'banned words of {n}: differ from greedy {share:.2f}')
    assert share > 0.1

  arrays = {key: value.astype(np.int16) for key, value in batch.items()}
  for name, out in outs.items():
    several = settings[name].get('num_return_sequences', 1) > 1
    ids = out['ids'].astype(np.int16)
    arrays[f'{name}_ids'] = ids if several else ids[:, 0]
    if 'scores' in out:
      scores = out['scores']
      arrays[f'{name}_scores'] = scores if several else scores[:, 0]
  arrays['greedy_logprobs'] = outs['greedy']['logprobs'][:LOGPROBS, 0]
  np.savez_compressed(HERE / 'generate.npz', **arrays)
  lines = [f'"{name}": {json.dumps(s)}' for name, s in settings.items()]
  text = '{\n' + ',\n'.join(lines) + '\n}\n'
  assert json.loads(text) == settings
  (HERE / 'generate.json').write_text(text)


def processors() -> None:
  """Writes processors.npz."""
  B, V = 16, 97
  rng = np.random.default_rng(PROCESSORS_SEED)
  logits = np.linspace(1, 4, B)[:, None] * rng.standard_normal((B, V))
  logits = logits.astype(np.float32)
  # Half of the ids that came before are among the likeliest; some recur.
  likely = np.argsort(-logits, axis=1)[:, :12]
  ids = np.hstack([
    rng.permuted(likely, axis=1)[:, :5],
    rng.integers(0, V, (B, 4)),
  ])  # fmt: skip
  ids[:, -1] = ids[:, 0]
  scores, ids = torch.from_numpy(logits), torch.from_numpy(ids)

  def chain(off=0.0):
    """In the order in which `generate` calls them."""
    return {
      'repetition_penalty': generation.RepetitionPenaltyLogitsProcessor(1.3),
      'temperature': generation.TemperatureLogitsWarper(0.7),
      'top_k': generation.TopKLogitsWarper(5),
      'top_p': generation.TopPLogitsWarper(0.8 + off),
      'min_p': generation.MinPLogitsWarper(0.1 + off),
    }

  def processed(scores, off=0.0):
    out = {n: p(ids, scores.clone()) for n, p in chain(off).items()}
    out['all'] = scores.clone()
    for name, processor in chain(off).items():
      before = out['all']
      out['all'] = processor(ids, before)
      assert not torch.equal(out['all'], before), f'{name} does nothing'
    return out

  out = processed(scores)
  for others in [processed(scores.double())] + [
    processed(scores, off) for off in [-1e-4, 1e-4]
  ]:  # what rounding could change is no reference
    for name, value in out.items():
      assert torch.equal(value.isinf(), others[name].isinf()), name
  # Temperature may come before repetition or after top_k; else order matters.
  same = 0
  for order in itertools.permutations(chain().values()):
    other = scores
    for processor in order:
      other = processor(ids, other)
    same += torch.equal(other.isinf(), out['all'].isinf())
  assert same == 3, same
  # Equal logits are all kept where the last of the k is one of them.
  ties = scores[:4].round()
  kept = generation.TopKLogitsWarper(5)(ids[:4], ties)
  assert (kept.isfinite().sum(dim=1) > 5).any()
  np.savez_compressed(
    HERE / 'processors.npz',
    logits=logits,
    previous_ids=ids.numpy().astype(np.int16),
    **{name: value.numpy() for name, value in out.items()},
    ties_logits=ties.numpy(),
    ties_top_k=kept.numpy(),
  )
  for name, value in out.items():
    kept = value.isfinite().sum(dim=1).tolist()
    print(f'{name}: kept {kept}')


def main() -> None:
  torch.set_num_threads(1)
  torch.set_grad_enabled(False)
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  decoding()
  processors()


if __name__ == '__main__':
  main()
