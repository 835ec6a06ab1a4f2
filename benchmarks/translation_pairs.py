"""Prepares aligned pairs of German, French and Italian with English; scores.

  python benchmarks/translation_pairs.py prepare data/translation
  python benchmarks/translation_pairs.py score data/translation EVALUATION ...

`prepare` needs apt. It reads descriptions of packages of Debian, which their
translation projects keep in these languages (the licence of a description is
its package's), and writes

  train.jsonl              pairs in the six directions into and out of English:
                           synopses, and first paragraphs of 60 to 300
                           characters
  pairs/validation.jsonl   200 first paragraphs of each direction, of at least
                           13 words, which `atm eval` asks with DATA_DIR
  held_out.txt             the same in all languages, for DECONTAMINATE

An input names its direction: 'German to English: ...'. No training pair shares
13 consecutive words with a held-out text, on either side.

`score` prints chrF and BLEU of words by direction, of each folder of `atm eval`
and of two baselines: a copy of the input, and each word by itself as IBM's
model 1 translates it, trained on the training pairs (Brown et al. 1993).
"""

import argparse
import collections
import hashlib
import json
import os
import random
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

LANGUAGES = {'en': 'English', 'de': 'German', 'fr': 'French', 'it': 'Italian'}
TEST = 200  # sentences of a direction
WORDS = 13  # as DECONTAMINATE has them
ROUNDS = 5  # of model 1's estimation


def find_grams(text: str) -> set[tuple]:
  """Returns all runs of WORDS words of a text, without case."""
  words = text.casefold().split()
  return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


def pair_texts(text: dict, language: str) -> tuple[dict, dict]:
  """Returns first paragraphs and synopses, {English: in the language}."""
  english, other = text['en'], text[language]
  keys = [key for key in sorted(other) if key in english]
  found = [
    {
      english[key][part]: other[key][part]
      for key in keys
      if english[key][part] != other[key][part]
    }
    for part in (1, 0)
  ]
  fits = lambda x: 60 <= len(x) <= 300
  paragraphs = {a: b for a, b in found[0].items() if fits(a) and fits(b)}
  return paragraphs, found[1]


def prepare(folder: str) -> None:
  """Writes the pairs, and those that are held out."""
  from recipes import read_descriptions

  with tempfile.TemporaryDirectory() as work:
    text = read_descriptions(work, tuple(LANGUAGES))
  sets = {k: pair_texts(text, k) for k in LANGUAGES if k != 'en'}
  place = lambda x: hashlib.sha256(x.encode()).hexdigest()
  # The same English texts first in all languages, where they are translated.
  held = {
    k: sorted(filter(find_grams, paragraphs), key=place)[:TEST]
    for k, (paragraphs, _) in sets.items()
  }
  texts = sorted({x for k in sets for a in held[k] for x in (a, sets[k][0][a])})
  banned = set().union(*map(find_grams, texts))
  train, asked = [], []
  for k, (paragraphs, synopses) in sets.items():
    for a, b in [*paragraphs.items(), *synopses.items()]:
      if not banned & (find_grams(a) | find_grams(b)):
        train += frame_pair('en', k, a, b), frame_pair(k, 'en', b, a)
    asked += [frame_pair('en', k, a, paragraphs[a]) for a in held[k]]
    asked += [frame_pair(k, 'en', paragraphs[a], a) for a in held[k]]
  random.Random(0).shuffle(train)
  os.makedirs(f'{folder}/pairs', exist_ok=True)
  for name, rows in (('train', train), ('pairs/validation', asked)):
    with open(f'{folder}/{name}.jsonl', 'w') as f:
      f.writelines(json.dumps(r, ensure_ascii=False) + '\n' for r in rows)
  with open(f'{folder}/held_out.txt', 'w') as f:
    f.writelines(f'{x}\n' for x in texts)
  print(f'{len(train):,} pairs to train on, {len(asked):,} to ask')


def frame_pair(source: str, target: str, text: str, translation: str) -> dict:
  """Returns a line of PAIRS."""
  direction = f'{LANGUAGES[source]} to {LANGUAGES[target]}: '
  return {'input': direction + text, 'target': translation}


def split_direction(text: str) -> tuple[str, str]:
  """Returns an input's direction, and its text."""
  direction, _, rest = text.partition(': ')
  return direction, rest


def train_words(pairs: list[tuple[str, str]]) -> dict[str, str]:
  """Returns the likeliest translation of each word by IBM's model 1."""
  pairs = [(a.split(), b.split()) for a, b in pairs]
  table: dict = collections.defaultdict(lambda: 1.0)
  for _ in range(ROUNDS):
    counts: dict = collections.Counter()
    sums: dict = collections.Counter()
    for sources, targets in pairs:
      for target in targets:
        shares = [table[source, target] for source in sources]
        whole = sum(shares)
        for source, share in zip(sources, shares, strict=True):
          counts[source, target] += share / whole
          sums[source] += share / whole
    table = {pair: count / sums[pair[0]] for pair, count in counts.items()}
  best: dict[str, tuple] = {}
  for (source, target), share in table.items():
    best[source] = max(best.get(source, (0.0, '')), (share, target))
  return {source: target for source, (_, target) in best.items()}


def score(folder: str, evaluations: list[str]) -> None:
  """Prints scores by direction, with 95% intervals over the sentences."""
  from recipes import format_score

  with open(f'{folder}/pairs/validation.jsonl') as f:
    rows = [json.loads(line) for line in f]
  by_direction = collections.defaultdict(list)
  for i, row in enumerate(rows):
    by_direction[split_direction(row['input'])[0]].append(i)
  known = collections.defaultdict(list)
  with open(f'{folder}/train.jsonl') as f:
    for row in map(json.loads, f):
      direction, text = split_direction(row['input'])
      known[direction].append((text, row['target']))
  answers = {}
  for path in evaluations:  # `atm eval` keeps the order of the questions
    with open(f'{path}/predictions/pairs.jsonl') as f:
      answers[path] = [json.loads(line)['answer'] for line in f]
  print('| direction | answers | chrF | BLEU |\n| --- | --- | ---: | ---: |')
  for direction, found in by_direction.items():
    truths = [rows[i]['target'] for i in found]
    texts = [split_direction(rows[i]['input'])[1] for i in found]
    words = train_words(known[direction])
    given = {
      'a copy of the input': texts,
      'word by word': [
        ' '.join(words.get(w, w) for w in x.split()) for x in texts
      ],
      **{path: [said[i] for i in found] for path, said in answers.items()},
    }
    for who, said in given.items():
      cells = [format_score(metric, said, truths) for metric in METRICS]
      print(f'| {direction} | {who} | {" | ".join(cells)} |', flush=True)


METRICS = ('chrf', 'bleu')

if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('what', choices=('prepare', 'score'))
  parser.add_argument('folder')
  parser.add_argument('evaluations', nargs='*')
  arguments = parser.parse_args()
  if arguments.what == 'prepare':
    prepare(arguments.folder)
  else:
    score(arguments.folder, arguments.evaluations)
