"""A TFDS data set asks the same questions as the files it is made of."""

import dataclasses
import json
import os

import pytest

from atm_tasks.evaluation import registry

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATA = os.path.join(HERE, 'testdata', 'evaluation')


def ask(name: str, data_dir=DATA, **options):
  (task,) = registry.suite(name, data_dir, **options)
  return task.make_questions(None)


def prepare(folder, name: str, split: str, features: dict, rows: list):
  """Writes a TFDS data set, as `tfds build` does."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.dataset_builders import adhoc_builder

  class Prepared(adhoc_builder.AdhocBuilder, skip_registration=True):
    url_infos = None

  name, _, config = name.partition('/')
  Prepared(
    name=name, config=config or None, version='1.0.0', data_dir=str(folder),
    features=tfds.features.FeaturesDict(features),
    split_datasets={split: list(enumerate(rows))},
  ).download_and_prepare(
    download_config=tfds.download.DownloadConfig(num_shards=1)
  )  # fmt: skip


def jsonl(path: str) -> list[dict]:
  with open(f'{DATA}/{path}', encoding='utf-8') as f:
    return [json.loads(line) for line in f]


def by_id(questions) -> list:
  """TFDS has another order; and ids of its own where files have none."""
  return sorted(
    (dataclasses.replace(q, id='') for q in questions),
    key=lambda q: repr((q.prompt, q.pairs)),
  )


# fmt: off
def tfds_sets():
  """task -> (TFDS name, split, features, rows): what TFDS 4.9 makes of it."""
  import numpy as np
  import tensorflow_datasets as tfds

  f = tfds.features
  text, labels = f.Text(), lambda *names: f.ClassLabel(names=names)
  yield (
    'superglue_boolq',
    'super_glue/boolq',
    'validation',
    {
      'passage': text,
      'question': text,
      'idx': np.int32,
      'label': labels('False', 'True'),
    },
    [
      {k: v if k != 'label' else str(v) for k, v in row.items()}
      for row in jsonl('superglue/BoolQ/val.jsonl')
    ],
  )
  yield (
    'superglue_copa',
    'super_glue/copa',
    'validation',
    {
      **dict.fromkeys(('premise', 'choice1', 'choice2', 'question'), text),
      'idx': np.int32,
      'label': labels('choice1', 'choice2'),
    },
    [
      {**row, 'label': f'choice{row["label"] + 1}'}
      for row in jsonl('superglue/COPA/val.jsonl')
    ],
  )
  (row,) = jsonl('superglue/MultiRC/val.jsonl')
  yield (
    'superglue_multirc',
    'super_glue/multirc',
    'validation',
    {
      'paragraph': text,
      'question': text,
      'answer': text,
      'label': labels('False', 'True'),
      'idx': dict.fromkeys(('paragraph', 'question', 'answer'), np.int32),
    },
    [
      {
        'paragraph': row['passage']['text'],
        'question': q['question'],
        'answer': a['text'],
        'label': str(bool(a['label'])),
        'idx': {
          'paragraph': row['idx'],
          'question': q['idx'],
          'answer': a['idx'],
        },
      }
      for q in row['passage']['questions']
      for a in q['answers']
    ],
  )
  (row,) = jsonl('superglue/ReCoRD/val.jsonl')
  yield (
    'superglue_record',
    'super_glue/record',
    'validation',
    {
      'passage': text,
      'query': text,
      'entities': f.Sequence(text),
      'answers': f.Sequence(text),
      'idx': dict.fromkeys(('passage', 'query'), np.int32),
    },
    [
      {
        'passage': row['passage']['text'],
        'query': row['qas'][0]['query'],
        'entities': ['Hillham', 'Ada Finch', 'Bo Lind'],
        'answers': ['Bo Lind'],
        'idx': {'passage': 3, 'query': 7},
      }
    ],
  )
  yield (
    'superglue_wsc',
    'super_glue/wsc.fixed',
    'validation',
    {
      **dict.fromkeys(('text', 'span1_text', 'span2_text'), text),
      **dict.fromkeys(('span1_index', 'span2_index', 'idx'), np.int32),
      'label': labels('False', 'True'),
    },
    [
      {
        'text': row['text'],
        **row['target'],
        'idx': row['idx'],
        'label': str(row['label']),
      }
      for row in jsonl('superglue/WSC/val.jsonl')
    ],
  )
  with open(f'{DATA}/squadv2/dev-v2.0.json') as file:
    (paragraph,) = json.load(file)['data'][0]['paragraphs']
  answer = f.Sequence({'text': text, 'answer_start': np.int32})
  yield (
    'squadv2',
    'squad/v2.0',
    'validation',
    {
      **dict.fromkeys(('id', 'context', 'question'), text),
      'answers': answer,
      'plausible_answers': answer,
      'is_impossible': np.bool_,
    },
    [
      {'plausible_answers': [], **qa, 'context': paragraph['context']}
      for qa in paragraph['qas']
    ],
  )
  yield (
    'xnli_en',
    'xnli',
    'test',
    {
      'premise': f.Translation(['de', 'en']),
      'hypothesis': f.TranslationVariableLanguages(['de', 'en']),
      'label': labels('entailment', 'neutral', 'contradiction'),
    },
    [
      {
        'premise': {'de': 'x', 'en': 'Goats "climb" well.'},
        'hypothesis': {'de': 'y', 'en': 'Goats climb.'},
        'label': 'entailment',
      }
    ],
  )
  yield (
    'pawsx_de',
    'paws_x_wiki/de',
    'test',
    {
      'sentence1': text,
      'sentence2': text,
      'label': labels('different_meaning', 'paraphrase'),
    },
    [
      {
        'sentence1': 'Ada kam "vor" Bo an.',
        'sentence2': 'Bo kam nach Ada an.',
        'label': 'paraphrase',
      },
      {
        'sentence1': 'Ada kam vor Bo an.',
        'sentence2': 'Bo kam vor Ada an.',
        'label': 'different_meaning',
      },
    ],
  )
  yield (
    'wikilingua_fr',
    'gem/wiki_lingua_french_fr',
    'test',
    {
      'source_aligned': f.Translation(['fr', 'en']),
      'target_aligned': f.Translation(['fr', 'en']),
      'source': text,
      'target': text,
    },
    [
      {
        'source_aligned': {
          'fr': 'Pliez la feuille. Coupez le coin.',
          'en': 'x',
        },
        'target_aligned': {'fr': 'Pliez puis coupez.', 'en': 'y'},
        'source': '-',
        'target': '-',
      }
    ],
  )
  yield 'webnlg', 'gem/web_nlg_en', 'test', {
    'input': f.Sequence(text), 'target': text, 'references': f.Sequence(text),
  }, [{'input': ['Red_Lighthouse | colour | Red',
                 'Red_Lighthouse | keeper | Ada_Finch'], 'target': '-',
       'references': ['Ada Finch keeps the Red Lighthouse, which is red.',
                      'The red Red Lighthouse is kept by Ada Finch.']}]
# fmt: on


@pytest.fixture(scope='module')
def tfds_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tfds')
  for _, *made in tfds_sets():
    prepare(folder, *made)
  return str(folder)


@pytest.mark.parametrize('name', [
  'superglue_boolq', 'superglue_copa', 'superglue_multirc', 'superglue_record',
  'superglue_wsc', 'squadv2', 'xnli_en', 'pawsx_de', 'wikilingua_fr', 'webnlg',
])  # fmt: skip
def test_tfds_asks_the_same(tfds_dir, name):
  options = dict(shots=0, tfds_dir=tfds_dir)
  theirs = ask(name, 'nowhere', **options)
  assert by_id(theirs) == by_id(ask(name, **options))
  (task,) = registry.suite(name, 'nowhere', **options)
  assert task.source.startswith(tfds_dir)
