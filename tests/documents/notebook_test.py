"""docs/quickstart.ipynb runs from its first cell to its last."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import document_blocks
import run_document

NOTEBOOK = os.path.join(document_blocks.ROOT, 'docs', 'quickstart.ipynb')


def read_cells(path: str) -> list[tuple[str, str]]:
  """Returns (type, text) of the cells of a notebook, or of its script."""
  import jupytext

  return [(c.cell_type, c.source) for c in jupytext.read(path).cells]


def test_the_notebook_has_no_outputs():
  """Outputs would be of another version, and of someone's machine."""
  with open(NOTEBOOK, encoding='utf-8') as f:
    cells = [c for c in json.load(f)['cells'] if c['cell_type'] == 'code']
  assert cells
  for cell in cells:
    assert not cell['outputs'] and cell['execution_count'] is None


@pytest.mark.documents
def test_the_notebook_is_its_script():
  """Its text form is docs/quickstart.py, by which it is read and changed."""
  pytest.importorskip('jupytext', reason='make test-docs has it')
  script = NOTEBOOK.replace('.ipynb', '.py')
  same = read_cells(NOTEBOOK) == read_cells(script)
  assert same, 'write it anew: jupytext --to ipynb docs/quickstart.py'


@pytest.mark.documents
def test_the_notebook_runs(tmp_path):
  """Commands and Python work, pages are shown, and tuning helps."""
  pytest.importorskip('nbclient', reason='make test-docs has it')
  shutil.copy(NOTEBOOK, tmp_path)
  subprocess.run(
    [os.path.join(os.path.dirname(sys.executable), 'jupyter'), 'execute',
     '--timeout=400', '--output=executed', 'quickstart.ipynb'],
    cwd=tmp_path, env=run_document.user_environment(), check=True,
  )  # fmt: skip
  with open(tmp_path / 'executed.ipynb', encoding='utf-8') as f:
    cells = json.load(f)['cells']
  outputs = [x for cell in cells for x in cell.get('outputs', ())]
  texts = [''.join(x.get('data', {}).get('text/html', '')) for x in outputs]
  pages = [text for text in texts if '<iframe' in text]
  assert len(pages) == 2
  scores = []
  for run in ('quickstart', 'tuned'):
    with open(tmp_path / f'runs/{run}/eval/mine/results.json') as f:
      (task,) = json.load(f)['tasks']
    scores.append(task['scores']['exact_match']['value'])
  assert scores[0] < 20 < 80 < scores[1], scores
