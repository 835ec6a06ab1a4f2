"""The adapter to lm-evaluation-harness, against sums over Model.logits.

The tasks, their data and all that the harness keeps are in temporary folders.
"""

import dataclasses
import functools
import json
import os
import sys

os.environ.setdefault('HF_HUB_OFFLINE', '1')

import datasets
import jax
import jax.numpy as jnp
import lm_eval
import numpy as np
import pytest
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.tasks import TaskManager

import gin
from atm.checkpoint import manager, pretrained
from atm.cli import main
from atm.data import vocabulary_training
from atm.inference import api, prompts, sampling
from atm.lm_eval import AtmLM, Newlines, generation
from atm.model.config import ModelConfig
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.train.run_folder import RunFolder
from atm.train.step import State
from tests.public_folders import PUBLIC

from small_models import init

POSITIONS = 32
SENTENCES = """
The river rises in the hills and runs down to the sea. <br> It is long.
Question: what runs to the sea? Answer: the river <br><br> Question: who knows?
A small boat went along the coast; the wind was weak, and nobody was in haste.
Seven sheep sleep in the shade of an old tree. <br> Are they tired? Yes or no.
川は山から海へ流れる。船は港にいる。木の下で羊が眠る。
Der Fluss entspringt in den Bergen und fliesst ins Meer; das Boot ist klein.
Is the boat small? Answer: yes. Is the sea old? Answer: no, it is not.
""".strip().split('\n')
PASSAGE = ' '.join(SENTENCES[:4]).replace(' <br> ', '\n')
CONTEXTS = (
  ('The river rises', ' in the hills'),
  ('Question: who knows?\nAnswer:', ' the old tree'),
  ('', 'Seven sheep'),
  ('the w', 'ind was weak'),  # goes on in a word
  ('川は山から', '海へ流れる。'),
  ('Are they tired? ', 'Yes'),
  ('who?\n\nA:', ' b'),
  ('It is old.', '\nA'),
  ('A', ' b'),
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  """Nothing is written but to tmp_path, and nothing downloaded."""
  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'hf')
  monkeypatch.setenv('DISABLE_MULTIPROC', '1')
  monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> api.Model:
  """Untrained, on one device, with a vocabulary that spells '<br>'."""
  folder = str(tmp_path_factory.mktemp('words'))
  words = vocabulary_training.train_sentencepiece(
    SENTENCES * 4, folder, 118, character_coverage=1.0
  )
  config = ModelConfig(
    vocab_size=words.size, d_model=32, encoder_layers=1, decoder_layers=2,
    encoder_heads=4, decoder_heads=4, encoder_ff=64, decoder_ff=64,
    positions=POSITIONS, dtype='float32', init_std=0.3,
  )  # fmt: skip
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  return api.Model(config, init(config), words, mesh, Rules(), 7)


def asked(kind: str, *arguments) -> list[Instance]:
  return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


def ids_of(model, context: str, continuation: str) -> tuple[list, list]:
  """Ids of both, by the definition: newlines are marks, and what no space
  parts is read behind a letter."""
  words = model.vocabulary
  for n in (2, 1):
    context = context.replace('\n' * n, ' ' + '<br>' * n + ' ')
    continuation = continuation.replace('\n' * n, ' ' + '<br>' * n + ' ')
  left = words.encode(context)
  if context and ' ' not in (context[-1], continuation[0]):
    return left, words.encode('_' + continuation)[len(words.encode('_')) :]
  return left, words.encode(continuation)


def summed(model, encoder, given, scored) -> tuple[float, bool]:
  """(log-probability, whether each is the argmax), in numpy."""
  c = model.config
  tokens, mask, decoder = np.zeros((3, 1, POSITIONS), np.int32)
  tokens[0, : len(encoder)], mask[0, : len(encoder)] = encoder, 1
  written = [c.start_id, *given, *scored][:-1]
  decoder[0, : len(written)] = written
  logits = model.logits(tokens, decoder, mask)[0].astype(np.float64)
  logits = logits[len(given) : len(written)]
  logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  total = sum(row[i] for row, i in zip(logs, scored, strict=True))
  return total, bool((logits.argmax(-1) == scored).all())


def expected(model, mode, context: list, scored: list) -> tuple[float, bool]:
  """Of ids; a context that has no room is cut, its beginning first."""
  v = model.vocabulary
  if mode == 'clm':
    context = context[-(POSITIONS - 3) :]
    return summed(model, [v.bos_id, v.clm_id, *context, v.eos_id], [], scored)
  context = context[-min(POSITIONS - 2, POSITIONS - len(scored)) :]
  return summed(model, [v.bos_id, *context, v.eos_id], context, scored)


def free(model, mode, contexts, tokens) -> list[list[int]]:
  """The ids that follow contexts greedily."""
  room = POSITIONS - 3 if mode == 'clm' else POSITIONS - 1 - tokens
  ids = [ids_of(model, context, ' x')[0][-room:] for context in contexts]
  made = model.complete(
    [model.framed(row, mode) for row in ids],
    config=sampling.Config(max_tokens=tokens),
    prefixes=ids if mode == 'denoise' else None,
  )
  return [best.ids for best, *_ in made]


def same(got, want):
  assert [greedy for _, greedy in got] == [greedy for _, greedy in want]
  np.testing.assert_allclose(
    [x for x, _ in got], [x for x, _ in want], rtol=2e-5, atol=2e-5
  )


# --- Scoring


@pytest.mark.parametrize('mode', prompts.MODES)
def test_loglikelihood_is_the_sum_of_log_probabilities(model, mode):
  """Faults seen: an end token scored, a continuation always as behind a space,
  the context scored, too, `[CLM]` in denoising."""
  got = AtmLM(model, mode).loglikelihood(asked('loglikelihood', *CONTEXTS))
  want = [expected(model, mode, *ids_of(model, *pair)) for pair in CONTEXTS]
  same(got, want)
  assert all(isinstance(x, float) and isinstance(y, bool) for x, y in got)
  assert len({round(x, 4) for x, _ in got}) == len(got)


@pytest.mark.parametrize('mode', prompts.MODES)
def test_greedy_is_what_generate_writes(model, mode):
  """Fault seen: of the context's tokens, too."""
  words, rows = model.vocabulary, []
  contexts = [context for context, _ in CONTEXTS]
  made = free(model, mode, contexts, 4)
  for context, best in zip(contexts, made):
    ids, _ = ids_of(model, context, ' x')
    given = ids if mode == 'denoise' else []
    other = [*best[:-1], 7 if best[-1] != 7 else 8]
    for end in (best, other):
      rows.append((model.framed(ids, mode), [*given, *end], len(given)))
  *_, greedy = model.likelihoods(*zip(*rows))
  assert greedy.tolist() == [True, False] * len(contexts)
  # And through texts, where they encode to the same ids again.
  pairs = [
    (context, text)
    for context, best in zip(contexts, made)
    for n in (1, 2, 3)
    for text in (f' {words.decode(best[:n])}', words.decode(best[:n]))
    if text.strip() and ids_of(model, context, text)[1] == best[:n]
  ]
  answers = AtmLM(model, mode).loglikelihood(asked('loglikelihood', *pairs))
  assert len(pairs) > 2 and all(greedy for _, greedy in answers)


@pytest.mark.parametrize('mode', prompts.MODES)
def test_no_answer_depends_on_the_others(model, mode, rng):
  """Nor on the size of batches, their order or the mesh."""
  pairs = [*CONTEXTS, (PASSAGE, ' no'), ('a', PASSAGE), ('b', '')]
  whole = AtmLM(model, mode).loglikelihood(asked('loglikelihood', *pairs))
  assert whole[-1] == (0.0, True)
  for size in (1, 3):
    order = rng.permutation(len(pairs))
    some = AtmLM(model, mode, batch_size=size).loglikelihood(
      asked('loglikelihood', *(pairs[i] for i in order))
    )
    same(some, [whole[i] for i in order])
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  other = AtmLM(dataclasses.replace(model, mesh=mesh), mode)
  same(other.loglikelihood(asked('loglikelihood', *pairs)), whole)


@pytest.mark.parametrize('mode', prompts.MODES)
def test_long_contexts_lose_their_beginning(model, mode, caplog):
  """Faults seen: cut at the end; the marker cut off."""
  pairs = [(PASSAGE, ' yes'), ('The sea', ' no'), (PASSAGE, ' is old')]
  got = AtmLM(model, mode).loglikelihood(asked('loglikelihood', *pairs))
  same(got, [expected(model, mode, *ids_of(model, *pair)) for pair in pairs])
  (said,) = [r.getMessage() for r in caplog.records if r.name == 'atm.lm_eval']
  assert '2 of 3 contexts have more tokens than Config.positions = 32' in said


@pytest.mark.parametrize('mode', prompts.MODES)
def test_windows_of_a_long_text_sum_to_the_whole(model, mode):
  """Each token once, behind the text before it.

  Fault seen: windows without the text before them."""
  lm = AtmLM(model, mode)
  texts = [PASSAGE, 'The sea', '', PASSAGE + ' ' + PASSAGE]
  got = lm.loglikelihood_rolling(
    asked('loglikelihood_rolling', *((text,) for text in texts))
  )
  size = POSITIONS if mode == 'clm' else POSITIONS // 2
  for text, total in zip(texts, got, strict=True):
    _, ids = ids_of(model, '', text or ' ')
    windows = list(lm.windows([], ids))
    parts = [target[given:] for _, target, given in windows]
    assert sum(parts, []) == ids and all(len(x) <= POSITIONS for x in parts)
    want = 0.0
    for start in range(0, len(ids), size):
      part = ids[start : start + size]
      want += expected(model, mode, ids[:start], part)[0]
    np.testing.assert_allclose(total, want, rtol=2e-5, atol=2e-5)
  assert len(windows) > 4 and got[2] == 0.0
  # A long continuation is scored in the same way.
  ((both, _),) = lm.loglikelihood(asked('loglikelihood', ('', PASSAGE)))
  assert both == pytest.approx(got[0], rel=1e-5)


# --- Generating


@pytest.mark.parametrize('mode', prompts.MODES)
def test_generate_until(model, mode):
  """Greedy, up to a stop string, which the context may hold.

  Fault seen: the context in the answer."""
  lm, words = AtmLM(model, mode), model.vocabulary
  contexts = [context for context, _ in CONTEXTS if context]
  options = {'max_gen_toks': 12, 'do_sample': False, 'temperature': 0.7}
  run = lambda **more: lm.generate_until(
    asked('generate_until', *((x, {**options, **more}) for x in contexts))
  )
  plain = [
    Newlines('<br>').read(words.decode(ids))
    for ids in free(model, mode, contexts, 12)
  ]
  assert run(until=['']) == plain
  letters = ''.join(sorted(set(''.join(plain)) - {'\n'}))
  cuts = 0
  for stop in letters[:: max(1, len(letters) // 3)]:
    made = run(until=stop)
    assert made == [text.split(stop)[0] for text in plain]
    cuts += made != plain
  assert cuts >= 2


def test_newlines_stop_and_are_read_again(model, monkeypatch):
  """A model that writes marks writes newlines.

  Faults seen: stops as they are; marks left in the text."""
  contexts = [context for context, _ in CONTEXTS if context]
  plain = AtmLM(model, newline='')
  run = lambda lm, until: lm.generate_until(
    asked(
      'generate_until',
      *((x, {'until': until, 'max_gen_toks': 16}) for x in contexts),
    )
  )
  free = run(plain, [])
  assert run(plain, ['\n', '\n\n']) == free  # it can write none
  inner = ''.join(free).replace(' ', '')
  mark = max(set(inner), key=inner.count)
  lm = AtmLM(model, newline=f' {mark} ')
  single = [x for x in contexts if '\n' not in x]
  free = dict(zip(contexts, free, strict=True))
  written = dict(zip(contexts, run(lm, []), strict=True))
  complete, asked_for = model.complete, []
  monkeypatch.setattr(
    model,
    'complete',
    lambda *args, **named: asked_for.append(named) or complete(*args, **named),
  )
  stopped = dict(zip(contexts, run(lm, ['\n']), strict=True))
  assert [named['stop'] for named in asked_for] == [[mark]]
  cuts = 0
  for context in single:
    lines = [line.strip(' ') for line in free[context].split(mark)]
    got = [line.strip(' ') for line in written[context].split('\n')]
    assert got == lines
    assert stopped[context] == written[context].split('\n')[0]
    cuts += len(lines) > 1
  assert cuts > 2


@pytest.mark.parametrize('mode', prompts.MODES)
def test_until_is_as_the_tokenizer_writes_it(model, mode, monkeypatch):
  """Faults seen: '；' in an answer as ';'; a space of the prompt's end as one
  of the answer."""
  lm, words = AtmLM(model, mode, newline=''), model.vocabulary
  made = api.Generation('', words.encode('one; two three'), [], 0.0)
  stops = []

  def complete(*args, **named):
    stops.append(list(named['stop']))
    return [[made]] * len(args[0])

  monkeypatch.setattr(model, 'complete', complete)
  for until, answer in (
    (['；'], 'one'), ([' '], 'one;'), (['\n', '\u3000'], 'one; two three'),
    (['ｔ'], 'one; '), (['two', ';'], 'one'),
  ):  # fmt: skip
    request = asked('generate_until', ('Everyone has', {'until': until}))
    assert lm.generate_until(request) == [answer]
  assert stops[1] == ([' '] if mode == 'clm' else [])


def test_newlines():
  n = Newlines('<br>')
  assert n.written('a\nb\n\nc \n d\r\ne') == (
    'a <br> b <br><br> c <br> d <br> e'
  )
  assert n.written('a b') == 'a b' and n.written('a\n') == 'a <br> '
  assert n.read(' a <br> b <br><br> c<br>d') == ' a\nb\n\nc\nd'
  assert n.stops(['\n', '\n\n', '\nQ:', '.\n', ';']) == [
    '<br>', '<br><br>', '<br> Q:', '. <br>', ';'
  ]  # fmt: skip
  assert n.cut('yes <br> Q: who', ['\nQ:']) == 'yes'
  assert n.cut('yes <br> <br> Q', ['\n\n']) == 'yes'
  assert n.cut('yes. <br> no', ['<br>']) == 'yes. '
  assert n.cut('a <br> b', ['c']) == 'a\nb'
  none = Newlines('')
  assert none.written('a\nb').split() == ['a', 'b']
  assert none.stops(['\n', ';']) == [';'] and none.cut('a  b;', [';']) == 'a  b'


def test_sampling(model):
  """Repeats of a request differ; a run does not from the next."""
  lm = AtmLM(model)
  options = {'do_sample': True, 'max_gen_toks': 8, 'top_p': 0.9}
  requests = asked('generate_until', *[('The sea', options)] * 6)
  made = lm.generate_until(requests)
  assert len(set(made)) > 3
  lm.batch_size = 2
  assert lm.generate_until(requests) == made


@pytest.mark.parametrize(
  'given, fields, until',
  [
    ({}, dict(max_tokens=256), []),
    (
      {'until': 'a', 'max_gen_toks': 8, 'temperature': 0.5},
      dict(max_tokens=8, temperature=0.5),
      ['a'],
    ),
    ({'do_sample': False, 'temperature': 0.5}, dict(max_tokens=256), []),
    ({'do_sample': True}, dict(max_tokens=256, temperature=1.0), []),
    (
      {'do_sample': None, 'num_beams': 3, 'until': ['', 'b'], 'top_k': 4},
      dict(max_tokens=256, beams=3, top_k=4),
      ['b'],
    ),
    (
      {'no_repeat_ngram_size': 3, 'encoder_no_repeat_ngram_size': None},
      dict(max_tokens=256, no_repeat_ngram_size=3),
      [],
    ),
  ],
)
def test_generation_options(given, fields, until):
  assert generation(given) == (sampling.Config(**fields), until)


def test_mistakes_are_named(model):
  for call, said in (
    (lambda: AtmLM(model, 'cml'), "Did you mean 'clm'"),
    (lambda: AtmLM(model, batch_size='auto'), "batch_size = 'auto': expected"),
    (
      lambda: AtmLM(dataclasses.replace(model, vocabulary=None)),
      'no tokenizer',
    ),
    (
      lambda: AtmLM.create_from_arg_string('model_dir=x,newlin=y'),
      "model_args = 'newlin'. Did you mean 'newline'",
    ),
    (lambda: AtmLM.create_from_arg_obj({}), 'model_args lack model_dir'),
    (lambda: generation({'max_gen_tok': 1}), "Did you mean 'max_gen_toks'"),
    (
      lambda: model.likelihoods([[3]], [[4, 5]], [2]),
      r'given\[0\] = 2: expected 0 to 1',
    ),
  ):
    with pytest.raises(ValueError, match=said):
      call()
  with pytest.raises(NotImplementedError, match='no chat template'):
    AtmLM(model).apply_chat_template([])


def test_answers_are_kept(model, monkeypatch, tmp_path):
  """What was answered before a run was killed is not asked again.

  Fault seen: kept only at the end."""
  lm, left = AtmLM(model, batch_size=2), [1]
  whole = lm.loglikelihood(asked('loglikelihood', *CONTEXTS))
  likelihoods = model.likelihoods

  def killed(*args, **named):
    left[0] -= 1
    if left[0] < 0:
      raise KeyboardInterrupt
    return likelihoods(*args, **named)

  monkeypatch.setattr(model, 'likelihoods', killed)
  cached = CachingLM(lm, str(tmp_path / 'answers.db'))
  with pytest.raises(KeyboardInterrupt):
    cached.loglikelihood(asked('loglikelihood', *CONTEXTS))
  assert len(cached.dbdict) == 2
  left[0] = 4  # batches of two, for the seven that are left
  same(cached.loglikelihood(asked('loglikelihood', *CONTEXTS)), whole)
  texts = cached.loglikelihood_rolling(
    asked('loglikelihood_rolling', ('',))
  )  # asks nothing of the model
  assert texts == [0.0] and len(cached.dbdict) == len(CONTEXTS) + 1


# --- The harness


ROWS = [
  {'q': 'Is the boat small?', 'choices': ['yes', 'no'], 'label': 0},
  {'q': 'Is the sea old?\nSay.', 'choices': ['yes', 'no'], 'label': 1},
  {'q': 'Who sleeps?', 'choices': ['sheep', 'river'], 'label': 0},
  {'q': 'Who runs?', 'choices': ['tree', 'river'], 'label': 1},
]
ANSWER = '{{choices[label]}}'
KINDS = {
  'multiple_choice': dict(
    doc_to_text='Question: {{q}}\nAnswer:',
    doc_to_target='label',
    doc_to_choice='choices',
    metric_list=[{'metric': 'acc'}],
  ),
  'loglikelihood': dict(
    doc_to_text='{{q}} Answer:',
    doc_to_target=f' {ANSWER}',
    metric_list=[{'metric': 'perplexity'}, {'metric': 'acc'}],
  ),
  'loglikelihood_rolling': dict(
    doc_to_text='',
    doc_to_target='{{q}}',
    metric_list=[{'metric': 'bits_per_byte'}],
  ),
  'generate_until': dict(
    doc_to_text='{{q}} Answer:',
    doc_to_target=ANSWER,
    generation_kwargs={'until': ['\n'], 'max_gen_toks': 4},
    metric_list=[{'metric': 'exact_match'}],
  ),
}


@pytest.fixture
def tasks(tmp_path) -> str:
  """A folder of a task of each kind, as YAML files, over local JSON."""
  rows = tmp_path / 'rows.jsonl'
  rows.write_text(''.join(json.dumps(row) + '\n' for row in ROWS))
  folder = tmp_path / 'tasks'
  folder.mkdir()
  for kind, fields in KINDS.items():
    described = {
      'task': f'our_{kind}', 'output_type': kind, 'dataset_path': 'json',
      'dataset_kwargs': {'data_files': {'test': str(rows)}},
      'test_split': 'test', 'fewshot_split': 'test', **fields,
    }  # fmt: skip
    (folder / f'{kind}.yaml').write_text(yaml.safe_dump(described))
  return str(folder)


@pytest.fixture
def no_defaults(monkeypatch):
  """The harness without its 14,000 tasks, whose index takes seconds."""
  short = functools.partial(TaskManager, include_defaults=False)
  monkeypatch.setattr('lm_eval.tasks.TaskManager', short)


@pytest.fixture(scope='module')
def run(model, tmp_path_factory) -> str:
  """A MODEL_DIR with the model's checkpoint."""
  directory = str(tmp_path_factory.mktemp('run'))
  checkpoints = manager.CheckpointManager(directory)
  meta = {
    'model': dataclasses.asdict(model.config),
    'vocabulary': model.vocabulary.sha256,
    'config': '',
  }
  state = State(jnp.zeros((), jnp.int32), model.params, {'x': jnp.zeros(1)})
  checkpoints.save(7, state.to_trees(), meta)
  checkpoints.close()
  RunFolder(directory).save_setup('', model.vocabulary)
  return directory


def by_hand(model, mode) -> dict:
  """The metrics of KINDS, of `expected`."""
  right, exact, logs, bits, size = [], [], [], 0.0, 0
  for row in ROWS:
    answer = row['choices'][row['label']]
    scores = [
      expected(
        model,
        mode,
        *ids_of(model, f'Question: {row["q"]}\nAnswer:', f' {choice}'),
      )[0]
      for choice in row['choices']
    ]
    right.append(np.argmax(scores) == row['label'])
    total, greedy = expected(
      model, mode, *ids_of(model, f'{row["q"]} Answer:', f' {answer}')
    )
    logs.append(total)
    exact.append(greedy)
    bits -= expected(model, mode, *ids_of(model, '', row['q']))[0] / np.log(2)
    size += len(row['q'].encode())
  return {
    'our_multiple_choice': {'acc,none': np.mean(right)},
    'our_loglikelihood': {
      'perplexity,none': np.exp(-np.mean(logs)),
      'acc,none': np.mean(exact),
    },
    'our_loglikelihood_rolling': {'bits_per_byte,none': bits / size},
  }


def agrees(results, wanted):
  for task, metrics in wanted.items():
    for name, value in metrics.items():
      assert results[task][name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize('mode', prompts.MODES)
def test_simple_evaluate(model, run, tasks, mode):
  """Each metric is what Model.logits gives by hand."""
  out = lm_eval.simple_evaluate(
    'atm',
    f'model_dir={run},mode={mode}',
    tasks=[f'our_{kind}' for kind in KINDS],
    batch_size=3,
    bootstrap_iters=10,
    task_manager=TaskManager(include_path=tasks, include_defaults=False),
  )
  agrees(out['results'], by_hand(model, mode))
  assert out['config']['model_step'] == 7
  assert out['config']['model_num_parameters'] == sum(
    x.size for x in jax.tree.leaves(model.params)
  )
  samples = out['samples']['our_generate_until']
  lm = AtmLM(model, mode)
  options = KINDS['generate_until']['generation_kwargs']
  made = lm.generate_until(
    asked('generate_until', *((f'{row["q"]} Answer:', options) for row in ROWS))
  )
  assert [sample['resps'][0][0] for sample in samples] == made


def test_the_harness_s_own_command(
  model, run, tasks, no_defaults, monkeypatch, capsys, tmp_path
):
  from lm_eval.__main__ import cli_evaluate

  arguments = (
    f'run --model atm --model_args model_dir={run} --include_path {tasks} '
    '--tasks our_multiple_choice,our_generate_until --num_fewshot 1 '
    f'--batch_size 4 --output_path {tmp_path}/out --use_cache {tmp_path}/kept'
  )
  monkeypatch.setattr(sys, 'argv', ['lm-eval', *arguments.split()])
  cli_evaluate()
  assert '|our_multiple_choice|' in capsys.readouterr().out
  assert [f for _, _, files in os.walk(tmp_path / 'out') for f in files]


def test_atm_lm_eval(model, run, tasks, no_defaults, capsys, tmp_path):
  """From a command line to a table and JSON; with eight devices."""
  gin.clear_config()
  settings = {
    'MODEL_DIR': run, 'INCLUDE_PATH': tasks, 'OUTPUT': f'{tmp_path}/out.json',
    'TASKS': [f'our_{kind}' for kind in KINDS], 'LOG_SAMPLES': True,
    'BATCH_SIZE': 2,
  }  # fmt: skip
  bound = [f'--gin.{name}={value!r}' for name, value in settings.items()]
  try:
    assert main.main(['lm_eval', *bound]) == 0
    said = capsys.readouterr().out
    with open(f'{tmp_path}/out.json', encoding='utf-8') as f:
      out = json.load(f)
    agrees(out['results'], by_hand(model, 'clm'))
    assert len(out['samples']['our_multiple_choice']) == len(ROWS)
    assert '|our_multiple_choice' in said and f'wrote {tmp_path}/out.js' in said
    gin.clear_config()
    assert main.main(['lm_eval', *bound, '--gin.TASKS="our_multiple"']) == 2
    assert "Did you mean 'our_multiple_choice'" in capsys.readouterr().err
    gin.clear_config()
    with pytest.MonkeyPatch.context() as patch:
      patch.setitem(sys.modules, 'lm_eval.api.model', None)
      patch.delitem(sys.modules, 'atm.lm_eval')
      patch.delattr('atm.lm_eval', raising=False)
      assert main.main(['lm_eval', *bound]) == 2
    assert "pip install 'atm-jax[eval]'" in capsys.readouterr().err
  finally:
    gin.clear_config()


@pytest.mark.parametrize(
  'name, value', [('until', 5), ('until', [5]), ('do_sample', 'no')]
)
def test_wrong_options_of_tasks_are_named(name, value):
  """Fault seen: 'no' sampled or not by the temperature, without a word."""
  with pytest.raises(ValueError, match=f'{name}.* = .*expected'):
    generation({name: value})


@pytest.mark.parametrize(
  'name, mode, message',
  [
    ('nllb', None, 'between named languages, which the harness does not name'),
    ('nllb', 'clm', r"mode = 'clm': the vocabulary has no \[CLM\]"),
    ('pegasus', 'denoise', r"mode = 'denoise': the vocabulary has no \[CLM\]"),
    ('pegasus', None, ''),
  ],
)
def test_public_models_are_asked_in_their_own_frame(name, mode, message):
  source = pretrained.open_pretrained(f'{PUBLIC}/{name}')
  model = api.Model(source.config, {}, source.vocabulary, None, None, 0)
  if message:
    with pytest.raises(ValueError, match=message):
      AtmLM(model, mode)
    return
  adapter = AtmLM(model, mode)
  assert (adapter.mode, adapter.frame) == (None, 'plain')
  assert adapter.room == source.config.positions - 1
