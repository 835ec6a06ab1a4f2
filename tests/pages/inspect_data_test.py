"""What is shown of the data is what a run reads.

Faults seen: marks a token late; the characters of a token stripped; the noise
of the next epoch; the end of a CLM prefix a token late; the first example of a
task left out; rows of one cycle alone; a character taken for whole though one
of its bytes was dropped; `<unk>` taken for a special piece; a direction by the
first letter; spans counted by column, or lost at a row's end; expected spans
whose last is not cut, or of a Poisson with 0; `<s> [CLM] </s>` counted as
prefix, the target's `</s>` as text; shares of the decoder's places; every row
counted; no dir, no lang, no mark of direction, no <del>; text not escaped; a
line of the table lost; an address of a name space in the SVG; text taken for
markup of the terminal; texts not shortened; a vocabulary trained though one is
there; CACHE_DIR ignored; EXAMPLES = 0 or any SEED let through; lengths not
checked at first; targets shown as read; no error where there is no text to
train on; a setting that gin does not bind.
"""

import dataclasses
import functools
import html.parser
import io
import itertools
import pathlib
import re

import numpy as np
import pytest
import rich.console

import gin
from atm.cli import commands, gin_config, gin_files
from atm.data import batches as batches_lib
from atm.data import (
  counter_rng,
  inspection,
  span_corruption,
  task_registry,
  vocabulary_training,
)
from atm.pages import inspect_data

LENGTHS = {'inputs': 64, 'targets': 64}
NASTY = (
  '<script>alert("1")</script> & <del>no</del> [bold]text[/bold] [DOC] end'
)
FORMS = ('written', 'spoken')


def console():
  return rich.console.Console(file=io.StringIO(), width=100)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The shipped text as a folder of LANG.txt, with some hostile lines."""
  import atm_tasks  # noqa: F401  registers it

  place = tmp_path_factory.mktemp('text')
  lines = {}
  for language, text in task_registry.read_texts('udhr'):
    lines.setdefault(language, []).append(text)
  lines['en'] = [NASTY] * 40 + lines['en'][:20]
  for language, texts in lines.items():
    (place / f'{language}.txt').write_text('\n'.join(texts), encoding='utf-8')
  return str(place)


@pytest.fixture(scope='module')
def words(folder, tmp_path_factory):
  """A vocabulary that knows all characters of the folder."""
  texts = []
  for path in sorted(pathlib.Path(folder).iterdir()):
    texts += path.read_text(encoding='utf-8').split('\n')
  place = str(tmp_path_factory.mktemp('vocabulary'))
  return vocabulary_training.train_sentencepiece(
    texts, place, 2048, character_coverage=1.0
  )


@pytest.fixture(scope='module')
def inspect(words, folder):
  """`inspect_data.inspect` on that folder in both forms, CLM packed."""
  import atm_tasks

  configure = functools.partial(
    atm_tasks.configure, text_dir=folder, held_out=0.0, paper_packing=False,
    mixing=atm_tasks.Mixing(text_spoken=0.7, text_written=0.3),
  )  # fmt: skip
  return functools.partial(
    inspect_data.inspect, 'text', lengths=LENGTHS, vocabulary=words.path,
    configure_tasks=configure,
  )  # fmt: skip


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return tmp_path_factory.mktemp('look')


@pytest.fixture(scope='module')
def terminal():
  return console()


@pytest.fixture(scope='module')
def seen(inspect, place, terminal):
  return inspect(str(place), examples=3, seed=5, console=terminal)


@pytest.fixture(scope='module')
def html_page(seen, place):
  return (place / 'index.html').read_text(encoding='utf-8')


def text_of(runs, *marks):
  return ''.join(
    run.text for run in runs if not run.special and run.mark in (marks or MARKS)
  )


MARKS = (inspection.READ, inspection.DROPPED, inspection.WRITTEN)


def specials(runs):
  return [run.text for run in runs if run.special]


@pytest.fixture(scope='module')
def batches(seen, words):
  """A training run's, of 16 rows."""
  return batches_lib.Batches(seen.parts, words, seen.lengths, 16, seen.seed)


def segments(batches, n):
  """(encoder ids, decoder ids) of each text of example n, as a run reads it."""
  made = {k: v[n % 16] for k, v in batches(n // 16).items()}
  source, target = (
    (made[f'{side}_tokens'], made[f'{side[:7]}_segment_ids'])
    for side in ('encoder_input', 'decoder_target')
  )
  for k in range(1, target[1].max() + 1):
    yield tuple(ids[of == k].tolist() for ids, of in (source, target))


def squeezed(text):
  return ''.join(text.split())


def of_kind(seen, name):
  return [e for e in seen.examples if e.part.objective.name == name]


def test_marked_rows_rebuild_the_row_and_what_the_encoder_reads(
  seen, batches, words
):
  found = set()
  for each in of_kind(seen, 'denoise'):
    (_, marked), (_, read) = each.blocks
    ((source, target),) = segments(batches, each.n)
    assert text_of(marked) == words.decode(target)
    assert text_of(marked) == words.decode(each.part.rows.row(each.row))
    assert text_of(read) == words.decode(source)
    kept = text_of(marked, inspection.READ)
    assert squeezed(kept) == squeezed(words.decode(source))
    assert len(kept) < len(text_of(marked))
    assert specials(read)[0] == '<s>' and specials(read)[-1] == '</s>'
    found.add((each.part.language, each.part.form))
  languages = {p.language for p in seen.parts}
  assert len(languages) == 12
  assert found == set(itertools.product(languages, FORMS))


def test_clm_is_read_then_written_document_by_document(seen, batches, words):
  packed = 0
  for each in of_kind(seen, 'clm'):
    texts = list(segments(batches, each.n))
    packed += len(texts) > 1
    for (_, runs), (source, target) in zip(each.blocks, texts, strict=True):
      assert text_of(runs, inspection.READ) == words.decode(source)
      assert text_of(runs) == words.decode(source + target)
      assert specials(runs)[:3] == ['<s>', '[CLM]', '</s>']
      assert text_of(runs, inspection.WRITTEN) and not text_of(
        runs, inspection.DROPPED
      )
  assert packed > 5


def test_the_examples_are_the_first_of_each_task_in_the_run(seen, batches):
  assert len(seen.examples) == 3 * len(seen.parts) == 3 * 48
  most = max(e.n for e in seen.examples)
  part, epoch, row = batches.locate(np.arange(most + 1))
  for i, p in enumerate(seen.parts):
    mine = [(e.n, e.epoch, e.row) for e in seen.examples if e.part is p]
    first = np.flatnonzero(part == i)[:3]
    assert mine == [(n, epoch[n], row[n]) for n in first]


def test_a_rare_task_is_met_once_a_cycle(seen, words):
  few = [dataclasses.replace(seen.parts[0], rate=1e-9), *seen.parts[1:]]
  made = batches_lib.Batches(few, words, seen.lengths, 16, 0)
  n = inspection.find_examples(made, 0, 3)
  assert (np.diff(n) == batches_lib.CYCLE).all()
  assert (made.locate(n)[0] == 0).all()


# --- What rows hold


def test_histograms_count_every_span(seen, batches):
  """The first of them against spans counted one by one."""
  (kind,) = (k for k in seen.counts if k.name == 'denoise')
  counts = seen.counts[kind]
  found, expected = inspection.count_spans(kind, counts)
  assert found.sum() == len(counts.spans) and found[0] == 0
  assert counts.spans.sum() == counts.budgets.sum()
  assert expected @ np.arange(len(expected)) == pytest.approx(
    counts.budgets.sum()
  )
  assert len(counts.encoder) == len(counts.decoder) == inspection.MEASURED_ROWS
  part, epoch, row = batches.locate(np.arange(200))
  n = [i for i in range(200) if seen.parts[part[i]].objective == kind]
  spans = []
  for i in n:
    p = seen.parts[part[i]]
    length = np.array([len(p.rows.row(row[i]))])
    key = np.atleast_1d(counter_rng.make_key(seen.seed, p.id, epoch[i], row[i]))
    (mask,) = span_corruption.draw_keep_mask(key, length, length[0], 0.15, 3.0)
    runs = [(keep, len(list(g))) for keep, g in itertools.groupby(mask)]
    spans += [size for keep, size in runs if not keep]
  np.testing.assert_array_equal(counts.spans[: len(spans)], spans)


def test_documents_and_what_is_read_of_them_are_counted(seen, batches, words):
  """Against the rows themselves, cut at [DOC], and what the encoder reads."""
  (kind,) = (k for k in seen.counts if k.name == 'clm')
  part, _, row = batches.locate(np.arange(300))
  texts, read = [], []
  for n in range(300):
    p = seen.parts[part[n]]
    if p.objective == kind:
      ids = p.rows.row(row[n])
      ends = np.flatnonzero(np.append(ids, words.doc_id) == words.doc_id)
      sizes = np.diff(ends, prepend=-1) - 1
      for size, end in zip(sizes, ends):
        texts.append(size - (ids[end - 1] == words.eos_id))
      read += [len(source) - 3 for source, _ in segments(batches, n)]
  counts = seen.counts[kind]
  np.testing.assert_array_equal(counts.texts[: len(texts)], texts)
  shares = np.array(read) / texts
  np.testing.assert_allclose(counts.prefix[: len(texts)], shares)


def test_what_was_drawn_is_near_what_was_wanted(seen):
  for kind, counts in seen.counts.items():
    if kind.name == 'denoise':
      share = counts.budgets.sum() / counts.texts.sum()
      assert share == pytest.approx(0.15, abs=0.01)
      line = inspection.summarize_counts(kind, counts)
      assert f'{share:.2%} of the tokens are dropped (15% wanted)' in line
    else:
      # A document of few tokens cannot be cut exactly there.
      long = counts.texts > 30
      assert 0.18 < counts.prefix[long].min()
      assert counts.prefix[long].max() < 0.82
      assert counts.prefix.mean() == pytest.approx(0.5, abs=0.03)
      assert len(counts.texts) > len(counts.encoder)


# --- The page and the terminal


class Reading(html.parser.HTMLParser):
  """Checks that tags close, keeps those of interest and the text of each."""

  def __init__(self, text):
    super().__init__()
    self.open, self.found = [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attributes):
    if tag != 'meta':
      self.open.append((tag, dict(attributes), []))

  def handle_endtag(self, tag):
    name, attributes, text = self.open.pop()
    assert name == tag
    self.found.append((tag, attributes, ''.join(text)))

  def handle_data(self, text):
    for _, _, held in self.open:
      held.append(text)

  def all(self, tag):
    return [(a, text) for name, a, text in self.found if name == tag]


def test_the_page_shows_every_language_and_all_that_is_dropped(html_page, seen):
  read = Reading(html_page)
  texts = [(a, t) for a, t in read.all('p') if a.get('class') == 'text']
  assert len(texts) == sum(len(e.blocks) for e in seen.examples)
  assert all(a['dir'] == 'auto' for a, _ in texts)
  assert {a['lang'] for a, _ in texts} == {p.language for p in seen.parts}
  arabic = [t for a, t in texts if a['lang'] == 'ar']
  assert all(t.startswith('\u200f') for t in arabic)
  wanted = [
    run.text
    for examples in seen.by_language().values()
    for e in examples
    for _, runs in e.blocks
    for run in runs
    if run.mark == inspection.DROPPED
  ]
  found = [text for _, text in read.all('del')]
  assert sorted(found) == sorted([*wanted, 'Dropped'])  # and the legend's
  assert len(read.all('svg')) == 8
  rows = [text for _, text in read.all('tr')]
  assert len(rows) == 1 + 1 + 24
  assert any(re.match('Teluguwritten70', row) for row in rows)


def test_the_page_is_one_file_and_runs_nothing(html_page):
  assert 'http' not in html_page and 'url(//' not in html_page
  assert not re.search(r'<(script|link|img|iframe)|\ssrc=', html_page)
  assert '&lt;script&gt;alert(' in html_page
  assert all(
    a.get('href', '#').startswith('#') for _, a, _ in Reading(html_page).found
  )


def test_the_terminal_marks_and_shortens(terminal, seen):
  text = terminal.file.getvalue()
  assert text.index('epochs are over') < text.index('Arabic (ar)')
  assert text.index('Arabic (ar)') < text.index('Telugu (te)')
  assert '[bold]text' in text
  for each in of_kind(seen, 'denoise'):
    for _, runs in each.blocks:
      shown = inspect_data.shorten_runs(runs, inspect_data.LONGEST_ON_TERMINAL)
      assert f'\n{inspect_data.style_runs(shown, False).plain}\n' in text
  runs = of_kind(seen, 'denoise')[0].blocks[0][1]
  shown = inspect_data.style_runs(
    inspect_data.shorten_runs(runs, 60), False
  ).plain
  assert '[-' in shown and shown.endswith('…')
  plain = re.sub(r'\[-|-\]|…|\[DOC\]|</s>', '', shown)
  assert text_of(runs).startswith(plain) and 40 < len(plain) <= 60
  colored = inspect_data.style_runs(
    [inspection.TextRun('a', inspection.DROPPED)], True
  )
  assert colored.plain == 'a' and 'strike' in str(colored.spans[0].style)


def test_rows_in_place_are_taken_and_give_the_same_page(
  inspect, place, html_page
):
  out = console()
  inspect(
    str(place), examples=3, seed=5, vocabulary=None, console=out,
    train_vocabulary=lambda *_: pytest.fail('rows have a vocabulary'),
  )  # fmt: skip
  assert 'building' not in out.file.getvalue()
  assert (place / 'index.html').read_text(encoding='utf-8') == html_page
  made = inspect(
    str(place / 'other'), cache_dir=str(place / 'rows'), lengths=LENGTHS,
    examples=1, console=out,
  )  # fmt: skip
  assert made.lengths.both == (64, 64) and (place / 'other').exists()
  assert not (place / 'other' / 'rows').exists()


def test_the_command_shows_a_single_task(words, tmp_path, capsys):
  given = {
    'MIXTURE_OR_TASK_NAME': 'udhr_te_clm',
    'VOCABULARY': words.path,
    'OUTPUT_DIR': str(tmp_path),
    'EXAMPLES': 1,
  }
  bindings = [f'{name} = {value!r}' for name, value in given.items()]
  with gin.unlock_config():
    gin_config.apply_config(
      [gin_files.find_file('runs/inspect.gin')], bindings, set()
    )
    commands.execute('inspect')
  gin.clear_config()
  assert '[CLM]' in capsys.readouterr().out
  assert 'lang="te"' in (tmp_path / 'index.html').read_text(encoding='utf-8')


def pairs_task(pairs):
  """A seqio task of inputs and targets, as for fine-tuning."""
  import seqio
  import tensorflow as tf

  import atm_tasks

  def dataset_fn(split, shuffle_files=False, seed=None):
    del split, shuffle_files, seed
    spec = tf.TensorSpec([None], tf.int32)
    return tf.data.Dataset.from_generator(
      lambda: ({'inputs': a, 'targets': b} for a, b in pairs),
      output_signature={'inputs': spec, 'targets': spec},
    )

  feature = seqio.Feature(atm_tasks.pretraining.tasks.VOCABULARY, add_eos=False)
  seqio.TaskRegistry.add(
    'look_pairs',
    source=seqio.FunctionDataSource(dataset_fn, splits=['train']),
    preprocessors=[],
    output_features={'inputs': feature, 'targets': feature},
  )


def test_pairs_are_shown_as_input_and_target(words, tmp_path):
  pairs_task([
    (words.encode(f'all {c} are'), words.encode(f'born {c}'))
    for c in 'abcdefghijklmnop'
  ])  # fmt: skip
  call = functools.partial(
    inspect_data.inspect,
    'look_pairs',
    str(tmp_path),
    LENGTHS,
    console=console(),
  )
  with pytest.raises(ValueError, match='VOCABULARY = None.*inputs and targets'):
    call()
  made = call(vocabulary=words.path, examples=1)
  (each,) = made.examples
  whats, runs = zip(*each.blocks)
  assert whats == ('input', 'target') * (len(whats) // 2) and len(whats) > 2
  for source, target in zip(runs[::2], runs[1::2], strict=True):
    letter = re.fullmatch(r'all (.) are', text_of(source, inspection.READ))[1]
    assert text_of(target, inspection.WRITTEN) == f'born {letter}'
  html_page = (tmp_path / 'index.html').read_text(encoding='utf-8')
  assert html_page.count('<h5>input</h5>') == len(whats) // 2


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'examples': 0}, 'EXAMPLES = 0: expected a whole number of at least 1'),
    (
      {'examples': 1.5},
      'EXAMPLES = 1.5: expected a whole number of at least 1',
    ),
    ({'seed': 'a'}, "SEED = 'a': expected a whole number"),
    ({'tokens': 0}, 'TRAIN_TOKENS = 0: expected a number of at least 1'),
    ({'lengths': {'inputs': 64}}, 'TASK_FEATURE_LENGTHS = '),
    ({'vocabulary': 'nowhere'}, "no vocabulary at 'nowhere'"),
  ],
)
def test_mistakes_are_named_before_anything_is_written(
  inspect, tmp_path, settings, message
):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    inspect(str(tmp_path / 'out'), console=console(), **settings)
  assert not (tmp_path / 'out').exists()
