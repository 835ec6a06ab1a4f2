"""Readers of evaluation data as published: files in, plain examples out.

A reader takes the paths of one split's files and yields an example at a time, a
dict whose `id` is unique in the split; texts are as they are in the file. A
broken file raises ValueError with file and line.
"""

import csv
import hashlib
import itertools
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence

from atm import fileio
from atm.data import text_reader
from atm.data.text_lines import BadRecord
from atm_tasks.pretraining.pair_text import (
  LANGUAGE_FIELDS,
  PAIR_FIELDS,
  get_answer,
)

RawExample = dict


def data_error(path: str, number: int | None, expected: str, got) -> ValueError:
  """Builds the error for line `number` (from 1) of a file, or for all of it."""
  line = '' if number is None else f', line {number}'
  shown = repr(got)
  shown = shown if len(shown) <= 120 else f'{shown[:117]}...'
  return ValueError(f'{path}{line}: expected {expected}; got {shown}')


# --- What files are made of


def read_json_lines(
  path: str, fields: Mapping[str, type | tuple[type, ...]]
) -> Iterator[tuple[int, RawExample]]:
  """Yields (number, object) of a JSONL file whose objects have `fields`."""
  for number, row in text_reader.read_objects(path):
    require_fields(row, fields, path, number)
    yield number, row


def require_fields(row, fields: Mapping, path: str, number: int | None) -> None:
  """Raises ValueError unless a JSON value is an object with these fields."""
  if not isinstance(row, dict):
    raise data_error(path, number, 'a JSON object', row)
  for name, kind in fields.items():
    kinds = kind if isinstance(kind, tuple) else (kind,)
    # A bool is an int to Python, but not in these files.
    if name not in row or type(row[name]) not in kinds:
      names = ' or '.join(k.__name__ for k in kinds)
      got = row.get(name, f'an object with {", ".join(map(str, row))}')
      raise data_error(path, number, f'a field {name!r}, {names}', got)


def look_up(value, known: Mapping, path: str, number: int, what: str):
  """Looks up known[value]; raises ValueError where there is none."""
  if value not in known:
    names = ', '.join(map(repr, known))
    raise data_error(path, number, f'{what}, one of {names}', value)
  return known[value]


def read_tsv(
  path: str, columns: Sequence[str]
) -> Iterator[tuple[int, RawExample]]:
  """Yields (number, column -> text) of a file with a header; no quoting."""
  header: list[str] | None = None
  for number, line in text_reader.read_text_lines(path):
    cells = line.split('\t')
    if header is None:
      if missing := [name for name in columns if name not in cells]:
        raise data_error(path, number, f'columns {", ".join(missing)}', line)
      header = cells
    elif line:
      if len(cells) != len(header):
        raise data_error(path, number, f'{len(header)} columns', line)
      yield number, dict(zip(header, cells))


def read_parallel(paths: Sequence[str]) -> Iterator[tuple[str, ...]]:
  """Yields the lines of several files side by side."""
  missing = object()
  files = [text_reader.read_text_lines(path) for path in paths]
  for found in itertools.zip_longest(*files, fillvalue=missing):
    for path, line in zip(paths, found):
      if line is missing:
        raise ValueError(
          f'{path}: expected as many lines as in {", ".join(paths)}; it ends '
          'before the others do'
        )
    yield tuple(text for _, text in found)


# --- Translation and summaries


def read_sentence_pairs(paths: Sequence[str]) -> Iterator[RawExample]:
  """Reads {source, target} of two files; Flores-101 and Flores-200."""
  for i, (source, target) in enumerate(read_parallel(paths)):
    yield {'id': str(i), 'source': source, 'target': target}


def read_document_pairs(paths: Sequence[str]) -> Iterator[RawExample]:
  """Reads {document, summary} of two files, one a line; WikiLingua of GEM."""
  for i, (document, summary) in enumerate(read_parallel(paths)):
    if document.strip() and summary.strip():
      yield {'id': str(i), 'document': document, 'summary': summary}


def read_summaries(paths: Sequence[str]) -> Iterator[RawExample]:
  """Reads `text` and `summary` of JSONL but empty ones; MLSum, XL-Sum."""
  fields = {'text': str, 'summary': str}
  for number, row in read_json_lines(paths[0], fields):
    if row['text'].strip() and row['summary'].strip():
      yield {'id': str(number - 1), 'document': row['text'],
             'summary': row['summary']}  # fmt: skip


# What the pages around XSum's articles left in them, as in its release 1.1.
_PAGE = frozenset(
  'Share this with,Email,Facebook,Messenger,Twitter,Pinterest,WhatsApp,'
  'Linkedin,LinkedIn,Copy this link,'
  'These are external links and will open in a new window'.split(',')
)


def read_xsum(paths: Sequence[str], split: str) -> Iterator[RawExample]:
  """Reads XSum: the file of splits, and the folder of ID.summary it names.

  The summary is the section FIRST-SENTENCE, the document RESTBODY; articles
  without one of them are left out.
  """
  names = text_reader.read_document(paths[0])
  require_fields(names, {split: list}, paths[0], None)
  for name in names[split]:
    path = os.path.join(paths[1], f'{name}.summary')
    if not os.path.exists(path):
      raise ValueError(f'{paths[0]} names {name!r} in {split!r}, but {path} '
                       'is not there')  # fmt: skip
    sections: dict[str, list[str]] = {'': []}
    section = ''
    for _, line in text_reader.read_text_lines(path):
      if line.startswith('[SN]'):
        section = line.strip().removeprefix('[SN]').removesuffix('[SN]')
        sections[section] = []
      elif line.strip() and line not in _PAGE:
        sections[section].append(line)
    for wanted in ('FIRST-SENTENCE', 'RESTBODY'):
      if wanted not in sections:
        raise data_error(
          path, None, f'a line [SN]{wanted}[SN]', [*sections][1:]
        )
    document, summary = sections['RESTBODY'], sections['FIRST-SENTENCE']
    if document and summary:
      yield {'id': name, 'document': '\n'.join(document),
             'summary': '\n'.join(summary)}  # fmt: skip


# What a line of CNN and Daily Mail may end in; others get a full stop, as in
# the release the field compares with: captions have none.
_ENDS = ('.', '!', '?', "'", '`', '"', '’', '”', ')')


def read_cnn_dailymail(paths: Sequence[str]) -> Iterator[RawExample]:
  """Reads CNN / Daily Mail, not anonymised: URLs, and folders of stories.

  A story is named by the SHA-1 of its URL; what follows `@highlight` is its
  summary, a line each. Stories without text or highlights are left out.
  """
  urls, *folders = paths
  for number, url in text_reader.read_text_lines(urls):
    name = hashlib.sha1(url.strip().encode()).hexdigest()
    found = [os.path.join(folder, f'{name}.story') for folder in folders]
    path = next(filter(os.path.exists, found), None)
    if path is None:
      raise data_error(urls, number, f'the URL of a story in {folders}', url)
    document, summary = _read_story(path)
    if document and summary:
      yield {'id': name, 'document': ' '.join(document),
             'summary': '\n'.join(summary)}  # fmt: skip


def _read_story(path: str) -> tuple[list[str], list[str]]:
  document, summary = [], []
  into = document
  for _, line in text_reader.read_text_lines(path):
    line = line.strip()
    if line.startswith('@highlight'):
      into = summary
    elif line:
      into.append(line if line.endswith(_ENDS) else f'{line}.')
  return document, summary


# --- Data to text


def read_e2e(paths: Sequence[str]) -> Iterator[RawExample]:
  """Reads E2E, a CSV of `mr` and `ref`, with all references of one `mr`."""
  texts: dict[str, list[str]] = {}
  lines = text_reader.read_text_lines(paths[0])
  reader = csv.DictReader(line for _, line in lines)
  try:
    if not {'mr', 'ref'} <= set(reader.fieldnames or ()):
      raise data_error(paths[0], 1, 'columns mr, ref', reader.fieldnames)
    for row in reader:
      if not row['mr'] or not row['ref']:
        raise data_error(paths[0], reader.line_num, 'mr and ref', row)
      texts.setdefault(row['mr'], []).append(row['ref'])
  except csv.Error as e:
    raise data_error(paths[0], reader.line_num, 'CSV', str(e)) from e
  for i, (data, references) in enumerate(texts.items()):
    yield {'id': str(i), 'data': data, 'texts': references}


def read_webnlg(paths: Sequence[str]) -> Iterator[RawExample]:
  """Reads WebNLG: XML files with triples and their texts in English."""
  for path in paths:
    fileio.check_regular(path)
    try:
      entries = ET.parse(path).getroot().iter('entry')
    except ET.ParseError as e:
      raise data_error(path, e.position[0], 'XML', str(e)) from e
    except (LookupError, ValueError) as e:  # of the encoding that it names
      raise data_error(path, None, 'XML in UTF-8', str(e)) from e
    for entry in entries:
      name = f'{entry.get("category")}/{entry.get("size")}/{entry.get("eid")}'
      triples = [x.text or '' for x in entry.iterfind('modifiedtripleset/*')]
      english = [x.text or '' for x in entry.iterfind('lex')
                 if x.get('lang', 'en') == 'en']  # fmt: skip
      texts = [*filter(None, map(str.strip, english))]
      if not triples or not texts:
        raise data_error(path, None, 'mtriple and lex in an entry', name)
      yield {'id': name, 'data': join_triples(triples), 'texts': texts}


def join_triples(triples: Sequence[str]) -> str:
  """Writes WebNLG's triples on one line: `A | b | C, A | d | E`, no `_`."""
  return ', '.join(triple.strip().replace('_', ' ') for triple in triples)


# --- Questions


def read_squad(paths: Sequence[str]) -> Iterator[RawExample]:
  """Reads SQuAD 2.0 but its plausible answers, which are wrong."""
  whole = text_reader.read_document(paths[0])
  require_fields(whole, {'data': list}, paths[0], None)
  for article in whole['data']:
    require_fields(article, {'paragraphs': list}, paths[0], None)
    for paragraph in article['paragraphs']:
      require_fields(paragraph, {'context': str, 'qas': list}, paths[0], None)
      for qa in paragraph['qas']:
        fields = {'id': str, 'question': str, 'answers': list}
        require_fields(qa, fields, paths[0], None)
        answers = [] if qa.get('is_impossible') else qa['answers']
        for answer in answers:
          require_fields(answer, {'text': str}, paths[0], None)
        yield {
          'id': qa['id'],
          'context': paragraph['context'],
          'question': qa['question'],
          'answers': [*dict.fromkeys(answer['text'] for answer in answers)],
        }


def read_xnli(paths: Sequence[str], language: str) -> Iterator[RawExample]:
  """Reads XNLI 1.0, a file of all languages; XNLI-MT writes `contradictory`."""
  labels = {'entailment': 'entailment', 'neutral': 'neutral',
            'contradiction': 'contradiction',
            'contradictory': 'contradiction'}  # fmt: skip
  columns = ('language', 'gold_label', 'sentence1', 'sentence2', 'pairID')
  for number, row in read_tsv(paths[0], columns):
    if row['language'] == language:
      label = look_up(
        row['gold_label'], labels, paths[0], number, 'a gold_label'
      )
      yield {'id': row['pairID'], 'premise': row['sentence1'],
             'hypothesis': row['sentence2'], 'label': label}  # fmt: skip


def read_pawsx(paths: Sequence[str]) -> Iterator[RawExample]:
  """Reads PAWS-X: id, sentence1, sentence2, label: 1 is a paraphrase.

  Rows without a label of 0 or 1 are left out, as everywhere.
  """
  columns = ('id', 'sentence1', 'sentence2', 'label')
  for _, row in read_tsv(paths[0], columns):
    if row['label'] in ('0', '1'):
      yield {**row, 'label': int(row['label'])}


def read_copa(paths: Sequence[str]) -> Iterator[RawExample]:
  """Reads COPA and XCOPA but `changed`."""
  fields = dict.fromkeys(('premise', 'choice1', 'choice2', 'question'), str)
  for number, row in read_json_lines(paths[0], {**fields, 'label': int}):
    look_up(row['question'], {'cause': 0, 'effect': 1}, paths[0], number,
           'a question')  # fmt: skip
    look_up(row['label'], {0: 0, 1: 1}, paths[0], number, 'a label')
    yield {**row, 'id': str(row.get('idx', number - 1))}


def read_xwinograd(paths: Sequence[str], language: str) -> Iterator[RawExample]:
  """Reads XWinograd: seven columns, no header; Japanese is `jp`.

  The pronoun and the answers are JSON: text, range of tokens, tokens, and of
  answers whether it is the right one.
  """
  code = {'ja': 'jp'}.get(language, language)
  expected = 'language, source, English, text, tokens, pronoun, answers'
  for number, line in text_reader.read_text_lines(paths[0]):
    cells = line.split('\t')
    if len(cells) != 7:
      raise data_error(paths[0], number, f'7 columns, {expected}', line)
    if cells[0] != code:
      continue
    try:
      tokens, pronoun, answers = map(text_reader.parse_value, cells[4:])
      names = [answer[0] for answer in answers]
      label = [answer[3] for answer in answers].index(True)
      start = _find_pronoun(cells[3], tokens, pronoun)
    except (ValueError, LookupError, TypeError) as e:
      raise data_error(paths[0], number, expected, line) from e
    yield {'id': str(number - 1), 'before': cells[3][:start],
           'after': cells[3][start + len(pronoun[0]) :], 'options': names,
           'label': label}  # fmt: skip


def _find_pronoun(text: str, tokens: Sequence[str], pronoun) -> int:
  """Returns the pronoun's index in the text; `tokens` are the text's."""
  at = 0
  for token in tokens[: pronoun[1][0]]:
    found = text.find(token, at)  # NLTK's own quotes are not there
    at = found + len(token) if found >= 0 else at
  places = [i for i in range(len(text)) if text.startswith(pronoun[0], i)]
  if not places:
    raise ValueError(f'{pronoun[0]!r} is not in the text')
  behind = [i for i in places if i >= at]
  return behind[0] if behind else places[-1]


# --- One's own


def read_pairs(paths: Sequence[str]) -> Iterator[RawExample]:
  """Reads the fields of pairs of JSONL, see `pretraining.pair_text`."""
  for number, row in text_reader.read_objects(paths[0]):
    if not isinstance(row.get('translation'), dict):
      require_fields(row, {'input': str, 'target': str}, paths[0], number)
    names = (*PAIR_FIELDS, *LANGUAGE_FIELDS, 'translation')
    yield {'id': str(number), **{k: row[k] for k in names if k in row}}


def read_choices(paths: Sequence[str]) -> Iterator[RawExample]:
  """Reads inputs with choices of JSONL, see `pretraining.pair_text`."""
  for number, row in text_reader.read_objects(paths[0]):
    require_fields(row, {'input': str, 'choices': list}, paths[0], number)
    try:
      answer = get_answer(row)
    except BadRecord as e:
      raise ValueError(f'{paths[0]}, line {number}: {e}') from e
    fields = {name: row[name] for name in ('input', 'choices')}
    yield {'id': str(number), **fields, 'answer': answer}
