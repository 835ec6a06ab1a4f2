"""Tasks of generated episodes, see `episodes`: answers to write and to choose.

Each example has its own shots. A prompt is a document to train on, up to its
answer. So a model that was trained on other episodes knows their form alone.
"""

import functools
import os
from collections.abc import Iterator, Mapping

from atm.inference.prompts import Template
from atm_tasks import episodes
from atm_tasks.evaluation.dataset_files import DataSet, Paths
from atm_tasks.evaluation.datasets import DATASETS, OWN
from atm_tasks.evaluation.generation import PromptFormat
from atm_tasks.evaluation.multiple_choice import (
  ChoiceFormat,
  Cut,
  WrittenExample,
  fill_template,
  write_endings,
)
from atm_tasks.evaluation.readers import RawExample


def add_data_set(family: str) -> None:
  """Adds the episodes of a family to DATASETS; they are read of no file."""

  def read(paths: Paths, part: str, split: str) -> Iterator[RawExample]:
    for number in range(episodes.EPISODES[split]):
      episode = episodes.draw_episode(family, split, number)
      choices, label = episode.choices()
      yield {
        'id': str(number),
        'query': episode.query,
        'choices': choices,
        'label': label,
        'choose_shots': functools.partial(list_shots, episode),
      }

  name = f'in_context_{family}'
  DATASETS[name] = DataSet(
    name,
    folder=os.path.dirname(episodes.__file__),
    url='atm',
    licence='Apache-2.0',
    splits={**OWN, 'test': 'test'},
    # The program that draws them.
    files=lambda part, split: [[os.path.basename(episodes.__file__)]],
    read=read,
  )


def list_shots(episode: episodes.Episode, k: int) -> list[RawExample]:
  """Returns k shots of an episode, MOST_SHOTS at most."""
  return [
    {'query': query, 'choices': [answer], 'label': 0}
    for query, answer in episode.choose_shots(k)
  ]


def read_answer(example: Mapping) -> str:
  """Returns the right choice of an example."""
  return example['choices'][example['label']]


def write_choices(
  template: Template, example: Mapping, language: str, cut: Cut
) -> WrittenExample:
  """Writes the choices of an episode, each with the delimiter behind it.

  The delimiter makes an answer that begins as another one end where it does.
  """
  question = fill_template(template, query=example['query'])
  ends = [f'{answer}{template.cut}' for answer in example['choices']]
  return WrittenExample(
    write_endings(question, ends), example['label'], {'query': example['query']}
  )


def make_formats(family: str) -> tuple[PromptFormat, ChoiceFormat]:
  """Returns how the answers of a family are written, and its choices."""
  template = episodes.choose_template(family)
  written = PromptFormat(
    template,
    lambda e, language: {'query': e['query'], 'answer': read_answer(e)},
    read_answer,
    max_tokens=16,
  )
  # All of an answer counts, as that is how likely the model writes it.
  chosen = ChoiceFormat(
    functools.partial(write_choices, template), normalize='sum', between=' '
  )
  return written, chosen


for family in episodes.FAMILIES:
  add_data_set(family)
