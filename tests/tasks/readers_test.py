"""Readers of evaluation data: what is left out, and broken files."""

import os
import shutil

import pytest

from atm_tasks.evaluation import data_check, readers, registry

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATA = os.path.join(HERE, 'testdata', 'evaluation')


def ask(name: str, data_dir=DATA, **options):
  (task,) = registry.suite(name, str(data_dir), **options)
  return task.make_questions(None)


def test_contradictory_is_a_contradiction():
  """As XNLI-MT, the training set, writes it; our file has it in `dev`."""
  assert [q.truth for q in ask('xnli_de', split='validation')] == [1, 2]


def test_what_is_left_out():
  assert len(ask('pawsx_de')) == 2  # of three rows, one without a label
  assert len(ask('mlsum_de')) == 1  # of two, one empty
  assert len(ask('xsum')) == 1  # of two, one without a body
  assert ask('squadv2')[0].truth == ['Ada Finch', 'Ada']
  assert 'Share this' not in ask('xsum')[0].prompt


BROKEN = {
  'superglue/BoolQ/val.jsonl': [
    ('{', 'line 2: expected an object'),
    ('[1]', 'line 2: expected an object'),
    (r'{"question": "\ud83d", "passage": "b", "idx": 1, "label": true}',
     'line 2: expected text; got `question` = '),
    ('{"question": "a", "passage": "b", "idx": 1, "label": 1}',
     "line 2: expected a field 'label', bool; got 1"),
    ('{"question": "a", "idx": 1, "label": true}',
     "line 2: expected a field 'passage', str"),
    (b'\xff', 'line 2: expected UTF-8'),
  ],
  'superglue/CB/val.jsonl': [
    ('{"premise": "a", "hypothesis": "b", "label": "contradictory", "idx": 1}',
     "line 2: expected a label, one of 'entailment', 'contradiction', "
     "'neutral'; got 'contradictory'"),
  ],
  'superglue/COPA/val.jsonl': [
    ('{"premise": "a", "choice1": "b", "choice2": "c", "question": "why", '
     '"label": 0, "idx": 1}', "line 2: expected a question, one of 'cause'"),
    ('{"premise": "a", "choice1": "b", "choice2": "c", "question": "cause", '
     '"label": 2, "idx": 1}', 'line 2: expected a label, one of 0, 1; got 2'),
  ],
  'xnli/XNLI-1.0/xnli.test.tsv': [('de\tneutral', 'line 2: expected 19 col')],
  'pawsx/x-final/de/test_2k.tsv': [('4\ta\tb', 'line 2: expected 4 columns')],
  'xwinograd/dataset.tsv': [
    ('fr\ta', 'line 2: expected 7 columns, language'),
    ('fr\ts\t?\tIl dort.\t["Il"]\t["Elle", [0, 1]]\t[["A", 0, 0, true]]',
     'line 2: expected language, source'),
    ('fr\ts\t?\tIl dort.\t["Il"]\t["Il", [0, 1]]\t[["A", 0, 0, false]]',
     'line 2: expected language, source'),
  ],
  'e2e_nlg/e2e-dataset-1.0.0/testset_w_refs.csv': [
    ('name[A],', 'line 2: expected mr and ref')
  ],
  'mlsum/MLSUM/de_test.jsonl': [('{"text": "a"}', "a field 'summary', str")],
  'flores101/flores101_dataset/devtest/deu.devtest': [
    (None, 'deu.devtest: expected as many lines as in'),
  ],
}  # fmt: skip


TASK_OF = {'superglue/BoolQ': 'superglue_boolq', 'superglue/CB': 'superglue_cb',
           'superglue/COPA': 'superglue_copa', 'xnli': 'xnli_de',
           'pawsx': 'pawsx_de', 'xwinograd': 'xwinograd_fr',
           'mlsum': 'mlsum_de', 'flores101': 'flores101_en_de',
           'e2e_nlg': 'e2e_nlg'}  # fmt: skip


@pytest.mark.parametrize('file, line, message', [
  (file, line, message) for file, cases in BROKEN.items()
  for line, message in cases
])  # fmt: skip
def test_broken_files_are_named(tmp_path, file, line, message):
  """Line 2 is replaced; the first stays, for it may be a header."""
  shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
  path = tmp_path / file
  first, *_ = path.read_bytes().splitlines(keepends=True)
  line = line.encode() if isinstance(line, str) else line
  path.write_bytes(first + (line + b'\n' if line is not None else b''))
  name = next(v for k, v in TASK_OF.items() if file.startswith(k))
  with pytest.raises(ValueError) as e:
    ask(name, tmp_path)
  assert message in str(e.value) and str(path) in str(e.value)
  rows = data_check.check_files(registry.select_sources(name, str(tmp_path)))
  assert any(row.problem == str(e.value) for row in rows)


@pytest.mark.parametrize('file, text, message', [
  ('squadv2/dev-v2.0.json', '{"version": "v2.0"}', "a field 'data', list"),
  ('squadv2/dev-v2.0.json', '{\n"data": [}', 'Expecting value: line 2'),
  ('squadv2/dev-v2.0.json', r'{"data": ["\ud83d"]}', 'half of a surrogate'),
  ('webnlg/release_v3.0/en/test/'
   'rdf-to-text-generation-test-data-with-refs-en.xml',
   '<benchmark>\n<entry>', 'line 2: expected XML'),
  ('xsum/bbc-summary-data/90000003.summary', '[SN]URL[SN]\nx\n',
   'expected a line [SN]FIRST-SENTENCE[SN]'),
])  # fmt: skip
def test_broken_documents_are_named(tmp_path, file, text, message):
  shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
  (tmp_path / file).write_text(text)
  with pytest.raises(ValueError) as e:
    ask(file.split('/')[0], tmp_path)
  assert message in str(e.value) and str(tmp_path / file) in str(e.value)


def test_xml_of_an_encoding_that_is_none(tmp_path):
  """Faults seen: LookupError and UnicodeError; a pipe is waited for."""
  path = tmp_path / 'x.xml'
  for name in ('foo', 'hex', 'idna', 'utf-32'):
    path.write_text(f'<?xml version="1.0" encoding="{name}"?><a/>')
    with pytest.raises(ValueError, match='x.xml: expected XML in UTF-8'):
      list(readers.read_webnlg([str(path)]))
  path.unlink()
  os.mkfifo(path)
  with pytest.raises(ValueError, match='not a pipe'):
    list(readers.read_webnlg([str(path)]))
