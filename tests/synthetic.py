"""Results of evaluations that never were, and pages read as a browser does.

`synthetic` writes a folder as `atm eval` does, of a made-up model that is right
as often as it is told. As a script this writes two folders and their pages:

  python tests/synthetic.py /tmp/pages
"""

import hashlib
import html.parser
import json
import os
import re
import sys

import numpy as np

from atm.data.languages import LANGUAGES
from atm.evals import bootstrap
from atm.evals import metrics as metrics_lib
from atm.pages import compare_page, eval_page, render

FEW = ('ar', 'en', 'ja', 'ta')
UDHR = os.path.join(os.path.dirname(__file__), '../tasks/udhr')
EVIL = '<script>alert("&amp;")</script>'


def digest(*texts):
  return hashlib.sha256('\n'.join(texts).encode()).hexdigest()


def udhr(language):
  with open(f'{UDHR}/{language}.tsv', encoding='utf-8') as f:
    return [line.rstrip('\n').split('\t')[1] for line in f]


def spoiled(text, quality, random):
  """A text with some of its words lost or doubled, and all of it at times."""
  if random.random() > 0.5 + quality / 2:
    return ''
  words = list(text) if len(text.split()) < 3 else text.split()
  kept = [w for w in words if random.random() < quality] or words[:1]
  return ('' if words[0] == text[0] and len(words[0]) == 1 else ' ').join(kept)


def judged(name, lines, metrics, samples=200, **others):
  """An entry of results.json."""
  language = others['language']
  answers, truths, groups = (
    [line[key] for line in lines] for key in ('answer', 'truth', 'group')
  )
  made, rows = {}, {}
  for metric in metrics:
    # BLEU stands for spBLEU, whose model may not be there; 13a for MeCab.
    counted = metrics_lib.METRICS['bleu' if metric == 'spbleu' else metric]
    code = 'en' if counted.name == 'bleu' else language
    rows[metric] = counted.rows(answers, truths, groups, code)
    value, low, high = bootstrap.bootstrap_interval(
      rows[metric], counted.total, samples=samples
    )
    made[metric] = {'value': value, 'low': low, 'high': high}
  entry = {
    'name': name, 'source_language': None, 'mode': 'clm', 'shots': 0,
    'normalize': 'mean', 'chance': None, 'source': f'data/{name}.jsonl',
    'prompt_hash': digest(*(line['prompt_hash'] for line in lines)),
    'questions': len(lines), 'of': len(lines), 'scores': made,
    'statistics': {k: v.tolist() for k, v in rows.items()},
    'predictions': [
      {k: line[k] for k in ('id', 'prompt_hash', 'answer', 'truth', 'group')}
      for line in lines
    ],
  }  # fmt: skip
  return entry | others


def choice(random, i, quality, pairs, truth, shown, group=''):
  """A scored question, answered by made-up log-probabilities."""
  wanted = [truth] if isinstance(truth, int) else [
    k for k, c in enumerate(truth['candidates']) if c in truth['answers']
  ]  # fmt: skip
  tokens = [len(target.split()) + 1 for _, target in pairs]
  found = random.normal(-3, 0.4, len(pairs))
  found[wanted[0] if random.random() < quality else 0] += 1.5
  sent = '\n'.join('\n'.join(pair) for pair in pairs)
  return {
    'id': f'{i}', 'prompt_hash': digest(sent)[:16], 'group': group,
    'truth': truth, 'shown': shown, 'prompt': None, 'pairs': pairs,
    'output': None, 'answer': int(found.argmax()), 'tokens': tokens,
    'log_probabilities': list(np.round(found * tokens, 4)),
  }  # fmt: skip


def generated(i, prompt, output, truth, shown):
  return {
    'id': f'{i}', 'prompt_hash': digest(prompt)[:16], 'group': '',
    'truth': truth, 'shown': shown, 'prompt': prompt, 'pairs': [],
    'output': f'{output} <br> more', 'answer': output, 'tokens': None,
    'log_probabilities': None,
  }  # fmt: skip


def xnli(random, quality, language, n):
  lines, texts = [], udhr(language)
  for i in range(n):
    shown = {'premise': texts[i % 58], 'hypothesis': texts[(i + 7) % 58]}
    source = f'Context: {shown["premise"]} Question: {shown["hypothesis"]}'
    pairs = [[source, word] for word in ('True', 'False', 'Neither')]
    lines.append(choice(random, i, quality, pairs, i % 3, shown))
  return lines


def superglue(random, quality, n):
  """(name, metrics, chance, lines) of the eight."""
  english = udhr('en')
  for name in ('boolq', 'cb', 'copa', 'multirc', 'record', 'rte', 'wic', 'wsc'):
    lines = []
    for i in range(n):
      text, count = english[i % 58], 3 if name == 'cb' else 2
      pairs = [[text, word] for word in ('True', 'False', 'Neither')][:count]
      truth, group = i % count, f'{i // 4}' if name == 'multirc' else ''
      if name == 'record':
        entities = sorted(set(re.findall(r'\b[A-Z]\w+', ' '.join(english))))[:9]
        pairs = [[text, f'{text} It was {entity}.'] for entity in entities]
        truth = {'candidates': entities, 'answers': [entities[i % 9]]}
      shown = {'passage': text}
      lines.append(choice(random, i, quality, pairs, truth, shown, group))
    metrics = {
      'cb': ('accuracy', 'cb_f1'), 'record': ('record_f1', 'record_em'),
      'multirc': ('multirc_f1a', 'multirc_em'),
    }.get(name, ('accuracy',))  # fmt: skip
    chance = {'cb': 100 / 3, 'record': None}.get(name, 50.0)
    yield f'superglue_{name}', metrics, chance, lines


def written(random, quality, source, target, n, cue):
  """Questions whose answer is the same article in another language."""
  lines, texts = [], udhr(source)
  wanted = udhr(target)
  for i in range(n):
    text = texts[i % 58]
    want = wanted[i % 58]
    output = spoiled(want, quality, random)
    prompt = f'Sentence: {text}; {cue}:'
    lines.append(generated(i, prompt, output, want, {'sentence': text}))
  return lines


def squad(random, quality, n):
  lines, texts = [], udhr('en')
  for i in range(n):
    truth = [' '.join(texts[i % 58].split()[1:4])] if i % 2 else []
    output = truth[0] if truth and random.random() < quality else ''
    if not truth and random.random() > quality:
      output = texts[i % 58].split()[-1]
    shown = {'context': texts[i % 58], 'question': 'What is it about?'}
    prompt = f'Context: {texts[i % 58]} Question: What is it about? Answer:'
    lines.append(generated(i, prompt, output, truth, shown))
  return lines


def tasks_of(seed, quality, n, languages):
  """(entry, lines) of every task."""
  random = np.random.default_rng(seed)
  for code in languages:
    lines = xnli(random, quality, code, n)
    yield judged(
      f'xnli_{code}', lines, ['accuracy'], set='xnli', language=code,
      kind='score', chance=100 / 3, of=5010,
    ), lines  # fmt: skip
  for name, metrics, chance, lines in superglue(random, quality, n):
    yield judged(
      name, lines, metrics, set='superglue', language='en', kind='score',
      chance=chance,
    ), lines  # fmt: skip
  squads = ('squad_f1', 'squad_em', 'squad_has_answer_f1', 'squad_no_answer_f1')
  lines = squad(random, quality, n)
  yield judged('squadv2', lines, squads, set='squadv2', language='en',
               kind='generate'), lines  # fmt: skip
  for name, code in (
    ('mlsum_de', 'de'),
    ('xlsum_ar', 'ar'),
    ('xlsum_ja', 'ja'),
  ):
    lines = written(random, quality, code, code, n, 'Short summary')
    yield judged(
      name, lines, ('rouge2', 'rouge1', 'rougeL'), set=name[:5], shots=1,
      language=code, kind='generate',
    ), lines  # fmt: skip
  for a in languages:
    for b in languages:
      if a != b:
        good = quality * (0.55 if {'ta', 'te', 'mr'} & {a, b} else 0.95)
        cue = f'Translation in {LANGUAGES[b]}'
        lines = written(random, good, a, b, max(4, n // 4), cue)
        yield judged(
          f'flores101_{a}_{b}', lines, ('spbleu', 'chrf'), set='flores101',
          language=b, source_language=a, kind='generate', shots=1,
        ), lines  # fmt: skip


def synthetic(folder, quality=0.7, seed=0, n=40, languages=tuple(LANGUAGES)):
  """Writes results.json and predictions/ of a model that is not there."""
  os.makedirs(f'{folder}/predictions', exist_ok=True)
  tasks = []
  for entry, lines in tasks_of(seed, quality, n, languages):
    tasks.append(entry)
    with open(f'{folder}/predictions/{entry["name"]}.jsonl', 'w') as f:
      f.writelines(json.dumps(line) + '\n' for line in lines)
  results = {
    'suite': 'everything', 'model_dir': f'runs/{os.path.basename(folder)}',
    'step': 1400, 'parameters': 1432000, 'config': f'A = "{EVIL}"\n',
    'versions': {'atm': '0.1', 'jax': '0.10.2', 'chrf': 'sacrebleu 2.6.0'},
    'settings': {'limit': 100, 'seed': 0, 'batch_size': 32, 'weights': None},
    'seconds': 4212.3, 'tasks': tasks,
    'missing': [{
      'name': 'pawsx_de', 'why': 'data/pawsx/de/test_2k.tsv is not there.',
      'where': 'Get x-final.tar.gz of PAWS-X and unpack it in data/pawsx.',
    }],
  }  # fmt: skip
  with open(f'{folder}/results.json', 'w') as f:
    json.dump(results, f)
  return str(folder)


class Page(html.parser.HTMLParser):
  """Elements and rows of a page; raises where tags do not match."""

  VOID = {'meta', 'br'}

  def __init__(self, text):
    super().__init__()
    self.rows, self.ids, self.elements, self.open = [], [], [], []
    self.text = ''
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attributes):
    if tag not in self.VOID:
      self.open.append(tag)
    self.elements.append((tag, dict(attributes)))
    self.ids += [v for k, v in attributes if k == 'id']
    if tag == 'tr':
      self.rows.append([])
    elif tag in ('td', 'th'):
      self.rows[-1].append('')

  def handle_data(self, text):
    self.text += text
    if {'td', 'th'} & set(self.open):
      self.rows[-1][-1] += text

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def row(self, *begin):
    return next(r for r in self.rows if tuple(r[: len(begin)]) == begin)


def draw_macro(file, call, **data):
  """Returns what a call of a template's macro makes, as a Page."""
  macro = call.partition('(')[0]
  text = f"{{% from '{file}.html.jinja' import {macro} %}}{{{{ {call} }}}}"
  return Page(render.environment().from_string(text).render(data))


if __name__ == '__main__':
  here = sys.argv[1]
  first, other = (
    synthetic(f'{here}/{name}', quality, seed, n=100)
    for name, quality, seed in (('small', 0.55, 1), ('large', 0.8, 2))
  )
  print(eval_page.write_eval_page(first), eval_page.write_eval_page(other))
  print(compare_page.compare_evaluations((first, other)))
