"""The arithmetic of mixtures, against the paper's totals and small sums.

Faults seen: p ** 0.5 over tokens for sentences; forms not told apart; the
repetition left out of the weights; epochs of an objective's own rows only;
rows that hold their text several times counted once.
"""

import dataclasses
import functools
import io
import re

import numpy as np
import pytest
import rich.console
import seqio

import atm_tasks
from atm.data import batches, cache, mixture_stats, objectives, task_registry
from atm.data.languages import LANGUAGE_CODES
from atm_tasks.pretraining.tasks import compute_rates

from sources_test import prepare

LENGTHS = {'inputs': 64, 'targets': 64}
WIKIPEDIA, MC4 = 11.9e9, 1.2e12  # tokens; seven and three times 11.9B are 119B


class Rows:
  """Stands for rows of which only the counts are asked."""

  def __init__(self, tokens, sentences, row_tokens, passes=1):
    self.counts = {'tokens': tokens, 'sentences': sentences}
    self.made_from = {'passes': passes}
    self.size = int(tokens * passes / row_tokens)
    self.tokens = self.size * row_tokens

  def __len__(self):
    return self.size


def paper(
  share=lambda language: 1 / 12,
  mixing=atm_tasks.Mixing(),
  length=lambda language: 25,
  of_wikipedia=None,
):
  """The parts of the paper's mixture.

  Languages have these shares of the tokens (of Wikipedia's: `of_wikipedia`),
  and sentences of that many tokens.
  """
  tasks, parts = {}, []
  for source, tokens in (('wikipedia', WIKIPEDIA), ('mc4', MC4)):
    for language in LANGUAGE_CODES:
      of = of_wikipedia if source == 'wikipedia' and of_wikipedia else share
      mine = int(tokens * of(language))
      for form, repeat in mixing.forms(source).items():
        for objective, part in mixing.objectives(packs=False):
          name = f'{source}_{language}_{form}_{objective.name}'
          sentences = mine // length(language)
          rows = Rows(mine, sentences, 1023 if objective.joins else 400)
          tasks[name] = {
            'objective': objective.name, 'language': language, 'share': part,
            'repeat': repeat, 'rows': len(rows),
            'sentences': rows.counts['sentences'],
          }  # fmt: skip
          parts.append(
            batches.MixturePart(
              name, language, objective, rows, 0.0, source, form
            )
          )
  rates = compute_rates(tasks, mixing.language_power)
  return [dataclasses.replace(p, rate=rates[p.name]) for p in parts]


def lines_over(parts, tokens):
  """Returns the table of a run of so many tokens."""
  reading = mixture_stats.plan_reading(parts, tokens)
  return mixture_stats.compute_lines(parts, reading.rows)


def total(lines, what, **where):
  chosen = (
    line
    for line in lines
    if all(getattr(line, k) == v for k, v in where.items())
  )
  return sum(getattr(line, what) for line in chosen)


def test_the_papers_totals():
  """Wikipedia 119B tokens, 9%; mC4 1.2T, 91%; 7:3 spoken; 1T tokens."""
  lines = lines_over(paper(), 1e12)
  assert total(lines, 'weight') == pytest.approx(1)
  repeats = dataclasses.asdict(atm_tasks.Mixing())
  repeated = lambda source: sum(
    line.tokens * repeats[f'{source}_{line.form}']
    for line in lines
    if line.source == source
  )
  assert repeated('wikipedia') == pytest.approx(119e9, rel=1e-6)
  assert repeated('mc4') == pytest.approx(1.2e12, rel=1e-6)
  assert round(total(lines, 'weight', source='wikipedia'), 2) == 0.09
  assert round(total(lines, 'weight', source='mc4'), 2) == 0.91
  assert total(lines, 'weight', form='spoken') == pytest.approx(0.7, rel=1e-3)
  # Epochs: 1T of 1.319T repeated tokens.
  once = 1e12 / (119e9 + 1.2e12)
  for source, form, repeat in (
    ('wikipedia', 'spoken', 7), ('wikipedia', 'written', 3),
    ('mc4', 'spoken', 0.7), ('mc4', 'written', 0.3),
  ):  # fmt: skip
    for line in lines:
      if (line.source, line.form) == (source, form):
        assert line.epochs == pytest.approx(repeat * once, rel=0.01)


def test_a_run_reads_as_many_tokens_as_it_is_said_to():
  """Sum over parts of rows read x tokens a row is the run's tokens."""
  for tokens in (1e12, 3e9):
    parts = paper(lambda language: len(language + 'x') / 36)
    read = sum(line.epochs * line.tokens for line in lines_over(parts, tokens))
    assert read == pytest.approx(tokens, rel=1e-3)


def test_languages_are_sampled_by_the_root_of_their_sentences():
  shares = {k: (i + 1) ** 2 / 650 for i, k in enumerate(LANGUAGE_CODES)}
  length = lambda language: 10 + 3 * LANGUAGE_CODES.index(language)
  lines = lines_over(paper(shares.get, length=length), 1e12)
  p = {k: shares[k] / length(k) for k in shares}
  q = {k: p[k] ** 0.5 / sum(v**0.5 for v in p.values()) for k in p}
  for language, wanted in q.items():
    assert total(lines, 'weight', language=language) == pytest.approx(
      wanted, rel=1e-3
    )
  # Within a language: ten times the size of Wikipedia.
  for language in LANGUAGE_CODES:
    wikipedia = total(lines, 'weight', language=language, source='wikipedia')
    assert wikipedia / q[language] == pytest.approx(119 / 1319, rel=1e-3)


def test_sentences_count_as_often_as_their_source_is_repeated():
  only = lambda language: float(language == 'te')
  others = lambda language: (1 - only(language)) / 11
  parts = [p for p in paper(others, of_wikipedia=only) if len(p.rows)]
  lines = lines_over(parts, 1e12)
  te, each = (10 * WIKIPEDIA) ** 0.5, (MC4 / 11) ** 0.5
  assert total(lines, 'weight', language='te') == pytest.approx(
    te / (te + 11 * each), rel=1e-3
  )


def test_the_objectives_have_80_and_20_percent_in_every_language():
  parts = paper(lambda language: len(language + 'x') / 36)
  for language in LANGUAGE_CODES:
    rates = {
      name: sum(
        p.rate
        for p in parts
        if p.language == language and p.objective.name == name
      )
      for name in ('denoise', 'clm')
    }
    assert rates['denoise'] == pytest.approx(4 * rates['clm'], rel=1e-6)


def test_every_factor_counts():
  base = {p.name: p.rate for p in paper()}
  for field in dataclasses.fields(atm_tasks.Mixing):
    if field.name in ('density', 'mean_span', 'clm_low', 'clm_high'):
      continue  # of the objectives themselves
    if field.name == 'in_context':
      continue  # of tasks that are not of the paper, see episodes_test
    share = lambda language: (1 + LANGUAGE_CODES.index(language)) / 78
    changed = atm_tasks.Mixing(**{field.name: 0.123})
    before, after = paper(share), paper(share, changed)
    same = [p.rate for p in before] == [p.rate for p in after]
    assert same == field.name.startswith('text_'), field.name
  assert len(base) == 2 * 12 * 2 * 2


def test_passes_are_epochs_of_the_text():
  objective = objectives.Denoise()
  part = lambda passes: batches.MixturePart(
    'x', 'en', objective, Rows(100_000, 10, 1000, passes), 1.0, 'x', ''
  )
  once, often = (lines_over([part(n)], 1e7)[0].epochs for n in (1, 8))
  assert once == pytest.approx(100) and often == pytest.approx(100)


def test_the_run_of_the_epochs_is_named():
  """Fault seen: '93,718,378 epochs' of a small folder, over the paper's run."""
  over = lambda *run: mixture_stats.plan_reading(paper(), *run).description
  assert over(1e12) == 'a run of 1T tokens'
  assert over(None, 100, 7).endswith(' tokens (7 steps of 100 rows)')
  assert ', as many as the text has; TRAIN_TOKENS or' in over()
  assert over(None, 100, None) == over()
  assert mixture_stats.plan_reading(paper(), None, 100, 7).rows == [
    pytest.approx(700 * p.rate) for p in paper()
  ]
  counts = (999_999, 1.25e6, 3e9, 1e12)
  assert [*map(mixture_stats.format_count, counts)] == [
    '999,999', '1.25M', '3B', '1T',
  ]  # fmt: skip


# --- From raw text to the table


@pytest.fixture(scope='module')
def tfds_dir(tmp_path_factory):
  """Tiny Wikipedia and mC4, as TFDS prepares them, of the shipped text."""
  folder = tmp_path_factory.mktemp('tfds')
  mc4 = {}
  for number, language in enumerate(LANGUAGE_CODES):
    texts = [t for _, t in task_registry.read_texts(f'udhr_{language}_clm')][
      : 8 + 4 * number
    ]
    name = atm_tasks.WIKIPEDIA.format(language=language)
    prepare(folder, name, {'train': texts}, ('title', 'text'))
    mc4[language] = texts * 3
    mc4[f'{language}-validation'] = texts[:4]
  prepare(folder, atm_tasks.MC4, mc4, ('text', 'url', 'timestamp'))
  return str(folder)


@pytest.fixture(scope='module')
def built(tfds_dir, words, tmp_path_factory):
  """The paper's mixture of it, cached."""
  directory = str(tmp_path_factory.mktemp('rows'))
  configure = functools.partial(
    atm_tasks.configure, tfds_dir=tfds_dir, held_out=0.1
  )
  cache.build(
    'paper', words.path, LENGTHS, directory, configure_tasks=configure,
    say=lambda text: None,
  )  # fmt: skip
  yield directory
  atm_tasks.configure(vocabulary=words.path)


def shown(directory, **named):
  out = io.StringIO()
  lines = mixture_stats.show_mixture(
    'paper', directory, console=rich.console.Console(file=out, width=120),
    configure_tasks=functools.partial(atm_tasks.configure, held_out=0.1),
    **named,
  )  # fmt: skip
  return lines, out.getvalue()


def test_the_whole_mixture_from_tfds(built, words):
  lines, text = shown(built)
  assert len(lines) == 2 * 12 * 2
  assert total(lines, 'weight') == pytest.approx(1)
  for language in LANGUAGE_CODES:
    assert len(re.findall(rf'(?:wikipedia|mc4) *│ {language} ', text)) == 4
    wikipedia, mc4 = (
      next(
        line
        for line in lines
        if (line.source, line.language, line.form) == (s, language, 'written')
      )
      for s in ('wikipedia', 'mc4')
    )
    assert 0 < wikipedia.sentences < mc4.sentences
    spoken = total(lines, 'weight', language=language, form='spoken')
    both = total(lines, 'weight', language=language)
    assert 0.6 < spoken / both < 0.75  # spoken form has fewer tokens a text
  assert re.search(r'clm: one example a row; padding is \d+\.\d% of', text)


def test_seqios_own_rates_are_the_same(built, words):
  """Measured counts, by `cache_dir`, give seqio's readers our rates."""
  parts = batches.load_parts(
    'paper', 'train', words, task_registry.Lengths(64, 64), built, passes=None
  )
  atm_tasks.configure(
    vocabulary=words.path, cache_dir=built, wikipedia=None, mc4=None,
    held_out=0.1,
  )  # fmt: skip
  again = seqio.MixtureRegistry.get('paper')
  rates = {task.name: again.get_rate(task) for task in again.tasks}
  assert rates == pytest.approx({p.name: p.rate for p in parts})
  assert sum(rates.values()) == pytest.approx(1)


@pytest.mark.parametrize('packing', [True, False])
def test_the_padding_that_is_told_is_that_of_the_batches(
  words, tmp_path, packing
):
  text = tmp_path / 'text'
  text.mkdir()
  rng = np.random.default_rng(0)
  lines = (' '.join(['all'] * n) for n in rng.integers(3, 25, 2000))
  (text / 'en.txt').write_text('\n'.join(lines))
  configure = functools.partial(
    atm_tasks.configure, text_dir=str(text), held_out=0.0, paper_packing=packing
  )
  cache.build(
    'text', words.path, LENGTHS, str(tmp_path), ('train',),
    configure_tasks=configure, say=lambda text: None,
  )  # fmt: skip
  sizes = task_registry.Lengths(64, 64)
  parts = batches.load_parts('text', 'train', words, sizes, str(tmp_path))
  made = batches.Batches(parts, words, sizes, 8192, 0)(0)
  told = {}
  for part in parts:
    mine = made['objective'] == objectives.OBJECTIVE_NAMES.index(
      part.objective.name
    )
    told[part.objective.name] = mixture_stats.measure_padding(
      [part], words, sizes
    )
    found = [
      (made[f'{side}_segment_ids'][mine] == 0).mean()
      for side in ('encoder', 'decoder')
    ]
    np.testing.assert_allclose(found, told[part.objective.name], atol=0.01)
  assert told['clm'][1] < 0.45 if not packing else told['clm'][1] > 0.85
  assert told['denoise'][1] < 0.01
  atm_tasks.configure(vocabulary=words.path)


def test_bad_tokens(built):
  with pytest.raises(
    ValueError, match='TRAIN_TOKENS = 0: expected a number of at least 1'
  ):
    shown(built, tokens=0)
