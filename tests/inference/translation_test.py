"""Translations by language codes are those of transformers, see golden/."""

import json
import os

import numpy as np
import pytest

import atm
from atm.checkpoint import pretrained
from atm.data.language_codes import describe_language
from atm.inference import api, file_jobs, sampling
from tests.public_folders import GOLDEN, PUBLIC

with open(f'{GOLDEN}/translation.json', encoding='utf-8') as f:
  WHOLE = json.load(f)
SENTENCES = WHOLE['sentences']
FOLDERS = list(dict.fromkeys(pair['folder'] for pair in WHOLE['pairs']))
NAMES = {'max_new_tokens': 'max_tokens', 'num_beams': 'beams'}
# The folders' own settings are not those of the reference.
PLAIN = dict(
  beams=1, length_penalty=1.0, early_stopping=False, no_repeat_ngram_size=0,
  forced_eos=False,
)  # fmt: skip
GREEDY, BEAMS = (
  PLAIN | {NAMES.get(k, k): x for k, x in settings.items()}
  for settings in WHOLE['settings'].values()
)


# The two that begin an output otherwise; the rest take as long again.
QUICK = 'mbart25', 'nllb'


@pytest.fixture(
  scope='module',
  params=[
    pytest.param(x, marks=[pytest.mark.slow] * (x not in QUICK))
    for x in FOLDERS
  ],
)
def translator(request):
  """Returns (a model, what transformers made of its pairs of languages)."""
  model = atm.load(os.path.join(PUBLIC, request.param))
  return model, [x for x in WHOLE['pairs'] if x['folder'] == request.param]


@pytest.mark.parametrize('pair', WHOLE['pairs'])
def test_ids_are_those_of_transformers(pair):
  source = pretrained.open_pretrained(os.path.join(PUBLIC, pair['folder']))
  model = api.Model(source.config, {}, source.vocabulary, None, None, 0)
  assert model.ids(SENTENCES, source=pair['source']) == pair['read']
  assert model.target_ids(SENTENCES, target=pair['target']) == pair['labels']


def test_a_translation_is_that_of_transformers(translator):
  """All sentences of all pairs in one batch; what is scored, too."""
  model, pairs = translator
  texts = SENTENCES * len(pairs)
  each = lambda name: [x[name] for x in pairs for _ in SENTENCES]
  joined = lambda name: sum((x[name] for x in pairs), [])
  named = dict(source=each('source'), target=each('target'))
  # A beam's score counts a language that is forced, so not mBART-25's.
  kinds = {'greedy': GREEDY}
  if pairs[0]['folder'] == 'nllb':
    kinds['beams'] = BEAMS
  for kind, settings in kinds.items():
    made = model.complete(texts, config=sampling.Config(**settings), **named)
    for (one,), output, begin in zip(made, joined(kind), each('begin')):
      ids = output['ids'][len(begin) :]
      assert one.ids == [i for i in ids if i != model.config.end_id]
      assert one.text == output['text']
  totals, counts = model.score(texts, texts, **named)
  np.testing.assert_allclose(totals, joined('log_probabilities'), rtol=1e-5)
  assert counts.tolist() == [*map(len, joined('labels'))]


def test_names_streams_and_rows_of_files_translate_alike(
  translator, tmp_path, monkeypatch
):
  model, (pair, *_) = translator
  wanted = [x['text'] for x in pair['greedy']]
  name, own = describe_language(pair['target']), pair['source']
  made = model.translate(SENTENCES * 2, name, source=own, **GREEDY)
  assert made == wanted * 2
  config = sampling.Config(**GREEDY)
  if pair['folder'] != 'nllb':
    return
  pieces = model.stream(SENTENCES[0], None, config, source='en', target=name)
  assert ''.join(pieces) == wanted[0]
  # A row's own languages count before the settings.
  path, said = tmp_path / 'in.jsonl', []
  row = {'source_language': own, 'target_language': name}
  rows = [{'input': text} | row for text in SENTENCES * 2]
  path.write_text('\n'.join(map(json.dumps, rows)))
  monkeypatch.setattr(api, 'load', lambda *args, **named: model)
  job = file_jobs.InferJob(
    os.path.join(PUBLIC, 'nllb'), str(path), source='de', target='fr',
    config=config, say=said.append,
  )  # fmt: skip
  with open(job.run(), encoding='utf-8') as f:
    written = [json.loads(line) for line in f]
  assert [x['output'] for x in written] == wanted * 2
  assert said[0].endswith('mode nllb, eng_Latn (English) to tam_Taml (Tamil)')


@pytest.mark.parametrize(
  'row, settings, message',
  [
    ({}, {}, '^SOURCE_LANGUAGE and TARGET_LANGUAGE = None: this model reads'),
    ({}, dict(source='en'), '^TARGET_LANGUAGE = None'),
    ({'target_language': 'de'}, dict(target='fr'), '^SOURCE_LANGUAGE = None'),
    ({}, dict(source='en', target='Tamul'), "Did you mean 'tam_Taml' .Tamil."),
    ({'target_language': 'xx'}, {}, "in.jsonl, line 1: target_language = 'xx'"),
    (
      {'source_language': 3},
      {},
      'line 1: source_language = 3: expected a text',
    ),
    ({}, dict(mode='clm'), r"^MODE = 'clm': the vocabulary has no \[CLM\]"),
  ],
)
def test_what_names_no_language_is_told_before_weights_are_read(
  tmp_path, row, settings, message
):
  path = tmp_path / 'in.jsonl'
  path.write_text(json.dumps({'input': 'a', 'target': 'b', **row}))
  for job in (file_jobs.InferJob, file_jobs.ScoreJob):
    with pytest.raises(ValueError, match=message) as e:
      job(os.path.join(PUBLIC, 'nllb'), str(path), **settings).run()
    assert len(str(e.value)) < 700
  assert os.listdir(tmp_path) == ['in.jsonl']


@pytest.mark.parametrize('name', ['source', 'target'])
@pytest.mark.parametrize('value', [3, ['de'], '', b'de', True])
def test_settings_that_are_no_text_are_refused(name, value):
  with pytest.raises(ValueError, match=f'^{name.upper()}_LANGUAGE = '):
    file_jobs.InferJob('run', 'in.txt', **{name: value})


def test_a_few_shot_model_takes_no_shots_for_a_source(model, monkeypatch):
  """Codes of any form are understood; languages beside the paper's refused."""
  seen = []
  answer = lambda texts, mode, **options: (
    seen.extend(texts) or [''] * len(texts)
  )
  monkeypatch.setattr(model, 'generate', answer)
  model.translate(['Good morning.'], 'de', source='en')
  model.translate(['Good morning.'], 'deu_Latn', source='eng')
  assert len({*seen}) == 1 and 'Translation in German:' in seen[0]
  for to, options, message in (
    ('Welsh', {}, "to = 'Welsh': Welsh is no language of this model"),
    ('de', dict(source='cy'), "source = 'cy': Welsh is no language"),
    ('de', dict(shots='en'), "Did you mean source='en'"),
    (3, {}, 'to = 3: expected a text'),
  ):
    with pytest.raises(ValueError, match=message):
      model.translate(['a'], to, **options)


def test_a_translation_model_takes_no_shots(translator):
  model, _ = translator
  with pytest.raises(
    ValueError, match='1 shots: this model translates by lang'
  ):
    model.translate(['a'], 'de', [('a', 'b')], source='en')
  with pytest.raises(ValueError, match='^source = None: this model reads'):
    model.translate(['a'], 'de')
  with pytest.raises(ValueError, match='to = .xx.: no language of this model'):
    model.translate(['a'], 'xx', source='en')
