"""Faults are valid, differ from the source, and are known again."""

import ast
import json

import pytest

import mutants
import mutate

SOURCE = b'''"""Module: 1 < 2."""
import log


def clip(x: int = 3, most: 'a < b' = 9) -> 'None or int':
  """Doc of 3 lines, and 4 < 5."""
  if x < 0 and not most:
    raise ValueError(f'{x + 1} < 0' + 'a' * 3)
  log.warn('x', 1 + 2)
  assert most > 5
  for i, y in zip([x], [most], strict=True):
    x += i * y
    if i:
      continue
  rest = [v for v in range(x) if v]
  rest[0] = min(x, most)
  log.send(rest)
  return rest[: x - 1] if most is None else ('\xc3\xa9' != x) | (2.5 > x)
'''


def test_each_fault_is_another_program():
  faults = mutants.find_faults('m.py', SOURCE)
  whole = ast.dump(ast.parse(SOURCE))
  for fault in faults:
    assert ast.dump(ast.parse(fault.apply(SOURCE))) != whole, fault
    lines = SOURCE.decode().splitlines()
    assert ' '.join(lines[fault.line - 1].split()) in fault.before
  assert len({fault.identity for fault in faults}) == len(faults)
  after = {fault.after for fault in faults}
  for line in [
    'if x <= 0 and not most:', 'if x < 0 or not most:',
    'if x < 0 and most:', 'if (not (x < 0 and not most)):', 'x -= i * y',
    'x += i // y', "def clip(x: int = 4, most: 'a < b' = 9) -> 'None or int':",
    'if (not (i)):', 'rest = [v for v in range(x) if (not (v))]',
    'rest[1] = min(x, most)', 'rest[0] = max(x, most)', 'pass',
    "return rest[: x + 1] if most is None else ('é' != x) | (2.5 > x)",
    "return rest[: (x - 1) + 1] if most is None else ('é' != x) | (2.5 > x)",
    "return rest[: x - 1] if most is not None else ('é' != x) | (2.5 > x)",
    "return rest[: x - 1] if most is None else ('é' == x) | (2.5 > x)",
    "return rest[: x - 1] if most is None else ('é' != x) & (2.5 > x)",
    "return rest[: x - 1] if most is None else ('é' != x) | (5.0 > x)",
    'return None',
  ]:  # fmt: skip
    assert line in after, line


def test_wording_and_annotations_have_no_faults():
  faults = mutants.find_faults('m.py', SOURCE)
  for text in ('"""', 'log.warn', 'assert', 'strict', 'import'):
    assert not any(text in fault.before for fault in faults), text
  raises = [x for x in faults if x.before.startswith('raise')]
  assert [x.after for x in raises] == ['pass']
  heads = [x.after for x in faults if x.before.startswith('def')]
  assert len(heads) == 2 and all(text.count('a < b') == 1 for text in heads)


def test_a_fault_is_known_again_where_other_lines_changed():
  faults = mutants.find_faults('m.py', SOURCE)
  moved = SOURCE.replace(b'import log\n', b'import log\n\nX = 5\n')
  others = mutants.find_faults('m.py', moved.replace(b'  ', b'    '))
  identities = {fault.identity for fault in others}
  assert {fault.identity for fault in faults} < identities
  ranks = {f.identity: f.rank(3) for f in others}
  assert all(f.rank(3) == ranks[f.identity] for f in faults)
  assert faults[0].rank(3) != faults[0].rank(4)


def test_every_module_has_tests_and_faults():
  for name in mutate.MODULES:
    arguments = mutate.parse_arguments([name.split('/')[1], '--count', '3'])
    chosen = mutate.choose(arguments)
    assert [x.identity for x in mutate.choose(arguments)] == [
      x.identity for x in chosen
    ]
    assert len(chosen) == 3, name
    for path in mutate.find_tests(chosen[0].file):
      assert mutate.os.path.exists(f'{mutate.ROOT}/{path}'), path


def test_known_survivors_have_a_reason():
  known = mutate.load_known()
  assert all(len(reason) > 9 for reason in known.values())
  files = {f'atm/{name}.py' for name in mutate.MODULES}
  assert {identity[0] for identity in known} <= files
  with open(mutate.KNOWN, encoding='utf-8') as f:
    assert len(json.load(f)) == len(known)


@pytest.mark.parametrize('line, first', [(7, 'quick'), (8, 'slow')])
def test_tests_that_execute_the_line_run_first(
  monkeypatch, tmp_path, line, first
):
  monkeypatch.setattr(mutate, 'PROFILES', str(tmp_path))
  profiles = mutate.Profiles()
  profiles.add(
    'atm/model/loss.py',
    {
      'code': 1, 'failed': ['broken'],
      'seconds': {
        'broken': 0.0, 'long': 9.0, 'slow': 2.0, 'quick': 0.1, 'other': 0.0
      },
      'lines': {
        'broken': [7], 'long': [7, 8], 'slow': [7, 8], 'quick': [7], 'other': []
      },
    },
  )  # fmt: skip
  fault = mutants.Fault('atm/model/loss.py', '', '', '', '', 0, 0, b'', line)
  one, two = profiles.jobs(fault, [], longest=5)
  assert one.order[0] == first and one.order[-1] != first
  assert sorted(one.order) == ['other', 'quick', 'slow']
  assert two.order == ['long'] and two.seconds > 4 * 9
  assert mutate.Profiles().of == profiles.of  # kept while nothing changes
