"""The page of a run, from what lies in its folder.

Faults seen: text not escaped; a torn last line of metrics.jsonl taken; the
first loss of a language shown as the last; a page asked for of an empty folder
made anyway; figures of one page whose digits have different sizes.
"""

import html.parser
import json
import re

import pytest

import gin
from atm.cli import main
from atm.pages import plots, render, train_page
from atm.train import goodput, metric_writer

from synthetic import Page


class Cells(html.parser.HTMLParser):
  """The text of table rows."""

  def __init__(self, page):
    super().__init__()
    self.rows, self.inside = [], False
    self.feed(page)

  def handle_starttag(self, tag, attributes):
    if tag == 'tr':
      self.rows.append([])
    self.inside = tag in ('td', 'th')

  def handle_data(self, text):
    if self.inside:
      self.rows[-1].append(text)

  def handle_endtag(self, tag):
    self.inside = False


@pytest.fixture
def run(tmp_path):
  """A run's folder as training leaves it."""
  with open(tmp_path / metric_writer.METRICS_FILE, 'w') as f:
    for step in range(0, 30, 10):
      row = {'step': step}
      for name in ('denoise', 'clm'):
        for language in ('ar', 'te'):
          row[f'eval/loss/{name}/{language}'] = 8 - step / 10
        row[f'eval/loss/{name}'] = 8 - step / 10
      if step:
        row |= {
          'loss': 5.0, 'loss/denoise': 4.5, 'loss/clm': 5.5, 'mfu': 0.25,
          'tokens/input': 100.0, 'tokens/target': 150.0, 'goodput': 0.9,
          'tokens_per_second': 1000.0, 'learning_rate': 1e-3,
        }  # fmt: skip
      else:
        row['eval/unigram/denoise/te'] = 5.25
      f.write(json.dumps(row) + '\n')
    f.write('{"step": 30, "loss": ')
  (tmp_path / 'config.gin').write_text('A = "<script>"\n')
  return tmp_path


def page_of(model_dir, rows):
  return render.render('train', train_page.train_page_data(model_dir, rows))


def test_what_the_page_holds(run):
  page = page_of(str(run), metric_writer.read_metrics(str(run)))
  assert '<dt>step</dt><dd>20</dd>' in page
  assert '<dt>tokens read</dt><dd>500</dd>' in page
  assert '<dt>clm</dt><dd>6.000</dd><dd>from 8.000 at step 0</dd>' in page
  assert 'at step 20, nats a token' in page
  rows = {row[0]: row[1:] for row in Cells(page).rows if row}
  assert rows['Telugu'] == ['8.00', '6.00', '5.25', '8.00', '6.00']
  assert (
    page.count('role="img"') == 2 + 2 + 4
  )  # loss, languages, rate and speed
  assert '&lt;script&gt;' in page and '<script' not in page
  assert not re.search(r'(?:src|href)="(?!#)', page) and 'url(//' not in page


@pytest.mark.parametrize('text', ["'a/b'", "\\\n    'a/b'", 'None'])
def test_a_fine_tuning_says_what_it_started_from(run, text):
  (run / 'config.gin').write_text(f'INIT_ENCODER = None\nINIT_FROM = {text}\n')
  rows = [{'step': 4, 'eval/loss/pair': 1.0, 'eval/loss/pair/all': 1.0}]
  page = page_of(str(run), rows)
  said = '<dt>started from</dt><dd>a/b</dd>' in page
  assert said == (text != 'None')
  assert 'by language' not in page


def test_losses_of_sets_of_pairs_are_not_said_to_be_of_languages(run):
  part = {
    **dict.fromkeys(('task', 'language', 'form', 'objective'), ''),
    **dict.fromkeys(('tokens', 'rows', 'passes'), 1),
    'source': 'opus', 'share': 1.0,
  }  # fmt: skip
  (run / 'data.json').write_text(
    json.dumps({'mixture': 'pairs', 'parts': [part]})
  )
  rows = [{'step': 4, 'eval/loss/pair': 1.0, 'eval/loss/pair/opus': 1.0}]
  page = page_of(str(run), rows)
  assert 'Held-out loss by set of pairs' in page and '>opus<' in page


def test_the_page_begins_with_the_answer_and_warnings(run):
  (run / 'config.gin').write_text('TRAIN_STEPS = 1400\n')
  rows = metric_writer.read_metrics(str(run))
  page = Page(page_of(str(run), rows))
  kinds = [a.get('class') for _, a in page.elements]
  assert kinds.index('answer') < kinds.index('warnings') < kinds.index('legend')
  assert 'The run is at step 20 of 1,400: it has not finished.' in page.text
  assert 'step20 of 1,400' in ''.join(page.text.split('\n'))
  (run / 'config.gin').write_text('TRAIN_STEPS = 20\n')
  assert 'warnings' not in [
    a.get('class') for _, a in Page(page_of(str(run), rows)).elements
  ]


def test_digits_have_one_size_and_charts_of_losses_one_scale(run):
  """Seen to fail where figures are as wide as there is room."""
  page = page_of(str(run), metric_writer.read_metrics(str(run)))
  sizes = re.findall(r'font-size: ([0-9.]+px)', page)
  assert len(sizes) > 50 and set(sizes) == {f'{plots.FONT_SIZE}px'}
  widths = {a['width'] for _, a in Page(page).elements if a.get('role')}
  assert widths == {'340', '165'}
  figures = train_page.train_page_data(str(run), ROWS_APART)['loss']
  assert [caption for caption, _ in figures] == ['denoise', 'clm']
  assert len({' '.join(Page(svg).text.split()) for _, svg in figures}) == 1


ROWS_APART = [
  {'step': step, 'eval/loss/denoise': 3.0 - step, 'eval/loss/clm': 9.0 - step}
  for step in range(2)
]


def test_a_run_of_one_evaluation_tells_no_change(run):
  page = page_of(str(run), [{'step': 0, 'eval/loss/clm': 8.0}])
  assert '<dt>clm</dt><dd>8.000</dd><dd></dd>' in page


def test_unknown_characters_have_a_legend(run):
  """Fault seen: '⁇', which looks like '??', and no word of what it means."""
  sample = dict.fromkeys(train_page.SAMPLE, 'denoise')
  samples = {'step': 1, 'samples': [sample | {'output': 'a ⁇ b'}]}
  legend = 'characters that the vocabulary lacks'
  path = run / train_page.SAMPLES_FILE
  path.write_text(json.dumps(samples))
  assert legend in page_of(str(run), [{'step': 0}])
  path.write_text(json.dumps({'step': 1, 'samples': [sample]}))
  assert legend not in page_of(str(run), [{'step': 0}])


def test_samples_are_shown_where_the_run_has_ended(run):
  assert 'class="text"' not in page_of(str(run), [{'step': 0}])
  sample = {
    'objective': 'denoise', 'language': 'ar', 'input': 'لكل <b>',
    'output': 'x & y', 'truth': 'z',
  }  # fmt: skip
  with open(run / train_page.SAMPLES_FILE, 'w', encoding='utf-8') as f:
    both = [sample, sample | {'objective': 'clm'}]
    json.dump({'step': 20, 'samples': both}, f)
  page = page_of(str(run), [{'step': 0}])
  assert '<p lang="ar" dir="auto" class="text">لكل &lt;b&gt;</p>' in page
  assert 'x &amp; y' in page and 'read by step 20' in page
  assert re.findall('<article class="(.*?)">', page) == ['denoise', 'clm']


def test_where_the_time_went(run):
  line = {
    'began': 0.0, 'now': 100.0, 'first': 0, 'step': 20,
    'seconds': {**dict.fromkeys(goodput.MEASURED, 0.0), 'compile': 25.0},
  }  # fmt: skip
  (run / goodput.GOODPUT_FILE).write_text(json.dumps(line) + '\n')
  page = page_of(str(run), metric_writer.read_metrics(str(run)))
  rows = {row[0]: row[1:] for row in Cells(page).rows if row}
  assert rows['steps that count'][:2] == ['1:15', '75.0%']
  assert rows['compiling'][:2] == ['0:25', '25.0%']
  assert 'evaluating' not in rows


def test_rows_may_lack_values(tmp_path):
  """Faults seen: KeyError 'tokens/input'; a format of None."""
  rows = [
    {'step': 1, 'loss': 2.0, 'mfu': None},
    {'step': 2, 'loss': None, 'tokens/input': 3.0},
    {'step': 3, 'loss': float('nan'), 'tokens/input': None},
  ]
  facts = train_page.train_page_data(str(tmp_path), rows[:2])['facts']
  assert ('training loss', '2.000') in facts and len(facts) == 3
  assert 'nan' in page_of(str(tmp_path), rows)


def test_first_and_last_loss_are_no_averages():
  """Seen to fail where they are the ends of the averaged curve."""
  rows = [{'step': i, 'eval/loss/clm': float(i)} for i in range(1000)]
  loss = train_page.held_out_losses(rows)[None]['clm']
  assert loss == {'first': 0.0, 'last': 999.0, 'unigram': None}


def test_the_command(run, tmp_path, capsys):
  gin.clear_config()
  assert main.main(['report', f'--gin.MODEL_DIR="{run}"']) == 0
  assert (run / train_page.TRAIN_PAGE).exists()
  assert str(run / train_page.TRAIN_PAGE) in capsys.readouterr().out
  nothing = tmp_path / 'nothing'
  gin.clear_config()
  assert main.main(['report', f'--gin.MODEL_DIR="{nothing}"']) == 2
  assert 'expected a folder with metrics.jsonl' in capsys.readouterr().err
