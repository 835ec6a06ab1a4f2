"""Commands and Python examples of the documents are executed, and work."""

import fcntl
import os
import re
import shutil
import subprocess
import sys

import pytest

import gin
from atm.cli import gin_config, gin_files, main, path_checks

import document_blocks
import run_document

STEPS = 150  # of the model that documents have in runs/tiny


@pytest.mark.parametrize('document', document_blocks.documents())
def test_blocks_are_executed_or_say_why_not(document):
  faults = [
    f'{document}:{block.line}: {fault}'
    for block in document_blocks.read_blocks(document)
    for fault in block.faults()
  ]
  assert not faults, '\n'.join(faults)


@pytest.mark.parametrize('document', document_blocks.documents())
def test_settings_of_what_is_not_executed(document, monkeypatch):
  """They are those of the run; their files need not be here."""
  monkeypatch.setattr(path_checks, 'check_inputs_exist', lambda *_: None)
  for block in document_blocks.read_blocks(document):
    reason = block.reason() or 'a test runs it'
    if block.language == 'sh' and 'a test runs it' not in reason:
      for arguments in block.commands():
        if not re.search(r'\.\.\.|=/|--import', ' '.join(arguments)):
          run, *configuration = main.parse_arguments(arguments)
          gin.clear_config()
          gin_config.apply_config(*configuration, run)


@pytest.mark.parametrize(
  ('text', 'fault'),
  [
    ('```\natm\n```', 'language'),
    ('```text\natm infer\n```', 'looks like a command'),
    ('```sh\natm infer --gin.INPUT=FOLDER\n```', 'to replace'),
    ('```sh\natm cache ... --gin.SEED=1\n```', 'to replace'),
    ('```sh\natm import --gin.SOURCE=exported\n```', None),
    ('```sh\n# not run here:\natm ...\n```', 'to replace'),
    ('```sh\n# not run here: takes an hour\natm ...\n```', None),
    ('Not run here because it takes an hour:\n\n```sh\natm ...\n```', None),
    ('```sh\ncut -f2 a.tsv | head -10 > b.txt\n```', 'may end what writes'),
    ('```sh\nhead -10 a.tsv | cut -f2 > b.txt\n```', None),
    ('- a list\n\n  ```sh\n  atm\n  ```', None),
    ('```text\natmosphere: of what atm does\n```', None),
  ],
)
def test_faults_of_blocks_are_found(text, fault, tmp_path):
  path = tmp_path / 'document.md'
  path.write_text(text)
  (block,) = document_blocks.read_blocks(str(path))
  faults = block.faults()
  assert (fault in faults[0]) if fault else not faults


def test_output_is_compared_by_its_shape():
  missing = run_document.missing_lines
  printed = 'begun\nloss 3.25 (clm 4.0)\n  12,000 tokens/s   left 0:10\nended'
  assert not missing('loss 1 (clm 2.25)\n1 tokens/s left 1:00\nended', printed)
  assert not missing('loss ...\n...\nended', printed)
  assert missing('ended\nbegun', printed) == ['begun']
  assert missing('loss high (clm 4.0)', printed) == ['loss high (clm 4.0)']


def test_a_block_that_fails_fails_its_document(tmp_path):
  """Also in the middle of a pipe, and where an example raises."""
  for body, status in (
    ('```sh\necho 1 2\n```\n\n```output\n3 4\n```', 0),
    ('```sh\nfalse | cat\ntrue\n```', 1),
    ('```python\nx = 1\n```\n\n```python\nassert x == 2\n```', 1),
    ('```sh\necho 1 2\n```\n\n```output\n1 or 2\n```', 1),
    ('```text title="a.txt"\n1\n```\n\n```sh\ncat a.txt\n```', 0),
  ):
    document = tmp_path / 'document.md'
    document.write_text(body)
    run = run_in(tmp_path, str(document))
    assert run.returncode == status, run.stdout


def run_in(folder, document: str) -> subprocess.CompletedProcess:
  """Executes a document in a folder."""
  return subprocess.run(
    [sys.executable, run_document.__file__, document],
    cwd=folder, env=run_document.user_environment(), stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT, encoding='utf-8', errors='replace',
  )  # fmt: skip


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
  """A folder with runs/tiny, trained for fewer steps than by `make run`.

  A file models/tiny.gin in the working directory goes before the shipped one.
  """
  shared = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    shared = shared.parent
  folder = shared / 'trained'
  with open(shared / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # one process trains for all
    if folder.exists():
      return folder
    begun = shared / 'begun'
    (begun / 'models').mkdir(parents=True)
    with open(gin_files.find_file('models/tiny.gin'), encoding='utf-8') as f:
      shipped = f.read()
    fewer = re.sub(r'^(TRAIN|DECAY)_STEPS = \d+', rf'\1_STEPS = {STEPS}',
                   shipped, flags=re.M)  # fmt: skip
    (begun / 'models' / 'tiny.gin').write_text(fewer)
    document = begun / 'train.md'
    document.write_text(
      '```sh\natm pretrain --gin_file=models/tiny.gin '
      '--gin.MODEL_DIR="\'runs/tiny\'"\n```'
    )
    run = run_in(begun, str(document))
    assert run.returncode == 0, run.stdout
    os.rename(begun, folder)
  return folder


@pytest.mark.documents
@pytest.mark.parametrize('document', document_blocks.documents())
def test_document_runs_as_written(document, trained, tmp_path):
  if not any(b.is_executed() for b in document_blocks.read_blocks(document)):
    pytest.skip('nothing to execute')
  folder = tmp_path / 'copy'
  shutil.copytree(trained, folder)
  for name in ('benchmarks', 'tasks', 'tests'):
    os.symlink(os.path.join(document_blocks.ROOT, name), folder / name)
  os.symlink(sys.prefix, folder / '.venv')
  run = run_in(folder, document)
  print(run.stdout)
  assert run.returncode == 0, run.stdout
