"""docs/models.md tells the sizes that our Config has."""

import importlib.util
import sys

import pytest

from document_blocks import ROOT


@pytest.fixture(scope='module')
def models():
  spec = importlib.util.spec_from_file_location(
    'models_document', f'{ROOT}/docs/models.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  yield module
  sys.modules.pop('models_document', None)


@pytest.mark.documents
def test_the_table_is_what_the_code_counts(models):
  with open(f'{ROOT}/docs/models.md', encoding='utf-8') as f:
    assert models.format_table() in f.read(), 'python docs/models.py'


@pytest.mark.parametrize(
  ('family', 'name', 'gigabytes'),
  [  # of the float32 pytorch_model.bin of each, as the Hub lists it
    ('NLLB-200', 'facebook/nllb-200-distilled-600M', 2.46),
    ('mBART', 'facebook/mbart-large-cc25', 2.44),
    ('M2M-100', 'facebook/m2m100-12B', 47.2),
  ],
)  # fmt: skip
def test_sizes_are_those_of_published_files(family, name, gigabytes, models):
  found = models.MODELS[family]
  (config,) = (found[known] for known in found if known.startswith(name))
  count = models.count_parameters(config)
  assert count * 4 / 1e9 == pytest.approx(gigabytes, rel=0.003)
