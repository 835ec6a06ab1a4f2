"""Executes a document's blocks in the working directory, as a reader would.

  python tests/documents/run_document.py docs/finetuning.md

Shell blocks run in bash, which stops at the first command that fails; Python
blocks share one process and its names. Prints each block's time and, where one
fails, what it printed; the exit status is then 1.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback

from document_blocks import Block, read_blocks

NUMBER = r'[-+]?\d[\d,.:]*'


def main(document: str) -> int:
  """Executes a document; returns the exit status."""
  names, printed = {'__name__': '__main__'}, ''
  for block in read_blocks(document):
    if block.title and not block.reason():
      os.makedirs(os.path.dirname(block.title) or '.', exist_ok=True)
      with open(block.title, 'w', encoding='utf-8') as f:
        f.write(f'{block.code}\n')
    if block.language == 'output':
      if missing := missing_lines(block.code, printed):
        print(f'{document}:{block.line}: not printed: {missing[0]!r}\n'
              f'what was:\n{printed}')  # fmt: skip
        return 1
    if not block.is_executed() or block.title:  # a module is imported below
      continue
    begun = time.time()
    worked, printed = execute(block, document, names)
    print(f'{document}:{block.line}: {time.time() - begun:.1f} s', flush=True)
    if not worked:
      print(f'failed:\n{block.code}\nprinted:\n{printed}')
      return 1
  return 0


def execute(block: Block, document: str, names: dict) -> tuple[bool, str]:
  """Returns whether a block worked, and what was printed."""
  if block.language == 'sh':
    result = subprocess.run(
      ['bash', '-e', '-o', 'pipefail', '-c', block.code],
      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, encoding='utf-8', errors='replace',
    )  # fmt: skip
    return result.returncode == 0, result.stdout
  padding = '\n' * block.line  # a traceback has the document's lines
  with tempfile.TemporaryFile('w+', encoding='utf-8') as f:
    worked = False
    with contextlib.redirect_stdout(f), contextlib.redirect_stderr(f):
      try:
        exec(compile(padding + block.code, document, 'exec'), names)
        worked = True
      except Exception:
        traceback.print_exc()
    f.seek(0)
    return worked, f.read()


def user_environment() -> dict[str, str]:
  """Returns the variables of a user of this Python, without those of tests."""
  ours = ('XLA_FLAGS', 'JAX_', 'PYTEST_', 'PYTHONPATH')
  env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
  binaries = os.path.dirname(sys.executable)
  return {**env, 'PATH': f'{binaries}:{env["PATH"]}', 'JAX_PLATFORMS': 'cpu'}


def missing_lines(expected: str, printed: str) -> list[str]:
  """Lists the lines that were not printed, in their order.

  A number stands for any, `...` for any text, and spaces for any spaces.
  """
  missing, lines = [], iter(printed.split('\n'))
  for line in expected.split('\n'):
    line = ' '.join(line.split())
    if line.strip('.') and not any(matches(line, other) for other in lines):
      missing.append(line)
      break
  return missing


def matches(expected: str, line: str) -> bool:
  """Tells whether a line has the shape that a document shows."""
  parts = re.split(rf'(\.\.\.|{NUMBER})', expected)
  pattern = ''.join(
    {0: re.escape(part), 1: '.*' if part == '...' else NUMBER}[i % 2]
    for i, part in enumerate(parts)
  )
  return re.fullmatch(pattern, ' '.join(line.split())) is not None


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
