"""What evaluation tasks ask, of small files in the formats of the releases.

The files in testdata/evaluation are ours. golden/prompts.json holds each
question of them, in both modes; `python tests/tasks/multiple_choice_test.py`
writes it anew. The paper's prompts stand here in letters, too, and those of
lm-evaluation-harness are compared with its own.
"""

import importlib.util
import json
import os

import pytest

from atm.inference.prompts import MODES
from atm_tasks.evaluation import multiple_choice, registry

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATA = os.path.join(HERE, 'testdata', 'evaluation')
GOLDEN = os.path.join(HERE, 'golden', 'prompts.json')
# Directions and languages that add nothing are left out.
NAMES = [
  'flores101_en_de', 'flores101_de_ta', 'xsum', 'mlsum_de', 'xlsum_hi',
  'cnn_dailymail', 'wikilingua_fr', 'webnlg', 'e2e_nlg', 'superglue_*',
  'squadv2', 'xnli_*', 'xcopa_*', 'pawsx_de', 'pawsx_en', 'pawsx_ja',
  'xwinograd_*', 'udhr_translate_en_ja', 'udhr_next_en', 'udhr_next_ja',
]  # fmt: skip


def ask(name: str, mode: str = 'clm', **options):
  (task,) = registry.suite(name, DATA, mode=mode, **options)
  return task.make_questions(None)


def written(mode: str) -> dict:
  """task -> its questions, as JSON has them."""
  return {
    name: [
      [q.id, q.truth, q.group, q.prompt, [list(pair) for pair in q.pairs]]
      for q in ask(name, mode)
    ]
    for name in registry.match_names(NAMES)
  }


@pytest.mark.parametrize('mode', MODES)
def test_every_question_is_as_it_was(mode):
  with open(GOLDEN, encoding='utf-8') as f:
    golden = json.load(f)[mode]
  made = written(mode)
  assert list(made) == list(golden)
  for name, questions in made.items():
    assert questions == golden[name], name


# --- The paper's prompts, in letters

PAPER = {
  'xsum': 'Article: The pear weighed two kilos. It was sold on Friday. ==> '
  'Short summary: A village has sold its largest pear. <br><br><br> Article: '
  'Shepherds had asked for it since spring. The first herd crossed at noon. '
  '==> Short summary:',
  'flores101_en_de': 'Sentence: The ferry leaves at nine.; Translation in '
  'German: Die Fähre fährt um neun.; Sentence: Rain is expected; bring a coat.'
  '; Translation in German:',
  'e2e_nlg': 'name[Lily], food[Indian] ==> sentence describing the place: Lily '
  'serves Indian food. ; name[Blue Door], area[riverside] ==> sentence '
  'describing the place:',
  'squadv2': 'Context: Ada Finch keeps the lighthouse. It has been red since '
  '1931. Question: What is the last word in the passage? Answer: 1931; '
  'Question: Who keeps the lighthouse? Answer:',
  'superglue_cb': 'Context: A: Did she sing? B: I know that she did. <br> '
  'Question: Is this passage written in English? <br> Answer (True, False, or '
  'Neither): True <br> Question: Is this passage written in French? <br> '
  'Answer (True, False, or Neither): False <br> Question: she sang <br> Answer '
  '(True, False, or Neither):',
}


@pytest.mark.parametrize('name', PAPER)
def test_the_papers_prompts(name):
  question = ask(name)[0]
  encoders = [question.prompt] if question.prompt else dict(question.pairs)
  assert list(encoders) == [PAPER[name]]


def test_the_order_of_cbs_answers():
  questions = ask('superglue_cb')
  assert [[d for _, d in q.pairs] for q in questions] == [
    ['True', 'False', 'Neither']
  ] * 3
  assert [q.truth for q in questions] == [0, 2, 1]  # entailed, neutral, against


def test_the_dummy_shots_are_true_of_the_language():
  for language, name, other in (
    ('en', 'English', 'French'),
    ('fr', 'French', 'English'),
    ('hi', 'Hindi', 'English'),
  ):
    body = multiple_choice.nli_template(language).body
    assert f'in {name}? <br> Answer (True, False, or Neither): True' in body
    assert f'in {other}? <br> Answer (True, False, or Neither): False' in body


# --- lm-evaluation-harness


def harness(path: str):
  """A file of lm-evaluation-harness, without importing that."""
  found = importlib.util.find_spec('lm_eval')
  if found is None:
    pytest.skip('lm-eval is not installed')
  return os.path.join(found.submodule_search_locations[0], 'tasks', path)


def lines_of(name: str, path: str):
  with open(os.path.join(DATA, path), encoding='utf-8') as f:
    return [json.loads(line) for line in f]


@pytest.mark.parametrize('task, folder', [
  ('boolq', 'BoolQ'), ('rte', 'RTE'), ('wic', 'WiC')
])  # fmt: skip
def test_harness_prompts(task, folder):
  jinja2, yaml = pytest.importorskip('jinja2'), pytest.importorskip('yaml')
  with open(harness(f'super_glue/{task}/default.yaml')) as f:
    theirs = yaml.safe_load(f)
  template = jinja2.Template(theirs['doc_to_text'])
  rows = lines_of(task, f'superglue/{folder}/val.jsonl')
  for question, row in zip(ask(f'superglue_{task}'), rows, strict=True):
    text = template.render(**row).replace('\n', ' <br> ')
    assert question.pairs == tuple((text, c) for c in theirs['doc_to_choice'])
    labels = {'entailment': 0, 'not_entailment': 1}
    assert question.truth == labels.get(row['label'], row['label'])


def test_harness_multirc():
  jinja2, yaml = pytest.importorskip('jinja2'), pytest.importorskip('yaml')
  with open(harness('super_glue/multirc/default.yaml')) as f:
    theirs = yaml.safe_load(f)
  text = jinja2.Template(theirs['doc_to_text'])
  choices = jinja2.Template(theirs['doc_to_choice'])
  for question in ask('superglue_multirc'):
    shown = dict(question.shown)
    shown['paragraph'], shown['answer'] = shown['passage'], shown['candidate']
    both = eval(choices.render(**shown), {})  # a list of two texts
    for (encoder, decoder), choice in zip(question.pairs, both, strict=True):
      whole = f'{text.render(**shown)} {choice}'.replace('\n', ' <br> ')
      assert f'{encoder} {decoder}' == whole


@pytest.mark.parametrize('name, path, module, suffix', [
  ('superglue_copa', 'superglue/COPA/val.jsonl', 'super_glue/copa', ''),
  ('xcopa_it', 'xcopa/data/it/test.it.jsonl', 'xcopa', '_it'),
  ('xcopa_ta', 'xcopa/data/ta/test.ta.jsonl', 'xcopa', '_ta'),
])  # fmt: skip
def test_harness_copa(name, path, module, suffix):
  spec = importlib.util.spec_from_file_location(
    'theirs', harness(f'{module}/utils.py')
  )
  theirs = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(theirs)
  rows = lines_of(name, path)
  for question, row in zip(ask(name), rows, strict=True):
    text = getattr(theirs, f'doc_to_text{suffix}')(row)
    choices = [choice.strip() for choice in theirs.doc_to_choice(row)]
    assert question.pairs == tuple((text, choice) for choice in choices)
    assert question.truth == row['label']


@pytest.mark.parametrize('language', multiple_choice.PARAPHRASE)
def test_harness_pawsx(language):
  jinja2, yaml = pytest.importorskip('jinja2'), pytest.importorskip('yaml')
  with open(harness(f'paws-x/paws_{language}.yaml'), encoding='utf-8') as f:
    theirs = yaml.safe_load(f.read().replace('!function', ''))
  example = {'sentence1': 'Ada came.', 'sentence2': 'Bo left.', 'label': 1}
  # Their own preparation takes the full stop away, too.
  template = jinja2.Template(theirs['doc_to_choice'])
  both = eval(template.render(**{**example, 'sentence1': 'Ada came'}), {})
  made = multiple_choice.write_pawsx(
    example, language, lambda text, tokens: text
  )
  assert [choice.whole for choice in made.choices] == both
  assert made.right == 1


def test_partial_evaluation_of_winograd_schemas():
  first, second, third = ask('xwinograd_en')
  assert second.pairs == (
    ('Bo hit the wall with the ball and the wall', 'broke.'),
    ('Bo hit the wall with the ball and the ball', 'broke.'),
  )
  # The pronoun is a word: not the end of `the`, nor in the `with` before it.
  assert first.pairs[1] == (
    'With a "hm", Ada thanked Bo because Bo', 'had helped with it.',
  )  # fmt: skip
  assert third.pairs[1] == ('Bo cut the bread with the knife', '.')
  assert [q.truth for q in (first, second, third)] == [1, 0, 1]


def test_yes_is_a_paraphrase():
  for language, yes in (('de', 'Ja'), ('en', 'Yes')):
    question = ask(f'pawsx_{language}')[0]  # one of label 1
    assert question.pairs[question.truth][1].startswith(f'{yes}, ')
  question = ask('pawsx_de')[1]  # of label 0
  assert question.pairs[question.truth] == (
    'Ada kam vor Bo an, richtig?', 'Nein, Bo kam vor Ada an.',
  )  # fmt: skip


# --- Modes

SCORED = [
  name
  for name in registry.match_names(NAMES)
  if not registry.REGISTRY[name].format.generates
]


@pytest.mark.parametrize('name', SCORED)
def test_the_decoder_writes_the_text_again_completed(name):
  for clm, denoise in zip(ask(name), ask(name, 'denoise'), strict=True):
    assert (clm.id, clm.truth) == (denoise.id, denoise.truth)
    gaps = {encoder for encoder, _ in denoise.pairs}
    assert len(gaps) == 1  # nothing in it tells the answer
    for (question, answer), (gap, whole) in zip(clm.pairs, denoise.pairs):
      assert plain(question + answer) == plain(whole)
      # What is left out is one piece.
      missing = len(plain(whole)) - len(plain(gap))
      assert missing > 0
      text = plain(whole)
      assert plain(gap) in {
        text[:i] + text[i + missing :] for i in range(len(text))
      }
    assert len({whole for _, whole in denoise.pairs}) == len(clm.pairs)


def plain(text: str) -> str:
  """Without spaces, and the comma that parts Yes from a sentence."""
  return text.replace(' ', '').replace(',', '')


# --- Shots


def test_shots_show_the_right_answer():
  first, *_ = ask('superglue_boolq', shots=2)
  tea = 'Tea -- Tea is served hot. <br> Question: is tea hot? <br> Answer: yes'
  ice = 'Ice -- Ice is cold. <br> Question: is ice warm? <br> Answer: no'
  zero, *_ = ask('superglue_boolq')
  before = {f'{tea} <br> {ice} <br> ', f'{ice} <br> {tea} <br> '}
  assert {
    encoder.removesuffix(alone)
    for (encoder, _), (alone, _) in zip(first.pairs, zero.pairs)
  } < before
  # In the other mode the decoder writes them again.
  (encoder, decoder), _ = ask('superglue_boolq', 'denoise', shots=2)[0].pairs
  assert decoder == f'{encoder} no'


def test_shots_are_drawn_by_seed_and_name_alone():
  def shot(name='superglue_boolq', **options):
    befores = {
      encoder.split('Goats')[0].split('Red')[0]
      for q in ask(name, shots=1, **options)
      for encoder, _ in q.pairs
    }
    (before,) = befores  # the same for every question
    return before

  drawn = {seed: shot(seed=seed) for seed in range(8)}
  assert len(set(drawn.values())) == 2
  assert drawn[0] == shot(seed=0) == shot(seed=0, normalize='sum')


def test_shots_of_the_questions_own_split_are_not_asked():
  begins = {'0': 'With a "hm"', '1': 'Bo hit the wall', '6': 'Bo cut the bread'}
  shown = set()
  for seed in range(4):
    questions = ask('xwinograd_en', shots=1, seed=seed)
    (left,) = set(begins) - {question.id for question in questions}
    for question in questions:
      assert all(text.startswith(begins[left]) for text, _ in question.pairs)
    shown.add(left)
  assert len(shown) > 1


def test_too_many_shots():
  with pytest.raises(ValueError, match=r'SHOTS = 3: .*boolq has 2 .*train'):
    ask('superglue_boolq', shots=3)


class Letters:
  """A vocabulary of letters."""

  def encode(self, text):
    return list(text)

  def decode(self, ids):
    return ''.join(ids)


def test_long_texts_are_cut_to_sentences(tmp_path):
  sentence = 'Abcdefgh. '
  mlsum, boolq = tmp_path / 'mlsum', tmp_path / 'superglue' / 'BoolQ'
  for folder in (mlsum, boolq):
    folder.mkdir(parents=True)
  for split, count in (('train', 60), ('test', 100)):
    row = {'text': sentence * count, 'summary': 's'}
    (mlsum / f'de_{split}.jsonl').write_text(json.dumps(row))
  row = {'passage': sentence * 100, 'question': 'q', 'label': True, 'idx': 0}
  (boolq / 'val.jsonl').write_text(json.dumps(row))

  def counts(name, vocabulary):
    (task,) = registry.suite(name, str(tmp_path))
    (question,) = task.make_questions(vocabulary)
    text = question.prompt or question.pairs[0][0]
    return [part.count('Abcdefgh.') for part in text.split('<br><br><br>')]

  assert counts('mlsum_de', Letters()) == [35, 55]
  assert counts('mlsum_de', None) == [60, 100]
  assert counts('superglue_boolq', Letters()) == [80]
  assert counts('superglue_boolq', None) == [100]


@pytest.mark.parametrize('text, index, span, marked', [
  ('Bo saw him, too.', 2, 'him', 'Bo saw *him*, too.'),
  ('It is what it is.', 3, 'it', 'It is what *it* is.'),
  ('It is what it is.', 0, 'It', '*It* is what it is.'),
  ('He ran. He fell.', 3, 'He', 'He ran. *He* fell.'),  # one word too far
  ('Bo saw the dog.', 1, 'her', 'Bo saw the dog.'),
])  # fmt: skip
def test_pronouns_are_marked(text, index, span, marked):
  assert multiple_choice.mark_span(text, index, span) == marked


if __name__ == '__main__':
  with open(GOLDEN, 'w', encoding='utf-8') as f:
    made = {mode: written(mode) for mode in MODES}
    json.dump(made, f, ensure_ascii=False, indent=1)
    f.write('\n')
