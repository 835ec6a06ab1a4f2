"""Compares what a model computes with what transformers computed.

Without transformers what a model computes is compared with itself: greedy
decoding, which keeps a cache, writes what is likeliest without a cache.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from atm.evals import peer_outputs
from atm.evals.check_prompts import Prompt
from atm.evals.check_report import Report, relative_difference
from atm.inference import api, generate, sampling
from atm.inference.model_frame import ModelFrame
from atm.inference.outputs import Generation, fetch_array
from atm.messages import quote
from atm.model.transformer import AlexaTM

MAX_TOKENS, BEAMS = 16, 4  # of each output
# Every field is given, so that none is the folder's own.
GREEDY = dataclasses.replace(sampling.Config(), max_tokens=MAX_TOKENS)
# Of the largest value: sums of float32 differ by about 1e-6 of it.
MOST_APART = {'float32': 1e-4, 'bfloat16': 5e-2}
STEP = 8  # lengths are padded to a multiple, so that few programs compile


def compare_ids(
  report: Report, prompts: Sequence[Prompt], theirs: Sequence[list[int]]
) -> None:
  """Compares the token ids of all texts; of prompts without text nothing."""
  pairs = [
    (quote(prompt.text, 30), prompt.ids, ids)
    for prompt, ids in zip(prompts, theirs)
    if prompt.text is not None
  ]
  if pairs:
    _tell_equal(report, 'token ids', pairs)


def _tell_equal(
  report: Report, name: str, pairs: Sequence[tuple], decides: bool = True
) -> None:
  """Prints how many of (where, ours, theirs) are equal, and the first other."""
  wrong = [pair for pair in pairs if pair[1] != pair[2]]
  fact = f'{len(pairs) - len(wrong)} of {len(pairs)} equal'
  if not wrong:
    report.tell(name, fact, True, fact)
    return
  where, ours, theirs = wrong[0]
  first = f'{where}: {quote(ours, 40)}, not {quote(theirs, 40)}'
  if isinstance(ours, list):
    same = (a == b for a, b in zip(ours, theirs))
    i = next(
      (i for i, x in enumerate(same) if not x), min(map(len, wrong[0][1:]))
    )
    first = f'{where}, place {i}: {ours[i : i + 3]}, not {theirs[i : i + 3]}'
  text = f'{fact}; first: {first}'
  report.tell(name, text, False if decides else None, f'{fact} ({first})')


def compare_model(
  report: Report,
  model: api.Model,
  prompts: Sequence[Prompt],
  answer: dict,
  folder: str,
) -> None:
  """Compares encoder states, logits and outputs of the computed prompts.

  Args:
    report: told of each.
    model: in the dtype of the comparison.
    prompts: as transformers had them.
    answer: of `peer_outputs.compute_answers`, with outputs.
    folder: with the states and logits of transformers.
  """
  differences, exact = [], model.config.dtype == 'float32'
  for i, prompt in _list_computed(prompts):
    # Logits are those behind what transformers wrote.
    ours = compute_arrays(model, prompt.ids, answer['greedy'][i][:-1])
    paths = peer_outputs.states_path, peer_outputs.logits_path
    theirs = [np.load(path(folder, i)) for path in paths]
    differences.append([*map(relative_difference, ours, theirs)])
  most = MOST_APART[model.config.dtype]
  for name, found in zip(('encoder states', 'logits'), zip(*differences)):
    report.tell_difference(name, float(np.max(found)), most)
  for name, decoding in list_decodings(model).items():
    outputs = generate_all(decoding[0], prompts, decoding[1])
    pairs = [
      (
        f'prompt {i + 1}',
        outputs[i].ids,
        _strip(decoding[0], prompt, answer[name][i]),
      )
      for i, prompt in _list_computed(prompts)
    ]
    # Where numbers are rounded to 8 bits, the likeliest token may be another.
    _tell_equal(report, f'{name} ids', pairs, decides=exact)
    if prompts[0].text is not None:
      pairs = [
        (f'prompt {i + 1}', outputs[i].text, answer[f'{name}_texts'][i])
        for (i, _), (_, a, b) in zip(_list_computed(prompts), pairs)
        if a == b
      ]
      if pairs:
        _tell_equal(report, f'{name} texts', pairs)


def check_alone(
  report: Report, model: api.Model, prompts: Sequence[Prompt]
) -> None:
  """Checks a model without another: numbers are finite, and decoding agrees."""
  outputs, finite, pairs = generate_all(model, prompts, GREEDY), True, []
  for i, prompt in _list_computed(prompts):
    start, ids = find_start(model, prompt), outputs[i].ids
    states, logits = compute_arrays(model, prompt.ids, [*start, *ids])
    finite &= bool(np.isfinite(states).all() and np.isfinite(logits).all())
    likeliest = logits.argmax(-1)[len(start) - 1 :][: len(ids)].tolist()
    pairs.append((f'prompt {i + 1}', ids, likeliest))
  text = 'all finite' if finite else 'some are not finite'
  report.tell('states, logits', text, finite, text)
  exact = model.config.dtype == 'float32'
  _tell_equal(report, 'uncached greedy', pairs, decides=exact)


def _list_computed(prompts: Sequence[Prompt]) -> list[tuple[int, Prompt]]:
  """Returns the prompts whose states are compared, with their numbers."""
  return [(i, prompt) for i, prompt in enumerate(prompts) if prompt.computed]


def find_start(model: api.Model, prompt: Prompt) -> list[int]:
  """Returns the ids that the decoder begins with."""
  frame = ModelFrame(model.config, model.vocabulary, model.forced_bos_id)
  return frame.start(target=prompt.target)


def _strip(model: api.Model, prompt: Prompt, row: list[int]) -> list[int]:
  """Returns the ids that transformers wrote, without start, end and padding."""
  ids = row[len(find_start(model, prompt)) :]
  end = model.config.end_id
  return ids[: ids.index(end)] if end in ids else ids


def list_decodings(model: api.Model) -> dict[str, tuple]:
  """Returns model and settings for each of `peer_outputs.DECODINGS`."""
  # A forced token is of the folder's settings where it is no language.
  plain = dataclasses.replace(model, generation_defaults={}, forced_bos_id=None)
  beams = sampling.Config(max_tokens=MAX_TOKENS, beams=BEAMS)
  # Whatever else the folder sets is filled in, but nothing is sampled.
  own = sampling.Config(max_tokens=MAX_TOKENS, temperature=0.0)
  return {'greedy': (plain, GREEDY), 'beams': (plain, beams),
          'defaults': (model, own)}  # fmt: skip


def generate_all(
  model: api.Model, prompts: Sequence[Prompt], config: sampling.Config
) -> dict[int, Generation]:
  """Returns number -> the best output of each computed prompt."""
  found, numbers = {}, {}
  for i, prompt in _list_computed(prompts):
    numbers.setdefault(prompt.target, []).append(i)
  for target, some in numbers.items():
    rows = [prompts[i].ids for i in some]
    named = {} if target is None else {'target': target}
    outputs = model.complete(rows, config=config, **named)
    found |= {i: best for i, (best, *_) in zip(some, outputs)}
  return found


def compute_arrays(
  model: api.Model, ids: Sequence[int], decoder_ids: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns float32 encoder states [S, D] and logits [T, V]."""
  tokens, mask = _pad(model, ids)
  decoder_tokens, _ = _pad(model, decoder_ids)
  with model._use():
    states = _encode(AlexaTM(model.config), model.params, tokens, mask)
  logits = model.logits(tokens, decoder_tokens, mask)
  states = fetch_array(states).astype(np.float32)
  return states[0, : len(ids)], logits[0, : len(decoder_ids)]


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: AlexaTM, params, tokens, segments):
  return generate.encode(model, params, tokens, segments)


def _pad(model: api.Model, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
  """Returns (ids [1, S], mask [1, S]), padded so that few programs compile."""
  length = min(-(-len(ids) // STEP) * STEP, model.config.positions)
  tokens = np.full((1, length), model.config.pad_id, np.int32)
  tokens[0, : len(ids)] = ids
  return tokens, (np.arange(length) < len(ids))[None].astype(np.int32)
