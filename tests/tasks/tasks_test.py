"""Pre-training tasks: how sources mix, and what a cache has of them."""

import os

import pytest
import seqio

import atm_tasks
from atm.data import objectives
from atm_tasks.pretraining import tasks
from atm_tasks.pretraining.tasks import MixtureRates, compute_rates


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'denoise': -1}, r'Mixing.denoise = -1: expected a number of at least 0'),
    ({'denoise': 0, 'clm': 0}, 'Mixing.denoise and Mixing.clm are both 0'),
  ],
)
def test_bad_factors(changes, message):
  with pytest.raises(ValueError, match=message):
    atm_tasks.Mixing(**changes)


def test_a_source_needs_a_form():
  with pytest.raises(ValueError, match='mc4_spoken and Mixing.mc4_written'):
    atm_tasks.Mixing(mc4_spoken=0, mc4_written=0).forms('mc4')


def test_a_language_without_rows_in_an_objective_has_no_part_in_it():
  task = lambda language, rows: {
    'objective': 'clm', 'language': language, 'share': 0.2, 'repeat': 1.0,
    'rows': rows, 'sentences': 100,
  }  # fmt: skip
  rates = compute_rates({'a': task('en', 10), 'b': task('ta', 0)}, 0.5)
  assert rates == {'a': 0.2, 'b': 0.0}


def test_rates_need_counts(words):
  atm_tasks.configure(vocabulary=words.path)
  paper_mixture = seqio.MixtureRegistry.get('paper')
  with pytest.raises(ValueError, match='was not counted yet: run `atm cache`'):
    paper_mixture.get_rate(paper_mixture.tasks[0])


def test_rate_of_equal_languages_needs_no_counts():
  rate = MixtureRates('x', 0.0)
  for language in ('en', 'de'):
    apply = tasks.ApplyObjective(objectives.CLM(), language, 's', 'written')
    rate.add(f's_{language}', apply, 1.0, 1.0)
  assert rate.rates() == {'s_en': 0.5, 's_de': 0.5}


def test_languages_of_a_cache(tmp_path):
  """Faults seen: spoken taken for a language's part; validation rows alone."""
  for name in (
    'mc4_te_spoken_clm-train', 'mc4_en_denoise-train', 'mc4_en_clm-train',
    'mc4_pt_BR_clm-train', 'mc4_fr_clm-validation', 'wiki_de_clm-train',
    'mc4_hi_spoken_x64_50_denoise-train', 'mc4_it_s_clm-train',
  ):  # fmt: skip
    os.mkdir(tmp_path / name)
  find = tasks.list_cached_languages
  assert find(str(tmp_path), 'mc4') == ['en', 'hi', 'it', 'pt_BR', 'te']
  assert find(None, 'mc4') == [] == find(f'{tmp_path}/none', 'mc4')
