"""Prepares the data of gin/recipes, and scores what tuned models answer.

  python benchmarks/recipes.py prepare data/recipes
  python benchmarks/recipes.py score data/recipes/intents RUN/eval/intents ...
  python benchmarks/recipes.py plot docs/recipes.png NAME=MODEL_DIR ...

`prepare` needs apt and pip. It reads descriptions of packages of Debian (apt's
Translation files; the licence of a description is its package's) and Home
Assistant's sentence templates (home-assistant-intents, Apache 2.0), and writes
a folder for each recipe: train.* to tune on, and pairs/validation.jsonl, which
`atm eval` asks with DATA_DIR. `score` compares answers with baselines; `plot`
draws held-out losses of runs.
"""

import argparse
import glob
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import zipfile

APT = """\
Dir::State "{0}/state";
Dir::State::Lists "{0}/lists";
Dir::Cache "{0}/cache";
#clear Acquire::Languages;
Acquire::Languages {{ {1} }};
"""
MOST = 8000  # pairs to train on
TEST = 200  # questions of a recipe
# What the vocabulary of models/tiny.gin, made of the shipped text, can spell.
KNOWN = re.compile(r"(?:[^\W\d_]|[ ,.;:'-])+")
PROVIDES = re.compile(
  r'\bThis package (?:contains|provides|includes) ([^.:;()]{8,60})\.'
)
QUESTION = 'What is in it?'
# Templates name lists whose values are a household's own.
HOUSE = {
  'name': 'desk lamp,heater,coffee machine,garage door,fan,blinds,radio,oven',
  'area': 'kitchen,living room,bedroom,bathroom,office,garage,hallway,attic',
  'floor': 'ground floor,first floor,basement',
}


# --- Text


def read_descriptions(
  folder: str, languages: tuple[str, ...] = ('en', 'de')
) -> dict[str, dict]:
  """Downloads Debian's descriptions.

  Returns:
    {language: {key: (synopsis, first paragraph, all paragraphs)}}
  """
  for name in ('state', 'lists/partial', 'cache/archives/partial'):
    os.makedirs(f'{folder}/{name}', exist_ok=True)
  open(f'{folder}/state/status', 'w').close()
  with open(f'{folder}/apt.conf', 'w') as f:
    named = ''.join(f'"{k}"; ' for k in languages)
    f.write(APT.format(folder, named))
  subprocess.run(['apt-get', '-qq', '-c', f.name, 'update'], check=True)
  return {k: parse_descriptions(folder, k) for k in languages}


def parse_descriptions(folder: str, language: str) -> dict:
  """Reads the greatest Translation file of a language."""
  paths = glob.glob(f'{folder}/lists/*_i18n_Translation-{language}*')
  path = max(paths, key=os.path.getsize)
  text = subprocess.run(
    ['/usr/lib/apt/apt-helper', 'cat-file', path],
    check=True, capture_output=True, text=True,
  ).stdout  # fmt: skip
  found = {}
  for block in text.split('\n\n'):
    match = re.search(
      rf'Package: (.*)\nDescription-md5: (.*)\nDescription-{language}: (.*)\n'
      r'((?: .*\n)*)', block + '\n',
    )  # fmt: skip
    if match:
      first = match[4].split('\n .\n')[0]  # the first paragraph
      body = ' '.join(match[4].replace('\n .\n', '\n').split())
      found[match[1], match[2]] = match[3], ' '.join(first.split()), body
  return found


def choose(rows: list[tuple], repeats: bool = False) -> tuple[list, list]:
  """Splits rows into training and test by a hash of the input, which is once.

  Args:
    rows: (input, target); those with other characters than KNOWN are left out.
    repeats: whether a target of a test row may be one of training, too.
  """
  place = lambda row: hashlib.sha256(row[0].encode()).hexdigest()
  known = {row[0]: row for row in rows if all(map(KNOWN.fullmatch, row))}
  rows = sorted(known.values(), key=place)
  test, rest = rows[:TEST], rows[TEST:]
  taken = set() if repeats else {row[1] for row in test}
  return [row for row in rest if row[1] not in taken][:MOST], test


def make_translation(text: dict) -> tuple[list, list]:
  """Synopses of packages, German and English."""
  rows = [
    (text['de'][key][0], text['en'][key][0])
    for key in text['de']
    if key in text['en'] and text['de'][key][0] != text['en'][key][0]
    and len(text['de'][key][0]) < 70
  ]  # fmt: skip
  return choose(rows)


def make_summaries(text: dict) -> tuple[list, list]:
  """First paragraphs of descriptions, and their synopses."""
  rows = [
    (first, short)
    for short, first, _ in text['en'].values()
    if 60 < len(first) < 150 and len(short) < 70
  ]
  return choose(rows)


def make_questions(text: dict) -> tuple[list, list]:
  """What a package contains: a span of its description."""
  rows = []
  for _, _, body in text['en'].values():
    match = PROVIDES.search(body)
    if match and body.count(match[1]) == 1:
      start = max(0, body.rfind('. ', 0, max(0, match.start() - 2)) + 1)
      context = body[start : match.end() + 60].strip()
      if len(context) < 120:
        rows.append((context, match[1]))
  return choose(rows, repeats=True)


def make_intents(folder: str) -> tuple[list, list]:
  """Sentences to a house, with intent and slots."""
  command = (sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '-d')
  subprocess.run([*command, folder, 'home-assistant-intents'], check=True)
  (wheel,) = glob.glob(f'{folder}/home_assistant_intents*.whl')
  with zipfile.ZipFile(wheel) as z:
    data = json.loads(z.read('home_assistant_intents/data/en.json'))
  draw, rows = random.Random(0), []
  templates = [
    (name, sentence)
    for name, intent in data['intents'].items()
    for block in intent['data']
    for sentence in block['sentences']
  ]
  for name, sentence in templates * 8:
    slots: dict[str, str] = {}
    try:
      said = Template(data, draw, slots).expand(sentence)
    except LookupError:
      continue  # a free text, or a list that is the household's own
    said = ' '.join(said.split())
    if slots.keys() and len(said) < 90:
      named = ''.join(
        f'; {k.replace("_", " ")}: {slots[k]}' for k in sorted(slots)
      )
      rows.append((said, name.removeprefix('Hass') + named))
  return choose(rows, repeats=True)


class Template:
  """Expands Home Assistant's templates: (a|b), [a], (a;b), <rule>, {list}."""

  def __init__(self, data: dict, draw: random.Random, slots: dict):
    self.data, self.draw, self.slots = data, draw, slots

  def expand(self, text: str) -> str:
    """Returns one of the sentences of a template; fills `slots`."""
    while match := re.search(r'\(([^()\[\]]*)\)|\[([^()\[\]]*)\]', text):
      inner = match[1] if match[1] is not None else match[2]
      if ';' in inner:
        parts = inner.split(';')
        self.draw.shuffle(parts)
        chosen = ' '.join(parts)
      else:
        chosen = self.draw.choice(inner.split('|'))
      if match[2] is not None and self.draw.random() < 0.5:
        chosen = ''
      text = text[: match.start()] + chosen + text[match.end() :]
    text = re.sub(r'<(\w+)>', self._expand_rule, text)
    return re.sub(r'\{([^{}]+)\}', self._fill, text)

  def _expand_rule(self, match: re.Match) -> str:
    return self.expand(self.data['expansion_rules'][match[1]])

  def _fill(self, match: re.Match) -> str:
    name, _, slot = match[1].partition(':')
    if name in HOUSE:
      value = said = self.draw.choice(HOUSE[name].split(','))
    else:
      entry = self.data['lists'][name]
      # No 'values' of free texts, and of numbers: `tiny` knows no digits.
      chosen = self.draw.choice(entry['values'])
      chosen = chosen if isinstance(chosen, dict) else {'in': chosen}
      value = said = self.expand(chosen['in'])
    self.slots[slot or name] = ' '.join(value.split())
    return said


# --- Files


def prepare(folder: str) -> None:
  """Writes the data of all recipes."""
  with tempfile.TemporaryDirectory() as work:
    text = read_descriptions(work)
    made = {
      'translation': make_translation(text),
      'summarisation': make_summaries(text),
      'question_answering': make_questions(text),
      'intents': make_intents(work),
    }
  for name, (train, test) in made.items():
    os.makedirs(f'{folder}/{name}/pairs', exist_ok=True)
    write_training(f'{folder}/{name}', name, train)
    with open(f'{folder}/{name}/pairs/validation.jsonl', 'w') as f:
      for source, target in test:
        row = {'input': frame(name, source), 'target': target}
        f.write(json.dumps(row, ensure_ascii=False) + '\n')
    print(f'{name}: {len(train):,} to train on, {len(test):,} to ask')


def frame(name: str, source: str) -> str:
  """Returns an input as the recipe's templates frame it."""
  if name == 'question_answering':
    return f'{QUESTION} {source}'
  return source


def write_training(folder: str, name: str, rows: list[tuple]) -> None:
  """Writes training pairs in the form that the recipe reads."""
  if name == 'translation':  # two files, as Moses has them
    for i, language in enumerate(('de', 'en')):
      with open(f'{folder}/train.{language}', 'w') as f:
        f.writelines(f'{row[i]}\n' for row in rows)
  elif name == 'question_answering':
    with open(f'{folder}/train.jsonl', 'w') as f:
      for context, answer in rows:
        row = {'question': QUESTION, 'context': context, 'answer': answer}
        f.write(json.dumps(row, ensure_ascii=False) + '\n')
  else:
    header = {
      'summarisation': ('text', 'summary'), 'intents': ('sentence', 'frame')
    }  # fmt: skip
    with open(f'{folder}/train.tsv', 'w') as f:
      f.writelines('\t'.join(row) + '\n' for row in [header[name], *rows])


# --- Scores


def score(folder: str, evaluations: list[str]) -> None:
  """Prints scores of baselines and of answers, with 95% intervals."""
  with open(f'{folder}/pairs/validation.jsonl') as f:
    rows = [json.loads(line) for line in f]
  truths = [row['target'] for row in rows]
  answers = {'copy': [row['input'].removeprefix(QUESTION) for row in rows]}
  answers['majority'] = [find_majority(folder)] * len(rows)
  for path in evaluations:  # `atm eval` keeps the order of the questions
    with open(f'{path}/predictions/pairs.jsonl') as f:
      answers[path] = [json.loads(line)['answer'] for line in f]
  name = os.path.basename(os.path.normpath(folder))
  print('| answers | ' + ' | '.join(METRICS[name]) + ' |')
  for who, given in answers.items():
    cells = [format_score(metric, given, truths) for metric in METRICS[name]]
    print(f'| {who} | ' + ' | '.join(cells) + ' |')


METRICS = {
  'translation': ('chrf', 'bleu'),
  'summarisation': ('rougeL', 'rouge1'),
  'question_answering': ('squad_f1', 'squad_em'),
  'intents': ('intent', 'slot_f1', 'exact_match'),
}


def format_score(metric: str, answers: list[str], truths: list[str]) -> str:
  """Returns a score with the interval of a bootstrap over the questions."""
  import numpy as np

  from atm.evals import bootstrap, metrics

  if metric == 'intent':
    answers, truths = ([x.split(';')[0] for x in y] for y in (answers, truths))
    metric = 'exact_match'
  if metric == 'slot_f1':
    counts = np.array([*map(count_slots, answers, truths)], float)
    total = lambda sums: 200 * sums[..., 0] / np.maximum(1, sums[..., 1])
  else:
    found = metrics.get_metric(metric)
    counts = found.rows(answers, truths, [''] * len(truths))
    total = found.total
  value, low, high = bootstrap.bootstrap_interval(counts, total)
  return f'{value:.1f} [{low:.1f}, {high:.1f}]'


def count_slots(answer: str, truth: str) -> tuple[int, int]:
  """Counts slots that both have, and those of both together."""
  split = lambda text: {x.strip() for x in text.split(';')[1:]}
  a, b = split(answer), split(truth)
  return len(a & b), len(a) + len(b)


def find_majority(folder: str) -> str:
  """Returns the commonest target of the training pairs."""
  if os.path.exists(f'{folder}/train.en'):
    with open(f'{folder}/train.en') as f:
      targets = f.read().splitlines()
  elif os.path.exists(f'{folder}/train.jsonl'):
    with open(f'{folder}/train.jsonl') as f:
      targets = [json.loads(line)['answer'] for line in f]
  else:
    with open(f'{folder}/train.tsv') as f:
      targets = [line.rstrip('\n').split('\t')[1] for line in f][1:]
  return max(sorted(set(targets)), key=targets.count)


def plot(path: str, runs: list[str]) -> None:
  """Draws the held-out losses of runs, 'NAME=MODEL_DIR', by step."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(6, 3.6), layout='constrained')
  axes = figure.subplots()
  for run in runs:
    name, _, folder = run.partition('=')
    with open(f'{folder}/metrics.jsonl') as f:
      rows = [json.loads(line) for line in f]
    points = [(row['step'], row['eval/loss/pair'])
              for row in rows if 'eval/loss/pair' in row]  # fmt: skip
    axes.plot(*zip(*points), marker='o', markersize=3, label=name)
  axes.set(xlabel='step', ylabel='held-out loss, nats a token', yscale='log')
  axes.grid(alpha=0.3)
  axes.legend()
  figure.savefig(path, dpi=120)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('what', choices=('prepare', 'score', 'plot'))
  parser.add_argument('folder')
  parser.add_argument('evaluations', nargs='*')
  given = parser.parse_args()
  if given.what == 'prepare':
    prepare(given.folder)
  elif given.what == 'score':
    score(given.folder, given.evaluations)
  else:
    plot(given.folder, given.evaluations)
