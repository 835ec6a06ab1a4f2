"""Every setting and argument refuses wrong values by name, or is right.

Settings and arguments are found by inspection: a new one is tried, too.
"""

import dataclasses
import inspect
import math
import re

import jax
import numpy as np
import pytest

import atm
import atm_tasks
from atm.checkpoint import pretrained
from atm.cli import gin_config, gin_files
from atm.data.task_registry import Lengths
from atm.inference import api, bucketing, loglikelihood, sampling
from atm.inference import generate as generate_lib
from atm.messages import list_checks
from atm.model.config import ModelConfig
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules
from atm.train.optimizer import OptimizerConfig

WRONG = {  # what to call it -> makes it
  'None': lambda: None,
  'empty text': lambda: '',
  'empty list': lambda: [],
  'negative': lambda: -1,
  'zero': lambda: 0,
  '2**40': lambda: 2**40,
  'huge': lambda: 10**400,
  'nan': lambda: float('nan'),
  'text': lambda: 'x',
  'home': lambda: '~',
  'NUL': lambda: 'a\0b',
  'surrogate': lambda: '\ud83d',
  'generator': lambda: (x for x in ()),
  'bytes': lambda: b'x',
  'int64': lambda: np.int64(3),
  'float32': lambda: np.float32(2),
  'True': lambda: True,
  'empty dict': lambda: {},
  'list of None': lambda: [None],
  'object': object,
}
NEVER = (  # no setting may be one of these
  'huge', 'nan', 'surrogate', 'generator', 'bytes', 'list of None', 'object'
)  # fmt: skip
UNCHECKED = {  # arguments that no gin file may bind, made by our own code
  'console', 'devices', 'mesh', 'texts', 'config of suite.Asker',
  'rules of suite.Asker', 'vocabulary of suite.Asker', 'text',
}  # fmt: skip
BY_ITSELF = {'atm.sharding.Rules'}  # checks all of its fields alike


def settings() -> list[tuple]:
  """Returns (gin name, what it names, parameter) of all that gin may bind."""
  every = gin_config.configurables()
  every |= {f'atm_tasks.{f.__name__}': f for f in atm_tasks.GIN}
  return [
    (name, owner, parameter)
    for name, owner in every.items()
    if name not in BY_ITSELF
    for parameter in inspect.signature(owner).parameters
  ]


def macros() -> dict[str, set[str]]:
  """Returns parameter -> what users call it, one run or another."""
  found = {}
  for file in gin_files.shipped_files():
    with open(gin_files.find_file(file), encoding='utf-8') as f:
      lines = re.findall(r'^[\w.]+\.(\w+) = %(\w+)', f.read(), re.M)
    for parameter, macro in lines:
      found.setdefault(parameter, set()).add(macro)
  return found


def check_message(error: Exception, names: set[str]) -> None:
  """Asserts that an error is a line that names the value, and can be shown."""
  text = str(error)
  assert any(name in text for name in names), text
  assert len(text) < 500 and '\n' not in text
  text.encode()


MACROS = macros()


@pytest.mark.parametrize('name', {name: 0 for name, *_ in settings()})
def test_settings_refuse_wrong_values_by_name(name):
  """Faults seen: no bound of whole numbers, a parameter without a check."""
  short = '.'.join(name.split('.')[-2:])
  for owner_name, owner, parameter in settings():
    if owner_name != name:
      continue
    check = list_checks(owner).get(parameter)
    if check is None:
      assert {parameter, f'{parameter} of {short}'} & UNCHECKED
      continue
    names = {parameter, parameter.upper(), *MACROS.get(parameter, ())}
    for label, make in WRONG.items():
      try:
        used = check(make())
      except (ValueError, TypeError) as e:
        check_message(e, names)
        continue
      assert label not in NEVER, (parameter, label)
      assert used is None or not type(used).__module__.startswith('numpy')
      assert used != '~' or 'path' not in repr(check)
      assert repr(check(used)) == repr(used)


NEEDED = dict(
  model_dir='x', mixture='udhr', lengths={'inputs': 16, 'targets': 16},
  batch_size=1, train_steps=1, model_config=ModelConfig(),
  optimizer_config=OptimizerConfig(), vocabulary='x', directory='x',
  runs=('a', 'b'), source='x', output='x', output_dir='x', size=9,
  make_tasks=list, suite='x', run_plan=dict, of_pod=dict, texts=(), names='x',
  config=None, folder='x', mesh=None, rules=None, say=print,
  make_mesh=print, text='x',
)  # fmt: skip


@pytest.mark.parametrize('name', {name: 0 for name, *_ in settings()})
def test_checks_come_before_all_else(name):
  """Every check is made when a run's settings are, or its function called."""
  for owner_name, owner, parameter in settings():
    if owner_name != name or parameter not in list_checks(owner):
      continue
    needed = {
      p.name: NEEDED[p.name]
      for p in inspect.signature(owner).parameters.values()
      if p.default is p.empty
    }
    if dataclasses.is_dataclass(owner):
      needed |= {k: Rules() for k in needed if k == 'rules'}
    with pytest.raises((ValueError, TypeError)) as e:
      owner(**{**needed, parameter: object()})
    assert 'object' in str(e.value)


# --- Python


class Reached(Exception):
  """A program would be compiled now: the arguments were accepted."""


@pytest.fixture
def model(words, monkeypatch):
  def reach(*args, **named):
    raise Reached

  config = ModelConfig(
    vocab_size=words.size, d_model=8, encoder_heads=1, decoder_heads=1,
    encoder_layers=1, decoder_layers=1, positions=64,
  )  # fmt: skip
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  made = api.Model(config, {}, words, mesh, Rules(), 7)
  made.__dict__['_decode_params'] = {}
  monkeypatch.setattr(bucketing, 'select_program', reach)
  monkeypatch.setattr(loglikelihood, 'score_pairs', reach)
  monkeypatch.setattr(loglikelihood, 'next_token_logits', reach)
  monkeypatch.setattr(generate_lib, 'stream_tokens', reach)
  monkeypatch.setattr(pretrained, 'open_pretrained', reach)
  return made


TEMPLATE = atm.inference.prompts.SUMMARY
GIVEN = {
  'logits': dict(encoder_ids=[[5, 6]], decoder_ids=[[1, 5]]),
  'score': dict(inputs=['a'], targets=['b']),
  'likelihoods': dict(inputs=['a'], targets=['b']),
  'ids': dict(inputs=['a']),
  'target_ids': dict(targets=['a']),
  'encode': dict(text='a'),
  'framed': dict(ids=[5]),
  'generate': dict(inputs=['a']),
  'complete': dict(inputs=['a']),
  'stream': dict(text='a'),
  'translate': dict(sentences=['a'], to='de'),
  'summarize': dict(documents=['a']),
  'answers': dict(template=TEMPLATE, queries=[{'document': 'a'}]),
}
LISTS = 'empty list', 'generator'
# Take a language for each text.
EACH = 'complete', 'ids', 'target_ids', 'score', 'likelihoods'
# Of each argument what is right, by the labels above.
RIGHT = {
  'inputs': LISTS, 'targets': (), 'given': ('None',), 'numbers': ('None',),
  'prefixes': ('None',), 'stop': ('empty list',), 'banned': LISTS,
  'encoder_mask': ('None',), 'batch_size': ('2**9', 'int64', 'float32'),
  'text': ('empty text', 'text', 'home', 'NUL'), 'ids': LISTS,
  'sentences': LISTS, 'documents': LISTS, 'queries': LISTS, 'shots': LISTS,
  'number': ('negative', 'zero', '2**40', 'int64', 'float32'),
  'mode': ('None',), 'source': ('None',), 'target': ('None',),
}  # fmt: skip


def methods() -> list[tuple[str, str]]:
  """Returns (method, parameter) of all public methods of a model."""
  return [
    (name, parameter.name)
    for name, method in inspect.getmembers(api.Model, inspect.isfunction)
    if not name.startswith('_')
    for parameter in [*inspect.signature(method).parameters.values()][1:]
    if parameter.kind is not parameter.VAR_KEYWORD
  ]


@pytest.mark.parametrize('method, parameter', methods())
def test_arguments_of_a_model(model, method, parameter):
  """Faults seen: bytes as ids, a generator read twice, ids out of range."""
  names = {parameter, parameter.removesuffix('s'), parameter.removesuffix('es')}
  names |= {'language'} if parameter == 'to' else {'inputs, but'}
  for label, make in WRONG.items():
    given = {**GIVEN[method], parameter: make()}
    try:
      getattr(model, method)(**given)
    except Reached:
      pass
    except (ValueError, TypeError) as e:
      check_message(e, names)
      continue
    right = RIGHT.get(parameter, ())
    if (method, parameter) == ('target_ids', 'targets'):
      right = LISTS
    if parameter in ('source', 'target') and method in EACH:
      right = 'None', 'list of None'
    assert label in right, (method, parameter, label)


@pytest.mark.parametrize(
  'field', [field.name for field in dataclasses.fields(sampling.Config)]
)
def test_options_of_generate(model, field):
  for label in NEVER:
    with pytest.raises(ValueError) as e:
      model.generate(['a'], **{field: WRONG[label]()})
    check_message(e.value, {field})


@pytest.mark.parametrize(
  'parameter', list(inspect.signature(api.load).parameters)
)
def test_arguments_of_load(model, parameter):
  """Fault seen: at_step = 1000.0 looked for as '1000.0', and not found."""
  for label, make in WRONG.items():
    try:
      atm.load(**{'directory': 'x', parameter: make()})
    except Reached:
      assert label not in NEVER, (parameter, label)
    except (ValueError, TypeError) as e:
      check_message(e, {parameter, parameter.upper()})


def test_an_unknown_argument_has_a_hint(model):
  with pytest.raises(TypeError, match="Did you mean 'prefixes'"):
    model.complete(['a'], prefix=['b'])
  with pytest.raises(TypeError, match="load .* 'step'. Did you mean 'at_step'"):
    atm.load('x', step=3)
  with pytest.raises(
    TypeError, match=r'mean config=Config\(results=...\)\? Kn'
  ):
    model.complete(['a'], results=2)
  with pytest.raises(ValueError, match="Did you mean 'beams'. Known: banned, "):
    model.generate(['a'], beam=2)


@pytest.mark.parametrize('method', GIVEN)
def test_every_method_tells_its_arguments(model, method):
  """A stranger's argument is refused with the nearest, and with all."""
  signature = inspect.signature(getattr(model, method))
  name = [*signature.parameters][0]
  with pytest.raises((TypeError, ValueError)) as e:
    getattr(model, method)(**GIVEN[method], **{f'{name}_': 1})
  check_message(e.value, {f"no argument '{name}_'", f"no option '{name}_'"})
  options = 'options' in signature.parameters
  for known in [] if options else signature.parameters:
    assert known in str(e.value)
  if options:
    assert 'truncate' in str(e.value) and 'temperature' in str(e.value)


@pytest.mark.parametrize(
  'ids, message',
  [
    ([99999], 'encoder_ids.0. has the id 99999: expected 0 to'),
    ([-1], 'has the id -1'),
    ([5.9], 'has the id 5.9: .* whole numbers'),
    ([True, 5], 'expected a list of token ids'),
    ([5, None], 'expected a list of token ids'),
    ([[5]], 'expected a list of token ids'),
    (5, 'encoder_ids.0. = 5: expected a list'),
    (b'ab', "= b'ab': expected a list"),
    ([], 'rows of .0. ids: expected .B, S., S from 1 to'),
    ([5] * 65, 'rows of .65. ids'),
    ([math.inf], 'has the id inf'),
    ([10**30], 'expected a list of token ids'),
  ],
)
def test_ids_are_whole_numbers_of_the_vocabulary(model, ids, message):
  """Faults seen: ids clamped, cut to whole numbers, bytes taken as ids."""
  with pytest.raises(ValueError, match=message):
    model.logits([ids], [[1, 5]])
  if ids not in ([], [5] * 65):
    for call in (model.generate, lambda x: model.score(x, [[5]])):
      with pytest.raises(ValueError, match='input 0'):
        call([ids])


def test_ids_of_any_kind_that_are_right(model):
  for row in ([5.0, 6], np.array([5, 6], np.uint8), range(5, 7),
              (i for i in (5, 6)), jax.numpy.array([5, 6])):  # fmt: skip
    assert model.ids([row], 'clm') == [[5, 6]]
  with pytest.raises(ValueError, match=r'rows of \[1, 2\] ids'):
    model.logits([[5], [5, 6]], [[1], [1]])
  with pytest.raises(ValueError, match='2 rows of encoder_ids, but 1 of dec'):
    model.logits([[5], [6]], [[1]])
  with pytest.raises(ValueError, match=r'encoder_mask = .*shape \(1, 2\)'):
    model.logits([[5, 6]], [[1]], [1, 1])


def test_seeds_of_any_size_choose_tokens():
  """Seeds below 2**31 are used as they are; greater ones overflowed."""
  seeds = [0, 5, 2**31 - 1, 2**31, 2**32 + 5, 1732862400000]
  used = [sampling.Config(seed=seed).program_seed for seed in seeds]
  assert used[:3] == seeds[:3] and len({*used}) == len(seeds)
  assert all(type(n) is int and -(2**31) <= n < 2**31 for n in used)


def test_lengths_name_the_side():
  assert Lengths.of({'inputs': 16.0, 'targets': np.int64(8)}).both == (16, 8)
  with pytest.raises(ValueError, match=r"LENGTHS\['targets'\] = 7: expected"):
    Lengths.of({'inputs': 16, 'targets': 7})
