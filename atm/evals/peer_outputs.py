"""Computes by transformers what `atm check` compares, in a process of its own.

The process ends before JAX reads the same weights, so the two models are never
in memory at once. Nothing of JAX is imported. Without torch only the token ids
are computed.
"""

import importlib.util
import os
import sys

import numpy as np

from atm import fileio

REQUEST_FILE, ANSWER_FILE = 'request.json', 'answer.json'
DECODINGS = 'greedy', 'beams', 'defaults'
# Kept of a folder's generation_config.json where decoding is to be plain.
ID_FIELDS = (
  'pad_token_id', 'bos_token_id', 'eos_token_id', 'decoder_start_token_id',
)  # fmt: skip
LANGUAGE_FIRST = 'MBartTokenizer'  # its decoder starts from the language


def states_path(folder: str, number: int) -> str:
  """Returns the path of the encoder states [S, D] of a prompt."""
  return os.path.join(folder, f'states_{number}.npy')


def logits_path(folder: str, number: int) -> str:
  """Returns the path of the logits [T, V] behind a prompt's greedy ids."""
  return os.path.join(folder, f'logits_{number}.npy')


def get_language_id(tokenizer, code: str) -> int:
  """Returns the id of a language, by its code in the tokenizer."""
  if hasattr(tokenizer, 'get_lang_id'):  # M2M-100 writes 'en' as '__en__'
    return tokenizer.get_lang_id(code.strip('_'))
  return tokenizer.convert_tokens_to_ids(code)


def tokenize_prompt(tokenizer, prompt: dict) -> list[int]:
  """Returns the ids of a prompt as the encoder reads them."""
  if (source := prompt['source']) is not None:
    is_m2m = hasattr(tokenizer, 'get_lang_id')
    tokenizer.src_lang = source.strip('_') if is_m2m else source
  ids, end = tokenizer(prompt['text'])['input_ids'], tokenizer.eos_token_id
  # transformers 5 puts no end token behind a Blenderbot's text: version 4 did,
  # as the model was trained.
  is_blenderbot = type(tokenizer).__name__.startswith('BlenderbotTokenizer')
  return [*ids, end] if is_blenderbot and ids[-1:] != [end] else ids


def choose_start(tokenizer, target: str | None) -> dict:
  """Returns the arguments of `generate` for a target language."""
  if target is None:
    return {}
  number = get_language_id(tokenizer, target)
  if type(tokenizer).__name__.removesuffix('Fast') == LANGUAGE_FIRST:
    return {'decoder_start_token_id': number}
  return {'forced_bos_token_id': number}


class Peer:
  """A model of transformers.

  Attributes:
    model: what computes, in evaluation mode.
  """

  def __init__(self, directory: str, dtype: str):
    import torch
    import transformers

    self._torch = torch
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    self.model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
      directory, dtype=getattr(torch, dtype), attn_implementation='eager',
      local_files_only=True,
    ).eval()  # fmt: skip
    self._own = self.model.generation_config
    self._plain = transformers.GenerationConfig(
      **{name: getattr(self._own, name) for name in ID_FIELDS}
    )

  def generate(self, ids, plain: bool, start: dict, **options) -> list[int]:
    """Returns the decoder's ids of a prompt, start token included.

    Args:
      ids: of the encoder.
      plain: whether the folder's generation_config.json counts for ids only.
      start: see `choose_start`.
      options: arguments of `generate`.
    """
    # What is None in a config that `generate` is given, it takes of this one.
    self.model.generation_config = self._plain if plain else self._own
    tensor = self._torch.tensor([ids])
    out = self.model.generate(
      tensor, attention_mask=self._torch.ones_like(tensor), do_sample=False,
      **start, **options,
    )  # fmt: skip
    return out[0].tolist()

  def compute(self, ids, decoder_ids) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32 encoder states [S, D] and logits [T, V]."""
    torch = self._torch
    with torch.no_grad():
      out = self.model(
        input_ids=torch.tensor([ids]),
        decoder_input_ids=torch.tensor([decoder_ids]),
      )
    states, logits = out.encoder_last_hidden_state, out.logits
    return states[0].float().numpy(), logits[0].float().numpy()

  def answer(self, ids, start: dict, request: dict) -> dict[str, list[int]]:
    """Returns what a prompt gives in each of DECODINGS.

    Args:
      ids: of the encoder.
      start: see `choose_start`.
      request: says how many beams and tokens.
    """
    most = {'max_new_tokens': request['max_tokens']}
    beams = {'num_beams': request['beams'], **most}
    return {
      'greedy': self.generate(ids, True, start, num_beams=1, **most),
      'beams': self.generate(ids, True, start, **beams),
      'defaults': self.generate(ids, False, start, **most),
    }


def compute_answers(folder: str, say=print) -> dict:
  """Computes what request.json in a folder asks for; writes answer.json.

  Args:
    folder: for the files of both sides.
    say: prints a line of progress.

  Returns:
    `ids` of each prompt; with torch also those of DECODINGS, from the decoder's
    start token on, and `NAME_texts`; None where a prompt is not computed.
  """
  request = fileio.read_json(os.path.join(folder, REQUEST_FILE))
  prompts = request['prompts']
  tokenizer = open_tokenizer(request['directory'], prompts)
  rows = [
    tokenize_prompt(tokenizer, prompt) if tokenizer else prompt['ids']
    for prompt in prompts
  ]
  answer = {'ids': rows}
  if importlib.util.find_spec('torch') is not None:
    say('transformers reads the weights')
    peer = Peer(request['directory'], request['dtype'])
    texts = [f'{name}_texts' for name in DECODINGS]
    answer |= {name: [] for name in (*DECODINGS, *texts)}
    for number, (ids, prompt) in enumerate(zip(rows, prompts)):
      found = dict.fromkeys((*DECODINGS, *texts))
      if prompt['computed'] and len(ids) <= request['positions']:
        say(f'transformers: prompt {number + 1}')
        start = choose_start(tokenizer, prompt['target'])
        found |= peer.answer(ids, start, request)
        pair = peer.compute(ids, found['greedy'][:-1])
        np.save(states_path(folder, number), pair[0])
        np.save(logits_path(folder, number), pair[1])
        if tokenizer is not None:
          found |= {
            f'{name}_texts': tokenizer.decode(row, skip_special_tokens=True)
            for name, row in found.items()
            if row
          }
      for name, value in found.items():
        answer[name].append(value)
  fileio.write_json(os.path.join(folder, ANSWER_FILE), answer)
  return answer


def open_tokenizer(directory: str, prompts: list[dict]):
  """Returns the tokenizer of a folder, None where prompts have no text."""
  if all(prompt['text'] is None for prompt in prompts):
    return None
  import transformers

  transformers.utils.logging.set_verbosity_error()
  return transformers.AutoTokenizer.from_pretrained(
    directory, local_files_only=True
  )


if __name__ == '__main__':
  compute_answers(sys.argv[1], lambda text: print(text, flush=True))
