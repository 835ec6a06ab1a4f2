"""Evaluation data as it is published: files in, plain examples out.

A reader takes the paths of one split's files and yields an example at a time, a
dict whose `id` is unique in the split; texts are as they are in the file. What
a file does not hold as it should is a ValueError with file and line.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence

Example = dict


def wrong(path: str, number: int | None, expected: str, got) -> ValueError:
  """The error for line `number` (from 1) of a file, or for all of it."""
  line = '' if number is None else f', line {number}'
  shown = repr(got)
  shown = shown if len(shown) <= 120 else f'{shown[:117]}...'
  return ValueError(f'{path}{line}: expected {expected}; got {shown}')


# --- What files are made of


def lines(path: str) -> Iterator[tuple[int, str]]:
  """(number from 1, line without its end) of a text file."""
  with open(path, 'rb') as f:
    for number, raw in enumerate(f, 1):
      try:
        line = raw.decode('utf-8-sig' if number == 1 else 'utf-8')
      except UnicodeDecodeError as e:
        raise wrong(path, number, 'UTF-8', raw) from e
      yield number, line.rstrip('\r\n')


def json_lines(
  path: str, fields: Mapping[str, type | tuple[type, ...]]
) -> Iterator[tuple[int, Example]]:
  """(number, object) of a JSONL file whose objects have `fields`."""
  for number, line in lines(path):
    if line.strip():
      try:
        row = json.loads(line)
      except ValueError as e:
        raise wrong(path, number, 'a JSON object', line) from e
      need(row, fields, path, number)
      yield number, row


def need(row, fields: Mapping, path: str, number: int | None) -> None:
  """Raises ValueError unless a JSON value is an object with these fields."""
  if not isinstance(row, dict):
    raise wrong(path, number, 'a JSON object', row)
  for name, kind in fields.items():
    kinds = kind if isinstance(kind, tuple) else (kind,)
    # A bool is an int to Python, but not in these files.
    if name not in row or type(row[name]) not in kinds:
      names = ' or '.join(k.__name__ for k in kinds)
      got = row.get(name, f'an object with {", ".join(map(str, row))}')
      raise wrong(path, number, f'a field {name!r}, {names}', got)


def one_of(value, known: Mapping, path: str, number: int, what: str):
  """known[value]; raises ValueError where there is none."""
  if value not in known:
    names = ', '.join(map(repr, known))
    raise wrong(path, number, f'{what}, one of {names}', value)
  return known[value]


def tab_separated(
  path: str, columns: Sequence[str]
) -> Iterator[tuple[int, Example]]:
  """(number, column -> text) of a file with a header; quotes are plain text."""
  header: list[str] | None = None
  for number, line in lines(path):
    cells = line.split('\t')
    if header is None:
      if missing := [name for name in columns if name not in cells]:
        raise wrong(path, number, f'columns {", ".join(missing)}', line)
      header = cells
    elif line:
      if len(cells) != len(header):
        raise wrong(path, number, f'{len(header)} columns', line)
      yield number, dict(zip(header, cells))


def whole_json(path: str):
  """The value of a JSON file."""
  try:
    with open(path, encoding='utf-8-sig') as f:
      return json.load(f)
  except ValueError as e:
    raise wrong(path, getattr(e, 'lineno', None), 'JSON', str(e)) from e


def parallel(paths: Sequence[str]) -> Iterator[tuple[str, ...]]:
  """The lines of files of which line i belongs to line i of the others."""
  missing = object()
  files = [lines(path) for path in paths]
  for found in itertools.zip_longest(*files, fillvalue=missing):
    for path, line in zip(paths, found):
      if line is missing:
        raise ValueError(
          f'{path}: expected as many lines as in {", ".join(paths)}; it ends '
          'before the others do'
        )
    yield tuple(text for _, text in found)


# --- Translation and summaries


def sentence_pairs(paths: Sequence[str]) -> Iterator[Example]:
  """{source, target} of two files; Flores-101 and Flores-200."""
  for i, (source, target) in enumerate(parallel(paths)):
    yield {'id': str(i), 'source': source, 'target': target}


def document_pairs(paths: Sequence[str]) -> Iterator[Example]:
  """{document, summary} of two files, a document a line; WikiLingua of GEM."""
  for i, (document, summary) in enumerate(parallel(paths)):
    if document.strip() and summary.strip():
      yield {'id': str(i), 'document': document, 'summary': summary}


def text_and_summary(paths: Sequence[str]) -> Iterator[Example]:
  """JSONL with `text` and `summary`: MLSum, XL-Sum. Empty ones are left out."""
  fields = {'text': str, 'summary': str}
  for number, row in json_lines(paths[0], fields):
    if row['text'].strip() and row['summary'].strip():
      yield {'id': str(number - 1), 'document': row['text'],
             'summary': row['summary']}  # fmt: skip


# What the pages around XSum's articles left in them, as in its release 1.1.
_PAGE = frozenset(
  'Share this with,Email,Facebook,Messenger,Twitter,Pinterest,WhatsApp,'
  'Linkedin,LinkedIn,Copy this link,'
  'These are external links and will open in a new window'.split(',')
)


def xsum(paths: Sequence[str], split: str) -> Iterator[Example]:
  """XSum: the file of splits, and the folder of ID.summary it names.

  The summary is the section FIRST-SENTENCE, the document RESTBODY; articles
  without one of them are left out.
  """
  names = whole_json(paths[0])
  need(names, {split: list}, paths[0], None)
  for name in names[split]:
    path = os.path.join(paths[1], f'{name}.summary')
    if not os.path.exists(path):
      raise ValueError(f'{paths[0]} names {name!r} in {split!r}, but {path} '
                       'is not there')  # fmt: skip
    sections: dict[str, list[str]] = {'': []}
    section = ''
    for _, line in lines(path):
      if line.startswith('[SN]'):
        section = line.strip().removeprefix('[SN]').removesuffix('[SN]')
        sections[section] = []
      elif line.strip() and line not in _PAGE:
        sections[section].append(line)
    for wanted in ('FIRST-SENTENCE', 'RESTBODY'):
      if wanted not in sections:
        raise wrong(path, None, f'a line [SN]{wanted}[SN]', [*sections][1:])
    document, summary = sections['RESTBODY'], sections['FIRST-SENTENCE']
    if document and summary:
      yield {'id': name, 'document': '\n'.join(document),
             'summary': '\n'.join(summary)}  # fmt: skip


# What a line of CNN and Daily Mail may end in; others get a full stop, as in
# the release the field compares with: captions have none.
_ENDS = ('.', '!', '?', "'", '`', '"', '’', '”', ')')


def cnn_dailymail(paths: Sequence[str]) -> Iterator[Example]:
  """CNN / Daily Mail, not anonymised: a list of URLs, and folders of stories.

  A story is named by the SHA-1 of its URL; what follows `@highlight` is its
  summary, a line each. Stories without text or highlights are left out.
  """
  urls, *folders = paths
  for number, url in lines(urls):
    name = hashlib.sha1(url.strip().encode()).hexdigest()
    found = [os.path.join(folder, f'{name}.story') for folder in folders]
    path = next(filter(os.path.exists, found), None)
    if path is None:
      raise wrong(urls, number, f'the URL of a story in {folders}', url)
    document, summary = _story(path)
    if document and summary:
      yield {'id': name, 'document': ' '.join(document),
             'summary': '\n'.join(summary)}  # fmt: skip


def _story(path: str) -> tuple[list[str], list[str]]:
  document, summary = [], []
  into = document
  for _, line in lines(path):
    line = line.strip()
    if line.startswith('@highlight'):
      into = summary
    elif line:
      into.append(line if line.endswith(_ENDS) else f'{line}.')
  return document, summary


# --- Data to text


def e2e(paths: Sequence[str]) -> Iterator[Example]:
  """E2E: a CSV of `mr` and `ref`; the references of one `mr` become one."""
  texts: dict[str, list[str]] = {}
  reader = csv.DictReader(line for _, line in lines(paths[0]))
  if not {'mr', 'ref'} <= set(reader.fieldnames or ()):
    raise wrong(paths[0], 1, 'columns mr, ref', reader.fieldnames)
  for row in reader:
    if not row['mr'] or not row['ref']:
      raise wrong(paths[0], reader.line_num, 'mr and ref', row)
    texts.setdefault(row['mr'], []).append(row['ref'])
  for i, (data, references) in enumerate(texts.items()):
    yield {'id': str(i), 'data': data, 'texts': references}


def webnlg(paths: Sequence[str]) -> Iterator[Example]:
  """WebNLG: XML files with entries of triples and their texts in English."""
  for path in paths:
    try:
      entries = ET.parse(path).getroot().iter('entry')
    except ET.ParseError as e:
      raise wrong(path, e.position[0], 'XML', str(e)) from e
    for entry in entries:
      name = f'{entry.get("category")}/{entry.get("size")}/{entry.get("eid")}'
      triples = [x.text or '' for x in entry.iterfind('modifiedtripleset/*')]
      english = [x.text or '' for x in entry.iterfind('lex')
                 if x.get('lang', 'en') == 'en']  # fmt: skip
      texts = [*filter(None, map(str.strip, english))]
      if not triples or not texts:
        raise wrong(path, None, 'mtriple and lex in an entry', name)
      yield {'id': name, 'data': triples_text(triples), 'texts': texts}


def triples_text(triples: Sequence[str]) -> str:
  """WebNLG's triples on one line: `A | b | C, A | d | E`, without `_`."""
  return ', '.join(triple.strip().replace('_', ' ') for triple in triples)


# --- Questions


def squad(paths: Sequence[str]) -> Iterator[Example]:
  """SQuAD 2.0. Its plausible answers are none, and are not read."""
  whole = whole_json(paths[0])
  need(whole, {'data': list}, paths[0], None)
  for article in whole['data']:
    need(article, {'paragraphs': list}, paths[0], None)
    for paragraph in article['paragraphs']:
      need(paragraph, {'context': str, 'qas': list}, paths[0], None)
      for qa in paragraph['qas']:
        fields = {'id': str, 'question': str, 'answers': list}
        need(qa, fields, paths[0], None)
        answers = [] if qa.get('is_impossible') else qa['answers']
        yield {
          'id': qa['id'],
          'context': paragraph['context'],
          'question': qa['question'],
          'answers': [*dict.fromkeys(answer['text'] for answer in answers)],
        }


def xnli(paths: Sequence[str], language: str) -> Iterator[Example]:
  """XNLI 1.0: all languages in one file; XNLI-MT writes `contradictory`."""
  labels = {'entailment': 'entailment', 'neutral': 'neutral',
            'contradiction': 'contradiction',
            'contradictory': 'contradiction'}  # fmt: skip
  columns = ('language', 'gold_label', 'sentence1', 'sentence2', 'pairID')
  for number, row in tab_separated(paths[0], columns):
    if row['language'] == language:
      label = one_of(
        row['gold_label'], labels, paths[0], number, 'a gold_label'
      )
      yield {'id': row['pairID'], 'premise': row['sentence1'],
             'hypothesis': row['sentence2'], 'label': label}  # fmt: skip


def pawsx(paths: Sequence[str]) -> Iterator[Example]:
  """PAWS-X: id, sentence1, sentence2, label: 1 is a paraphrase.

  Rows without a label of 0 or 1 are left out, as everywhere.
  """
  columns = ('id', 'sentence1', 'sentence2', 'label')
  for _, row in tab_separated(paths[0], columns):
    if row['label'] in ('0', '1'):
      yield {**row, 'label': int(row['label'])}


def copa(paths: Sequence[str]) -> Iterator[Example]:
  """COPA and XCOPA, whose `changed` is not needed."""
  fields = dict.fromkeys(('premise', 'choice1', 'choice2', 'question'), str)
  for number, row in json_lines(paths[0], {**fields, 'label': int}):
    one_of(row['question'], {'cause': 0, 'effect': 1}, paths[0], number,
           'a question')  # fmt: skip
    one_of(row['label'], {0: 0, 1: 1}, paths[0], number, 'a label')
    yield {**row, 'id': str(row.get('idx', number - 1))}


def xwinograd(paths: Sequence[str], language: str) -> Iterator[Example]:
  """XWinograd: seven columns, no header; Japanese is `jp`.

  The pronoun and the answers are JSON: text, range of tokens, tokens, and of
  answers whether it is the right one.
  """
  code = {'ja': 'jp'}.get(language, language)
  expected = 'language, source, English, text, tokens, pronoun, answers'
  for number, line in lines(paths[0]):
    cells = line.split('\t')
    if len(cells) != 7:
      raise wrong(paths[0], number, f'7 columns, {expected}', line)
    if cells[0] != code:
      continue
    try:
      tokens, pronoun, answers = map(json.loads, cells[4:])
      names = [answer[0] for answer in answers]
      label = [answer[3] for answer in answers].index(True)
      start = _place(cells[3], tokens, pronoun)
    except (ValueError, LookupError, TypeError) as e:
      raise wrong(paths[0], number, expected, line) from e
    yield {'id': str(number - 1), 'before': cells[3][:start],
           'after': cells[3][start + len(pronoun[0]) :], 'options': names,
           'label': label}  # fmt: skip


def _place(text: str, tokens: Sequence[str], pronoun) -> int:
  """Where the pronoun stands in the text, of which `tokens` are the tokens."""
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


def pairs(paths: Sequence[str]) -> Iterator[Example]:
  """JSONL of `input` and `target`: {id, input, target}."""
  for number, row in json_lines(paths[0], {'input': str, 'target': str}):
    yield {'id': str(number), 'input': row['input'], 'target': row['target']}
