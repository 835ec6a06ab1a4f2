"""Writes a run's model card, `atm card`: README.md in Hugging Face's form.

The figures are those of the run's records, see `card_facts`; what nobody
recorded is left to be filled in, and says so.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import atm
from atm import fileio, storage
from atm.data import mixture_stats
from atm.data.language_codes import describe_language
from atm.messages import (
  check_arguments,
  check_flag,
  check_number,
  check_path,
  check_text,
)
from atm.pages import card_facts, render, train_page
from atm.pages.card_facts import RunRecords

CARD = 'README.md'
MARK = '<!-- written by atm card: {} -->\n'
# Tasks of the Hub; one for text from text in general is no longer there.
PIPELINE, TRANSLATION_PIPELINE = 'text-generation', 'translation'


@check_arguments(
  model_dir=partial(check_path, 'MODEL_DIR'),
  output=partial(check_path, 'OUTPUT', optional=True),
  license=partial(check_text, 'LICENSE', empty=False, optional=True),
  watts=partial(check_number, 'WATTS', least=0, whole=False, optional=True),
  overwrite=partial(check_flag, 'OVERWRITE'),
)
def write_card(
  model_dir: str,
  output: str | None = None,
  license: str | None = None,
  watts: float | None = None,
  overwrite: bool = False,
) -> str:
  """Writes a run's model card; returns what names it.

  Args:
    model_dir: the folder of a training run.
    output: the card; None: MODEL_DIR/README.md.
    license: an identifier of the Hub; None: left to be filled in.
    watts: of a device, or of a processor with its machine; None: the rated
      power of the device, where it is known.
    overwrite: replace a card that was edited, or another file.

  Raises:
    FileNotFoundError: there is no checkpoint of a run.
    ValueError: the file there was edited, or is no card.
  """
  path = output or os.path.join(model_dir, CARD)
  records = card_facts.read_run_records(model_dir)
  is_new = not storage.exists(path)
  if not (is_new or overwrite or is_unedited(storage.read_bytes(path))):
    raise ValueError(
      f'{path} was edited, or is no card of `atm card`: OVERWRITE=True '
      'replaces it; or give another OUTPUT'
    )
  data = card_data(records, license, watts)
  filters = {
    'amount': mixture_stats.format_count, 'cell': to_cell, 'yaml': to_yaml,
    'change': train_page.format_change,
  }  # fmt: skip
  text = render.render_markdown('card', data, filters)
  text = re.sub(r'\n{3,}', '\n\n', text)
  fileio.write_atomically(path, seal_card(text))
  return f'wrote {path}'


def seal_card(text: str) -> str:
  """Returns a card with a line that tells whether it was edited."""
  return text + MARK.format(hashlib.sha256(text.encode()).hexdigest()[:16])


def is_unedited(content: bytes) -> bool:
  """Tells whether a file is as `seal_card` returned it."""
  text, break_, mark = content.rpartition(b'\n<!--')
  text += b'\n' * bool(break_)
  try:
    return seal_card(text.decode()) == content.decode()
  except UnicodeDecodeError:
    return False


def card_data(
  records: RunRecords, license: str | None, watts: float | None
) -> dict[str, Any]:
  """Returns what the card shows of a run."""
  data = card_facts.describe_data(records)
  languages = card_facts.collect_languages(records, data)
  scores = card_facts.list_scores(
    card_facts.read_evaluations(records.model_dir)
  )
  losses = train_page.held_out_losses(records.rows)
  objectives = list(data['objectives'] or losses[None])
  name = os.path.basename(storage.absolute(records.model_dir).rstrip('/'))
  pipeline = find_pipeline(objectives, languages)
  return {
    'name': name,
    'distribution': atm.DISTRIBUTION,
    'license': license,
    'languages': languages,
    'codes': sorted(filter(None, set(map(card_facts.to_iso, languages)))),
    'language_names': list(map(describe_language, languages)),
    'tags': list_tags(records, objectives, languages),
    'pipeline': pipeline,
    'source': records.macros.get('INIT_FROM'),
    'mode': records.macros.get('PAIRS_MODE'),
    'step': records.step,
    'config': records.config,
    'parameters': records.count_parameters(),
    'lora': records.adapters,
    'adapters': records.count_adapters(),
    'data': data,
    'work': card_facts.describe_training(records, watts),
    'losses': losses,
    'objectives': list(losses[None]),
    'scores': scores,
    'index': list_results(scores, losses, data['mixture'], pipeline),
    'limitations': card_facts.list_limitations(
      records, data, languages, scores
    ),
  }


def find_pipeline(objectives: Sequence[str], languages: Sequence[str]) -> str:
  """Returns the Hub's name of what a model is for."""
  translates = list(objectives) == ['pair'] and len(languages) > 1
  return TRANSLATION_PIPELINE if translates else PIPELINE


def list_tags(
  records: RunRecords, objectives: Sequence[str], languages: Sequence[str]
) -> list[str]:
  """Lists the tags of a card."""
  tags = ['atm', 'jax', 'encoder-decoder', 'seq2seq', *objectives]
  if len(languages) > 1:
    tags.append('multilingual')
  if records.macros.get('INIT_FROM'):
    tags.append('fine-tuned')
  if records.adapters is not None:
    tags.append('lora')
  return tags


def list_results(
  scores: Sequence[dict], losses: dict, mixture: str, pipeline: str
) -> list[dict]:
  """Lists the results of the metadata's model-index.

  Scores of `atm eval`, or held-out losses where there are none.
  """
  if scores:
    return [
      {
        'task': pipeline,
        'dataset': score['set'],
        'name': score['task'],
        'metric': score['metric'],
        'value': round(score['value'], 4),
        'title': f'{score["title"]}, 95% interval '
        f'{score["low"]:.2f} to {score["high"]:.2f}',
      }
      for score in scores
    ]
  return [
    {
      'task': pipeline,
      'dataset': mixture,
      'name': f'{mixture}, held out ({objective})',
      'metric': 'loss',
      'value': round(float(loss['last']), 4),
      'title': 'loss, nats a token',
    }
    for objective, loss in losses[None].items()
  ]


def to_yaml(value) -> str:
  """Formats a value as JSON, which YAML reads."""
  text = json.dumps(value, ensure_ascii=False)
  return ''.join(c if c.isprintable() else '\ufffd' for c in text)


def to_cell(value) -> str:
  """Formats a value for a cell of a Markdown table, or for its text."""
  text = ' '.join(str(value).split())
  return re.sub(r'([\\`*_|<>\[\]])', r'\\\1', text)
