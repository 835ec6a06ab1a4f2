"""The evaluation sets: where to get each, its licence, files and TFDS name.

docs/evaluation_data.md says the same in prose. The layout of a folder is that
of the release, with or without the folder it unpacks to.
"""

import functools
import os
import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from atm.data import text_reader
from atm.data.languages import LANGUAGE_CODES, LANGUAGES
from atm_tasks.evaluation import readers, superglue, text_context
from atm_tasks.evaluation.dataset_files import DataSet, Paths
from atm_tasks.evaluation.readers import RawExample
from atm_tasks.pretraining import pair_text, pairs, tasks


def either_layout(folder: str, *paths: str) -> list[list[str]]:
  """Returns a release's files, in the folder it unpacks to and without it."""
  return [[os.path.join(folder, path) for path in paths], [*paths]]


# --- Translation

# Our codes -> those of Flores-101 and of Flores-200.
FLORES = {
  'ar': ('ara', 'arb_Arab'), 'de': ('deu', 'deu_Latn'),
  'en': ('eng', 'eng_Latn'), 'es': ('spa', 'spa_Latn'),
  'fr': ('fra', 'fra_Latn'), 'hi': ('hin', 'hin_Deva'),
  'it': ('ita', 'ita_Latn'), 'ja': ('jpn', 'jpn_Jpan'),
  'mr': ('mar', 'mar_Deva'), 'pt': ('por', 'por_Latn'),
  'ta': ('tam', 'tam_Taml'), 'te': ('tel', 'tel_Telu'),
}  # fmt: skip


def _flores_files(part: str, split: str) -> list[list[str]]:
  layouts = []
  for i, folder in enumerate(('flores101_dataset', 'flores200_dataset')):
    paths = [f'{split}/{FLORES[k][i]}.{split}' for k in part.split('_')]
    layouts += either_layout(folder, *paths)
  return layouts


def _read_paths(reader) -> Callable:
  """Makes a `DataSet.read` of a reader that needs neither part nor split."""
  return lambda paths, part, split: reader(paths)


DATASETS: dict[str, DataSet] = {}


def _add(name: str, folder: str = '', **fields) -> None:
  DATASETS[name] = DataSet(name, folder or name, **fields)


_add(
  'flores101',
  url='https://dl.fbaipublicfiles.com/flores101/dataset/'
  'flores101_dataset.tar.gz',
  licence='CC BY-SA 4.0',
  splits={'validation': 'dev', 'test': 'devtest'},
  files=_flores_files,
  read=_read_paths(readers.read_sentence_pairs),
)

# --- Summaries

ENGLISH_NAMES = {code: name.lower() for code, name in LANGUAGES.items()}
SAME = {'train': 'train', 'validation': 'validation', 'test': 'test'}
VAL = {'train': 'train', 'validation': 'val', 'test': 'test'}


def _convert_summaries(document: str, summary: str) -> Callable:
  """Makes a `DataSet.convert` of these fields; blank ones are left out."""

  def convert(e: Mapping, part: str) -> list[RawExample]:
    texts = {'document': e[document], 'summary': e[summary]}
    blank = not all(text.strip() for text in texts.values())
    return [] if blank else [{'id': e['id'], **texts}]

  return convert


def _convert_aligned(e: Mapping, part: str) -> list[RawExample]:
  texts = e['source_aligned'][part], e['target_aligned'][part]
  if not all(text.strip() for text in texts):
    return []
  return [{'id': e['id'], 'document': texts[0], 'summary': texts[1]}]


_add(
  'xsum',
  url='http://bollin.inf.ed.ac.uk/public/direct/'
  'XSUM-EMNLP18-Summary-Data-Original.tar.gz and the file of splits from '
  'https://github.com/EdinburghNLP/XSum',
  licence='articles of the BBC; the code MIT',
  splits=SAME,
  files=lambda part, split: [
    ['XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json', 'bbc-summary-data']
  ],
  read=lambda paths, part, split: readers.read_xsum(paths, split),
  tfds=lambda part: 'xsum',
  convert=_convert_summaries('document', 'summary'),
)
_add(
  'mlsum',
  url='https://gitlab.lip6.fr/scialom/mlsum_data',
  licence='for research only',
  splits=VAL,
  files=lambda part, split: either_layout('MLSUM', f'{part}_{split}.jsonl'),
  read=_read_paths(readers.read_summaries),
  tfds=lambda part: f'gem/mlsum_{part}' if part in ('de', 'es') else '',
  convert=_convert_summaries('text', 'target'),
)
_add(
  'xlsum',
  url='https://github.com/csebuetnlp/xl-sum',
  licence='CC BY-NC-SA 4.0',
  splits=VAL,
  files=lambda part, split: either_layout(
    'XLSum_complete_v2.0', f'{ENGLISH_NAMES[part]}_{split}.jsonl'
  ),
  read=_read_paths(readers.read_summaries),
)
_add(
  'cnn_dailymail',
  url='https://cs.nyu.edu/~kcho/DMQA/ (the stories) and url_lists/ of '
  'https://github.com/abisee/cnn-dailymail',
  licence='articles of CNN and the Daily Mail',
  splits=VAL,
  files=lambda part, split: [
    [f'url_lists/all_{split}.txt', 'cnn/stories', 'dailymail/stories']
  ],
  read=_read_paths(readers.read_cnn_dailymail),
  tfds=lambda part: 'cnn_dailymail',
  convert=_convert_summaries('article', 'highlights'),
)
_add(
  'wikilingua',
  url='https://storage.googleapis.com/huggingface-nlp/datasets/gem/'
  'gem_wikilingua_full/LANGUAGE.zip',
  licence='CC BY-NC-SA 3.0 (wikiHow)',
  splits=VAL,
  files=lambda part, split: [
    [f'{ENGLISH_NAMES[part]}/{split}.{side}.{part}' for side in ('src', 'tgt')]
  ],
  read=_read_paths(readers.read_document_pairs),
  tfds=lambda part: f'gem/wiki_lingua_{ENGLISH_NAMES[part]}_{part}',
  convert=_convert_aligned,
)

# --- Data to text


def _webnlg_files(part: str, split: str) -> list[list[str]]:
  paths = f'en/{split}/*triples/*.xml'
  if split == 'test':
    paths = 'en/test/rdf-to-text-generation-test-data-with-refs-en.xml'
  return either_layout('release_v3.0', paths)


def _convert_webnlg(e: Mapping, part: str) -> list[RawExample]:
  texts = e['references'] or [e['target']]
  data = readers.join_triples(e['input'])
  return [{'id': e['id'], 'data': data, 'texts': texts}]


_add(
  'webnlg',
  url='https://gitlab.com/shimorina/webnlg-dataset',
  licence='CC BY-NC-SA 4.0',
  splits={'train': 'train', 'validation': 'dev', 'test': 'test'},
  files=_webnlg_files,
  read=_read_paths(readers.read_webnlg),
  tfds=lambda part: 'gem/web_nlg_en',
  convert=_convert_webnlg,
)
_add(
  'e2e_nlg',
  url='https://github.com/tuetschek/e2e-dataset/archive/v1.0.0.zip',
  licence='CC BY-SA 4.0',
  splits={'train': 'trainset', 'validation': 'devset',
          'test': 'testset_w_refs'},
  files=lambda part, split: either_layout('e2e-dataset-1.0.0', f'{split}.csv'),
  read=_read_paths(readers.read_e2e),
)  # fmt: skip

# --- Questions


def _convert_squad(e: Mapping, part: str) -> list[RawExample]:
  answers = [] if e['is_impossible'] else e['answers']['text']
  texts = {k: e[k] for k in ('id', 'context', 'question')}
  return [{**texts, 'answers': [*dict.fromkeys(answers)]}]


_add(
  'squadv2',
  url='https://rajpurkar.github.io/SQuAD-explorer/',
  licence='CC BY-SA 4.0',
  splits={'train': 'train', 'validation': 'dev'},
  files=lambda part, split: [[f'{split}-v2.0.json']],
  read=_read_paths(readers.read_squad),
  tfds=lambda part: 'squad/v2.0',
  convert=_convert_squad,
)


def _convert_superglue(task: str) -> Callable:
  """Makes a `DataSet.convert` to examples as the release's files have them."""

  def convert(e: Mapping, part: str) -> list[RawExample]:
    e = dict(e)
    if isinstance(e['idx'], dict):
      names = ('paragraph', 'question', 'answer', 'passage', 'query')
      number = [str(e['idx'][k]) for k in names if k in e['idx']]
      e['id'], e['group'] = '/'.join(number), '/'.join(number[:-1])
    else:
      e['id'] = str(e['idx'])
    if task == 'multirc':
      e['passage'], e['candidate'] = e['paragraph'], e['answer']
    if task == 'copa':
      e['label'] = ('choice1', 'choice2').index(e['label'])
    elif e.get('label') in ('False', 'True'):
      e['label'] = e['label'] == 'True'
    return [e]

  return convert


SUPERGLUE = {
  'boolq': ('BoolQ', functools.partial(
    superglue.read_fields, passage=str, question=str, label=bool)),
  'cb': ('CB', functools.partial(
    superglue.read_entailment, labels=superglue.NLI_LABELS)),
  'copa': ('COPA', readers.read_copa),
  'multirc': ('MultiRC', superglue.read_multirc),
  'record': ('ReCoRD', superglue.read_record),
  'rte': ('RTE', functools.partial(
    superglue.read_entailment, labels=superglue.RTE_LABELS)),
  'wic': ('WiC', functools.partial(
    superglue.read_fields, word=str, sentence1=str, sentence2=str, label=bool)),
  'wsc': ('WSC', superglue.read_wsc),
}  # fmt: skip
for _task, (_name, _reader) in SUPERGLUE.items():
  _add(
    f'superglue_{_task}',
    f'superglue/{_name}',
    url=f'https://dl.fbaipublicfiles.com/glue/superglue/data/v2/{_name}.zip',
    licence='see https://super.gluebenchmark.com/tasks',
    # The labels of `test` are not published.
    splits={'train': 'train', 'validation': 'val'},
    files=lambda part, split: [[f'{split}.jsonl']],
    read=_read_paths(_reader),
    tfds=lambda part, task=_task: (
      f'super_glue/{task}' + '.fixed' * (task == 'wsc')
    ),
    convert=_convert_superglue(_task),
  )


def _convert_xnli(e: Mapping, part: str) -> list[RawExample]:
  at = e['hypothesis']['language'].index(part)
  hypothesis = e['hypothesis']['translation'][at]
  premise = e['premise'][part]
  return [{'id': e['id'], 'premise': premise, 'hypothesis': hypothesis,
           'label': e['label']}]  # fmt: skip


_add(
  'xnli',
  url='https://dl.fbaipublicfiles.com/XNLI/XNLI-1.0.zip',
  licence='CC BY-NC 4.0',
  splits={'validation': 'dev', 'test': 'test'},
  files=lambda part, split: either_layout('XNLI-1.0', f'xnli.{split}.tsv'),
  read=lambda paths, part, split: readers.read_xnli(paths, part),
  tfds=lambda part: 'xnli',
  convert=_convert_xnli,
)
_add(
  'xcopa',
  url='https://github.com/cambridgeltl/xcopa',
  licence='CC BY 4.0',
  splits={'validation': 'val', 'test': 'test'},
  files=lambda part, split: either_layout(
    'data', f'{part}/{split}.{part}.jsonl'
  ),
  read=_read_paths(readers.read_copa),
)


def _pawsx_files(part: str, split: str) -> list[list[str]]:
  name = 'train' if (part, split) == ('en', 'translated_train') else split
  return either_layout('x-final', f'{part}/{name}.tsv')


def _convert_pawsx(e: Mapping, part: str) -> list[RawExample]:
  return [{**e, 'label': int(e['label'] == 'paraphrase')}]


_add(
  'pawsx',
  url='https://storage.googleapis.com/paws/pawsx/x-final.tar.gz',
  licence='may be freely used, see https://github.com/google-research-datasets/'
  'paws',
  splits={'train': 'translated_train', 'validation': 'dev_2k',
          'test': 'test_2k'},
  files=_pawsx_files,
  read=_read_paths(readers.read_pawsx),
  tfds=lambda part: f'paws_x_wiki/{part}',
  convert=_convert_pawsx,
)  # fmt: skip
_add(
  'xwinograd',
  url='https://github.com/yandex-research/crosslingual_winograd',
  licence='see the sets it is made of, listed there',
  splits={'test': 'test'},
  files=lambda part, split: [['dataset.tsv']],
  read=lambda paths, part, split: readers.read_xwinograd(paths, part),
)

# --- The shipped Declaration


def _read_articles(path: str, held_out: bool) -> list[tuple[str, str]]:
  """Reads (article, paragraph) of a split; the preamble is not aligned."""
  lines = text_reader.read_text_lines(path)
  rows = (line.partition('\t') for _, line in lines)
  return [
    (article, text)
    for article, _, text in rows
    if article.isdigit() and tasks.is_held_out(article) == held_out
  ]


def _read_declaration(
  paths: Paths, part: str, split: str
) -> Iterator[RawExample]:
  """Reads paragraphs in two languages; articles have as many in all twelve."""
  source, target = (
    _read_articles(path, split == 'validation') for path in paths
  )
  for i, ((article, one), (other, two)) in enumerate(zip(source, target)):
    assert article == other
    yield {'id': f'{article}/{i}', 'source': one, 'target': two}


def _read_continuations(
  paths: Paths, part: str, split: str
) -> Iterator[RawExample]:
  """Reads the end of each paragraph, among three of the split's other articles.

  `train` is for models that were trained on other text.
  """
  held_out = split == 'validation'
  rows = [
    (article, *text_context.split_in_half(text))
    for article, text in _read_articles(paths[0], held_out)
    if text_context.BREAK.search(text)
  ]
  # Drawn by the language alone: the same for everyone. Each place has the right
  # end as often as the others, as nearly as may be.
  rng = np.random.default_rng(zlib.crc32(part.encode()))
  labels = rng.permutation(len(rows)) % 4
  for i, (article, begun, space, end) in enumerate(rows):
    others = [row[-1] for row in rows if row[0] != article]
    ends = [others[j] for j in rng.choice(len(others), 3, replace=False)]
    label = int(labels[i])
    ends.insert(label, end)
    yield {'id': f'{article}/{i}', 'begun': begun, 'space': space, 'ends': ends,
           'label': label}  # fmt: skip


def _read_languages(
  paths: Paths, part: str, split: str
) -> Iterator[RawExample]:
  source = pairs.LanguagePairs()
  for shard in range(len(paths)):
    for number, stored in enumerate(source.texts(split, shard)):
      yield {'id': f'{shard}/{number}', **pair_text.text_to_pair(stored)}


def _read_contexts(paths: Paths, part: str, split: str) -> Iterator[RawExample]:
  for path, language in zip(paths, LANGUAGE_CODES, strict=True):
    articles = _read_articles(path, split == 'validation')
    yield from text_context.make_questions(language, articles)


def _part_files(part: str, split: str) -> list[list[str]]:
  return [[f'{k}.tsv' for k in part.split('_')]]


def _all_files(part: str, split: str) -> list[list[str]]:
  return [[f'{k}.tsv' for k in LANGUAGE_CODES]]


OWN = {'train': 'train', 'validation': 'validation'}
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
for _name, _files, _reader in (
  ('udhr_translate', _part_files, _read_declaration),
  ('udhr_next', _part_files, _read_continuations),
  ('udhr_language', _all_files, _read_languages),
  ('udhr_context', _all_files, _read_contexts),
):
  _add(_name, os.path.join(_ROOT, 'udhr'), url='atm',
       licence='tasks/udhr/LICENSE', splits=OWN, files=_files,
       read=_reader)  # fmt: skip
# One's own, to fine-tune on with PAIRS = 'DATA_DIR/pairs'.
PAIRS_ENDINGS = [
  f'.{kind}{packing}'
  for kind in ('jsonl', 'json', 'ndjson')
  for packing in ('', '.gz', '.zst', '.bz2', '.xz')
]
for _name, _line, _read in (
  ('pairs', '{"input": ..., "target": ...}', readers.read_pairs),
  (
    'choices',
    '{"input": ..., "choices": [...], "answer": ...}',
    readers.read_choices,
  ),
):
  _add(_name, url=f'your own: a line {_line} each', licence='your own',
       splits=OWN,
       files=lambda part, split: [[f'{split}{x}'] for x in PAIRS_ENDINGS],
       read=_read_paths(_read))  # fmt: skip
