"""One-line faults that are put into a module, to see whether a test fails.

An operator looks at a node of the syntax tree and says which bytes of the
source to replace by what, so that a fault leaves everything else as it was.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import re
from collections.abc import Iterator

COMPARISONS = {
  ast.Lt: ('<', '<='),
  ast.LtE: ('<=', '<'),
  ast.Gt: ('>', '>='),
  ast.GtE: ('>=', '>'),
  ast.Eq: ('==', '!='),
  ast.NotEq: ('!=', '=='),
  ast.Is: ('is', 'is not'),
  ast.IsNot: ('is not', 'is'),
  ast.In: ('in', 'not in'),
  ast.NotIn: ('not in', 'in'),
}
ARITHMETIC = {
  ast.Add: ('+', '-'),
  ast.Sub: ('-', '+'),
  ast.Mult: ('*', '//'),
  ast.Div: ('/', '*'),
  ast.FloorDiv: ('//', '*'),
  ast.Mod: ('%', '//'),
  ast.Pow: ('**', '*'),
  ast.BitAnd: ('&', '|'),
  ast.BitOr: ('|', '&'),
  ast.BitXor: ('^', '|'),
  ast.LShift: ('<<', '>>'),
  ast.RShift: ('>>', '<<'),
}
LOGIC = {ast.And: ('and', 'or'), ast.Or: ('or', 'and')}
OPPOSITES = {
  'min': 'max', 'minimum': 'maximum', 'argmin': 'argmax', 'any': 'all',
  'floor': 'ceil', 'startswith': 'endswith', 'zeros': 'ones',
  'zeros_like': 'ones_like', 'pmin': 'pmax', 'lstrip': 'rstrip',
}  # fmt: skip
OPPOSITES |= {b: a for a, b in OPPOSITES.items()}
# What a person reads, and nothing else: wording is no behaviour.
MESSAGES = {'log', 'say', 'warn', 'print', 'info', 'debug', 'warning', 'quote'}
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True)
class Fault:
  """Bytes [start, stop) of a file's source, replaced by `text`.

  Known again by file, function and changed lines, wherever they have moved to.
  """

  file: str
  function: str
  operator: str
  before: str
  after: str
  start: int
  stop: int
  text: bytes
  line: int

  @property
  def identity(self) -> tuple[str, str, str, str]:
    """What stays the same while other lines of the file change."""
    return self.file, self.function, self.before, self.after

  def rank(self, seed: int) -> str:
    """Returns a key that puts faults into an order of chance."""
    text = '\0'.join((str(seed), *self.identity))
    return hashlib.sha256(text.encode()).hexdigest()

  def apply(self, source: bytes) -> bytes:
    """Returns the source with the fault."""
    return source[: self.start] + self.text + source[self.stop :]


def find_faults(file: str, source: bytes) -> list[Fault]:
  """Returns all faults of a module, in the order of the source."""
  faults = {}
  for function, edit in _Finder(source).edits(ast.parse(source)):
    fault = _build_fault(file, source, function, *edit)
    if fault.before != fault.after:
      faults.setdefault(fault.identity, fault)
  return sorted(faults.values(), key=lambda fault: (fault.start, fault.text))


def _build_fault(file, source, function, operator, start, stop, text) -> Fault:
  """Names the lines that an edit changes, without spaces around them."""
  first = source.rfind(b'\n', 0, start) + 1
  last = source.find(b'\n', stop)
  last = len(source) if last < 0 else last
  after = source[first:start] + text + source[stop:last]
  lines = [
    ' '.join(part.decode().split()) for part in (source[first:last], after)
  ]
  line = source.count(b'\n', 0, start) + 1
  return Fault(file, function, operator, *lines, start, stop, text, line)


class _Finder:
  """Walks a syntax tree and yields edits of its source."""

  def __init__(self, source: bytes):
    self.source = source
    self.starts = [0]
    for line in source.splitlines(keepends=True):
      self.starts.append(self.starts[-1] + len(line))

  def span(self, node) -> tuple[int, int]:
    """Returns the bytes that a node spans."""
    return (
      self.starts[node.lineno - 1] + node.col_offset,
      self.starts[node.end_lineno - 1] + node.end_col_offset,
    )

  def edits(self, node, function: str = '') -> Iterator:
    """Yields (function, edit) of all nodes but annotations and messages."""
    for name, child in _children(node):
      if name in ('annotation', 'returns') or _is_message(child):
        continue
      inside = function
      if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
        inside = f'{function}.{child.name}'.lstrip('.')
      for edit in self.edits_here(child):
        yield inside, edit
      yield from self.edits(child, inside)

  def edits_here(self, node) -> Iterator:
    """Yields edits (operator, start, stop, text) of one node."""
    if isinstance(node, ast.Compare):
      sides = [node.left, *node.comparators]
      for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
        yield from self.exchange(left, right, COMPARISONS.get(type(op)))
    elif isinstance(node, ast.BinOp) and not _is_text(node):
      yield from self.exchange(
        node.left, node.right, ARITHMETIC.get(type(node.op))
      )
    elif isinstance(node, ast.BoolOp):
      yield from self.exchange(*node.values[:2], LOGIC[type(node.op)])
    elif isinstance(node, ast.AugAssign):
      old, new = ARITHMETIC[type(node.op)]
      yield from self.exchange(node.target, node.value, (old + '=', new + '='))
      yield self.remove(node)
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
      yield ('sign', *self.span(node), self.text(node.operand))
    elif isinstance(node, ast.Constant):
      yield from self.other_constants(node)
    elif isinstance(node, ast.Call):
      yield from self.opposite(node)
    elif isinstance(node, ast.Slice):
      for bound in (node.lower, node.upper):
        if bound is not None and not isinstance(bound, ast.Constant):
          text = b'(%s) + 1' % self.text(bound)
          yield ('slice', *self.span(bound), text)
    else:
      yield from self.other_statements(node)

  def text(self, node) -> bytes:
    """Returns the source of a node."""
    start, stop = self.span(node)
    return self.source[start:stop]

  def exchange(self, left, right, operators) -> Iterator:
    """Yields the edit that exchanges what stands between two operands."""
    if operators is None:
      return
    old, new = operators
    start, stop = self.span(left)[1], self.span(right)[0]
    words = r'\s+'.join(map(re.escape, old.split()))
    match = re.search(words.encode(), self.source[start:stop])
    if match:
      yield (
        f'{old} to {new}', start + match.start(), start + match.end(),
        new.encode(),
      )  # fmt: skip

  def other_constants(self, node) -> Iterator:
    """Yields edits of a flag or number: the other, or a greater one."""
    value = node.value
    if isinstance(value, bool):
      yield ('flag', *self.span(node), str(not value).encode())
    elif isinstance(value, int):
      yield ('constant', *self.span(node), str(value + 1).encode())
    elif isinstance(value, float):
      other = value * 2 if value else 1.0
      yield ('constant', *self.span(node), repr(other).encode())

  def opposite(self, node) -> Iterator:
    """Yields the edit that calls max for min, or all for any."""
    name = getattr(node.func, 'id', getattr(node.func, 'attr', None))
    if name in OPPOSITES:
      stop = self.span(node.func)[1]
      new = OPPOSITES[name].encode()
      yield (f'{name} to {OPPOSITES[name]}', stop - len(name), stop, new)

  def remove(self, node) -> tuple:
    """Returns the edit that leaves a statement out."""
    return ('statement', *self.span(node), b'pass')

  def other_statements(self, node) -> Iterator:
    """Yields edits of a statement: left out, turned round, or of None."""
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
      yield from self.negate(node.test)
    elif isinstance(node, ast.comprehension):
      for test in node.ifs:
        yield from self.negate(test)
    elif isinstance(node, ast.Return) and node.value is not None:
      if getattr(node.value, 'value', ...) is not None:
        yield ('return', *self.span(node.value), b'None')
    elif isinstance(node, (ast.Raise, ast.Continue, ast.Break)):
      yield self.remove(node)
    elif isinstance(node, ast.Expr) and not isinstance(
      node.value, ast.Constant
    ):
      yield self.remove(node)
    elif isinstance(node, ast.Assign) and isinstance(
      node.targets[0], (ast.Subscript, ast.Attribute)
    ):
      yield self.remove(node)

  def negate(self, test) -> Iterator:
    """Yields the edit that turns a condition round, if no other does."""
    if not isinstance(test, ast.Compare) and not (
      isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    ):
      yield ('condition', *self.span(test), b'(not (%s))' % self.text(test))


def _children(node) -> Iterator:
  """Yields (field, child) of a node."""
  for name, value in ast.iter_fields(node):
    for child in value if isinstance(value, list) else [value]:
      if isinstance(child, ast.AST):
        yield name, child


def _is_message(node) -> bool:
  """Tells whether a node only makes text for people, or cannot matter."""
  if isinstance(node, (ast.JoinedStr, ast.Assert)):
    return True
  if isinstance(node, ast.keyword) and node.arg == 'strict':
    return True  # of zip: asserts that lengths are the same
  if isinstance(node, ast.Expr):  # a call that logs, statement and all
    node = node.value
  if isinstance(node, ast.Call):
    name = getattr(node.func, 'id', getattr(node.func, 'attr', ''))
    return name in MESSAGES or name.endswith(('Error', 'dataclass'))
  return False


def _is_text(node) -> bool:
  """Tells whether an operator joins or formats text."""
  return any(
    isinstance(inner, ast.JoinedStr)
    or (isinstance(inner, ast.Constant) and isinstance(inner.value, str))
    for inner in (node.left, node.right)
  )
