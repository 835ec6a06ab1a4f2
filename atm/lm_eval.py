"""Adapter to lm-evaluation-harness: the harness asks, a `Model` answers.

Importing this module registers the model `atm` with the harness:

  import atm.lm_eval, lm_eval
  lm_eval.simple_evaluate('atm', 'model_dir=runs/tiny,mode=clm', ['xnli_de'])

`python -m atm.lm_eval` is the harness's own command, which knows it then, and
`atm lm_eval` a run of ours, see `atm.cli.lm_eval_command`.

In the harness's words a request has a context, which is given, and a
continuation, which is scored or generated. In 'clm' the encoder reads
`[CLM] context` and the decoder writes the continuation. In 'denoise' the
encoder reads the context and the decoder writes the whole text again, given the
context's tokens; only what is behind these is scored, or kept.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Iterator, Sequence

import jax
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import simple_parse_args_string
from tqdm import tqdm

from atm.inference import api, prompts, sampling, stop_strings
from atm.inference import framing as framing_lib
from atm.messages import (
  check_choice,
  check_flag,
  check_list,
  check_number,
  check_text,
  check_texts,
)
from atm.parallel import distributed

logger = logging.getLogger(__name__)

MAX_TOKENS = 256  # generated where a task says nothing, as in the harness
# Names of generation options in tasks -> in `sampling.Config`.
GENERATION_KWARGS = {
  'max_gen_toks': 'max_tokens',
  'max_new_tokens': 'max_tokens',
  'max_completion_tokens': 'max_tokens',
  'min_new_tokens': 'min_tokens',
  'num_beams': 'beams',
}
SAME_NAMES = (
  'max_tokens', 'length_penalty', 'early_stopping', 'temperature', 'top_k',
  'top_p', 'min_p', 'repetition_penalty', 'seed', 'no_repeat_ngram_size',
  'encoder_no_repeat_ngram_size',
)  # fmt: skip


class Newlines:
  """Writes newlines as a mark, for the tokenizer has none.

  The mark is '<br>', as in the paper's prompts, or '': then a newline becomes a
  space, and the model writes none.
  """

  def __init__(self, mark: str):
    self.mark = check_text('newline', mark).strip()

  def written(self, text: str) -> str:
    """Returns a text as the model reads it: n newlines are n spaced marks."""
    return re.sub(
      r'[^\S\n]*\n\s*', lambda at: f' {self.mark * at[0].count(chr(10))} ', text
    )

  def read(self, text: str) -> str:
    """Returns a text of the model with newlines again."""
    return re.sub(rf' *{re.escape(self.mark)} *', '\n', text)

  def stops(self, until: Sequence[str]) -> list[str]:
    """Returns where the model stops: not at newlines that it cannot write."""
    possible = (s for s in until if self.mark or '\n' not in s)
    return [self.written(s).strip() if '\n' in s else s for s in possible]

  def cut(self, text: str, until: Sequence[str]) -> str:
    """Returns a text, its newlines back, up to the first of `until`."""
    text = stop_strings.cut_at_stop(text, until)
    if not self.mark:
      return text
    ends = [self.read(self.written(s)) for s in until]
    return stop_strings.cut_at_stop(self.read(text), ends)


def generation(options: dict) -> tuple[sampling.Config, list[str]]:
  """Converts a task's `generation_kwargs` to (settings, strings to stop at).

  `do_sample` decides as in transformers: False is greedy whatever the
  temperature, True without one samples with 1; where it is not said, a
  temperature above 0 samples. None is as if not said.

  Raises ValueError for an unknown option, which it names, or a wrong value.
  """
  given = {name: x for name, x in options.items() if x is not None}
  until, sample = given.pop('until', []), given.pop('do_sample', None)
  until = [until] if isinstance(until, str) else check_list('until', until)
  until = check_texts('until', [s for s in until if s])
  if sample is not None:
    sample = check_flag('do_sample', sample)
  fields = {'max_tokens': MAX_TOKENS, 'temperature': float(sample is True)}
  known = ('until', 'do_sample', *GENERATION_KWARGS, *SAME_NAMES)
  for name, value in given.items():
    check_choice('generation_kwargs', name, known)
    fields[GENERATION_KWARGS.get(name, name)] = value
  if sample is False:
    fields['temperature'] = 0.0
  return sampling.Config(**fields), list(until)


@register_model('atm')
class AtmLM(LM):
  """A `Model` with the methods that the harness calls.

  Of several hosts each answers all requests, and has the same answers.

  Attributes:
    model, mode, newlines: what answers, see `prompts.MODES` and `Newlines`; of
      another frame mode is None, see `frame`.
    frame: what the model reads texts in, by name.
    batch_size: requests answered at a time, long ones first.
    room: tokens of text that the encoder has room for.
    part: tokens of a continuation that are scored at a time, or generated.
  """

  def __init__(
    self, model: api.Model, mode=None, newline='<br>', batch_size: int = 32
  ):
    """Checks the arguments; raises ValueError for wrong ones.

    Such are a model without a tokenizer, without `[CLM]` for 'clm', or with
    languages, too.
    """
    super().__init__()
    check_choice('mode', mode, prompts.MODES, optional=True)
    if model.vocabulary is None:
      raise ValueError('this model has no tokenizer: the harness asks in text')
    # The harness's command line gives it as text.
    size = int(batch_size) if str(batch_size).isdecimal() else batch_size
    size = check_number('batch_size', size, 1)
    framing = framing_lib.Framing(model.config, model.vocabulary)
    self.frame = framing.name_mode(mode)
    if model.languages and self.frame not in prompts.MODES:
      raise ValueError(
        'this model translates between named languages, which the harness does '
        'not name: `atm eval` asks it'
      )
    self.model, self.batch_size = model, size
    self.mode = self.frame if self.frame in prompts.MODES else None
    self.newlines = Newlines(newline)
    words, positions = model.vocabulary, model.config.positions
    self.room = framing.count_room(mode)
    halves = self.mode == 'denoise' or not model.config.has_encoder
    self.part = positions // 2 if halves else positions
    if words.unk_id in words.encode(self.newlines.mark):
      lost = 'the vocabulary cannot spell newline = %r: newlines are lost. '
      logger.warning(lost + "Give another, ';' or so", newline)

  @classmethod
  def create_from_arg_string(cls, arg_string, additional_config=None):
    """Reads the harness's `--model_args`: 'model_dir=runs/tiny,mode=clm'."""
    arguments = simple_parse_args_string(arg_string)
    return cls.create_from_arg_obj(arguments, additional_config)

  @classmethod
  def create_from_arg_obj(cls, arg_dict, additional_config=None):
    """Reads the harness's `model_args` as a dict, and the model they name.

    Args:
      arg_dict: model_dir; optionally mode, newline and batch_size, see
        `AtmLM`, step, weights and adapter, see `api.load`.
      additional_config: of the harness; its batch_size counts where arg_dict
        has none. Its device does not: JAX finds devices.

    Raises ValueError for an unknown argument, or see `api.load`.
    """
    given = dict(arg_dict)
    if (size := (additional_config or {}).get('batch_size')) is not None:
      given.setdefault('batch_size', size)
    own = 'mode', 'newline', 'batch_size'
    for name in given:
      known = 'model_dir', 'step', 'weights', 'adapter', *own
      check_choice('model_args', name, known)
    if 'model_dir' not in given:
      raise ValueError('model_args lack model_dir: give model_dir=FOLDER')
    folder, step = str(given['model_dir']), given.get('step')
    chosen = {name: given.get(name) for name in ('weights', 'adapter')}
    model = api.load(folder, step, **chosen)
    return cls(model, **{k: given[k] for k in own if k in given})

  @property
  def tokenizer_name(self) -> str:
    """Names the tokenizer, to tell caches of requests apart."""
    words = self.model.vocabulary
    form = words.input_format.name
    kind = 'sentencepiece' if form == 'alexatm' else form
    return f'{kind}-{words.sha256[:16]}'

  def apply_chat_template(self, chat_history, add_generation_prompt=True):
    raise NotImplementedError(
      'the model has no chat template: run without apply_chat_template'
    )

  def get_model_info(self) -> dict:
    """Describes the model for the harness's results."""
    leaves = jax.tree.leaves(self.model.params)
    return {
      'model_num_parameters': sum(x.size for x in leaves),
      'model_dtype': self.model.config.dtype,
      'model_step': self.model.step,
      'model_mode': self.frame,
      'model_newline': self.newlines.mark,
    }

  # --- Scoring

  def loglikelihood(self, requests, disable_tqdm=False):
    """Returns (log-probability, whether greedy decoding writes it) of each.

    In nats, of the continuation's tokens alone: no end token is scored. An
    empty continuation has (0.0, True).
    """
    pairs = [self._pair(*request.args) for request in requests]
    self._warn(
      len(context) > self._fitting(min(len(continuation), self.part))
      for context, continuation in pairs
    )
    return self._scored('loglikelihood', requests, pairs, disable_tqdm)

  def loglikelihood_rolling(self, requests, disable_tqdm=False):
    """Returns the log-probability of whole texts, all of their tokens.

    A text that has more than the decoder's room is scored in windows, each
    with the text before it as context; the first has none.
    """
    pairs = [self._pair('', *request.args) for request in requests]
    return self._scored('loglikelihood_rolling', requests, pairs, disable_tqdm)

  def _pair(self, context: str, continuation: str) -> tuple[list, list]:
    """Returns the ids of both."""
    context, continuation = map(self.newlines.written, (context, continuation))
    words = self.model.vocabulary
    # Where no space parts them the continuation goes on in the middle of a
    # word, or of Japanese.
    apart = not context or context[-1].isspace() or continuation[:1].isspace()
    inside = [] if apart else words.inside(continuation)
    return words.encode(context), inside or words.encode(continuation)

  def windows(
    self, context: list[int], continuation: list[int]
  ) -> Iterator[tuple[list[int], list[int], int]]:
    """Yields the parts that a continuation is scored in: one, if it has room.

    As (encoder ids, decoder ids, how many of the latter are not scored).
    """
    # In 'clm' the decoder has room for Config.positions tokens. In 'denoise' it
    # holds the context, too, so a part has half of them. What has no room of
    # the text before a part is left out at its beginning.
    for start in range(0, len(continuation), self.part):
      part = continuation[start : start + self.part]
      before = [*context, *continuation[:start]]
      before = _last(self._fitting(len(part)), before)
      given = before if self.mode == 'denoise' else []
      source = self.model.framed(before, self.mode)
      yield source, [*given, *part], len(given)

  def _scored(self, kind: str, requests, pairs, quiet: bool) -> list:
    """Answers requests of (context, continuation) ids."""
    answers = [None] * len(pairs)
    size = lambda i: sum(map(len, pairs[i]))
    for chosen in self._batches(range(len(pairs)), size, kind, quiet):
      parts = [(i, *part) for i in chosen for part in self.windows(*pairs[i])]
      totals, greedy = dict.fromkeys(chosen, 0.0), dict.fromkeys(chosen, True)
      if parts:
        numbers, *rows = zip(*parts)
        scores = self.model.likelihoods(*rows, batch_size=self.batch_size)
        for i, total, _, likeliest in zip(numbers, *scores):
          totals[i] += float(total)
          greedy[i] &= bool(likeliest)
      for i in chosen:
        single = kind == 'loglikelihood'
        answers[i] = (totals[i], greedy[i]) if single else totals[i]
        self.cache_hook.add_partial(kind, requests[i].args, answers[i])
    return answers

  # --- Generating

  def generate_until(self, requests, disable_tqdm=False):
    """Generates what follows contexts, up to a stop string."""
    # In 'denoise' the decoder is given the context, as when it is scored; at
    # least half of its room is kept for that.
    encode = self.model.vocabulary.encode
    answers, alike, contexts, cut = [''] * len(requests), {}, [], []
    for i, request in enumerate(requests):
      context, options = request.args
      alike.setdefault(json.dumps(options), []).append(i)
      contexts.append(encode(self.newlines.written(context)))
    for numbers in alike.values():
      config, until = generation(requests[numbers[0]].args[1])
      tokens = min(config.max_tokens, self.part)
      config = dataclasses.replace(config, max_tokens=tokens)
      room = self._fitting(tokens + 1)  # the start token's place is one
      cut += [len(contexts[i]) > room for i in numbers]
      size = lambda i: len(contexts[i])
      kind = 'generate_until'
      for chosen in self._batches(numbers, size, kind, disable_tqdm):
        shown = [_last(room, contexts[i]) for i in chosen]
        texts = self._continue(shown, config, until, chosen)
        for i, text in zip(chosen, texts):
          answers[i] = text
          self.cache_hook.add_partial(kind, requests[i].args, text)
    self._warn(cut)
    return answers

  def _continue(self, contexts, config, until, numbers) -> list[str]:
    """Generates continuations of contexts; their numbers are for sampling."""
    prefixes, stop = None, self.newlines.stops(until)
    if self.mode == 'denoise':
      # The space behind a context is no part of an answer, and ends none.
      prefixes, stop = contexts, [s for s in stop if not s.startswith(' ')]
    generations = self.model.complete(
      [self.model.framed(ids, self.mode) for ids in contexts],
      config=config,
      prefixes=prefixes,
      stop=stop,
      batch_size=self.batch_size,
      numbers=numbers,
    )
    words = self.model.vocabulary
    normal = [words.normalize(s) for s in until if '\n' not in s]
    until = [*until, *(s for s in normal if s.strip())]
    texts = (words.decode_any(x.ids) for x, *_ in generations)
    return [self.newlines.cut(text, until) for text in texts]

  # --- Both

  def _fitting(self, tokens: int) -> int:
    """Returns how much of a context has room, with `tokens` behind it."""
    return count_fitting(self.model.config, self.mode, self.room, tokens)

  def _batches(self, numbers, size, kind, quiet) -> Iterator[list[int]]:
    """Yields request numbers, batch_size at a time, the longest first."""
    # Where memory does not suffice, the first batch shows it.
    order = sorted(numbers, key=size, reverse=True)
    quiet = quiet or not distributed.is_main_process()
    with tqdm(total=len(order), desc=kind, disable=quiet) as bar:
      for start in range(0, len(order), self.batch_size):
        chosen = order[start : start + self.batch_size]
        yield chosen
        bar.update(len(chosen))

  def _warn(self, cut) -> None:
    """Logs how many contexts were cut; `cut` is True for each that was."""
    cut = list(cut)
    if any(cut) and distributed.is_main_process():
      logger.warning(
        '%d of %d contexts have more tokens than Config.positions = %d has '
        'room for: their beginnings are left out',
        sum(cut), len(cut), self.model.config.positions,
      )  # fmt: skip


def count_fitting(config, mode: str | None, room: int, tokens: int) -> int:
  """Returns how much of a context has room, with `tokens` behind it.

  `room` is that of a context alone, see `ModelFrame.count_room`.
  """
  if not config.has_encoder:
    left = max(0, room - tokens)
    # There a context is read, and written again.
    return left // 2 if mode == 'denoise' else left
  return min(room, config.positions - tokens) if mode == 'denoise' else room


def _last(n: int, ids: list[int]) -> list[int]:
  return ids[max(0, len(ids) - n) :]


if __name__ == '__main__':
  from lm_eval.__main__ import cli_evaluate

  cli_evaluate()
