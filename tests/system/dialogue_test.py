"""A Blenderbot folder answers text with text, as transformers does."""

import json
import os

import pytest

from atm.inference import api, file_jobs, sampling
from tests.public_folders import GOLDEN, PUBLIC

FOLDER = os.path.join(PUBLIC, 'blenderbot')


@pytest.fixture(scope='module')
def answers() -> list[dict]:
  with open(os.path.join(GOLDEN, 'dialogue.json')) as f:
    return json.load(f)['answers']


def test_answers_are_those_of_transformers(answers, tmp_path):
  pytest.importorskip('transformers')
  config = sampling.Config(max_tokens=12)
  path = tmp_path / 'in.jsonl'
  rows = [json.dumps({'input': row['text']}) + '\n' for row in answers]
  path.write_text(''.join(rows))
  output = file_jobs.InferJob(
    FOLDER, str(path), config=config, batch_size=4, say=lambda text: None
  ).run()
  with open(output) as f:
    found = [json.loads(line)['output'] for line in f]
  assert found == [row['answer'] for row in answers]


def test_stop_strings_and_banned_words(answers):
  """A banned word is written neither at the start of a word nor inside one."""
  pytest.importorskip('transformers')
  model, config = api.load(FOLDER), sampling.Config(max_tokens=12)
  first = answers[3]['answer'][:2]
  assert first.isalpha()
  (outputs,) = model.complete(
    [answers[3]['text']], config=config, banned=[first], stop=['\u4e01', '\n\n']
  )
  assert outputs[0].text and first not in outputs[0].text
  with pytest.raises(ValueError, match='the id 500: expected 0 to 499'):
    model.generate(['a <mask>'], max_tokens=3)
