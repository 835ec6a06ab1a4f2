"""JAX keeps compiled programs in a folder of all hosts, or in a store."""

import json
import os
import subprocess
import sys

import pytest

from atm import storage
from atm.parallel import compilation_cache

# Compiles in a shared folder; prints (compiled, cached) and the folder's names.
CODE = """
import json, sys
import jax, jax.numpy as jnp
from atm import storage
from atm.parallel import compilation_cache, distributed
distributed.start_jax(cpu_devices=1, compilation_cache=sys.argv[1])
process = int(sys.argv[2])
jax.process_index = lambda: process
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))
before = storage.list_names(sys.argv[1])
compilation_cache.flush()
import threading
[t.join() for t in threading.enumerate() if 'flush' in t.name]
counts = compilation_cache.count_programs()
print(json.dumps([counts, before, storage.list_names(sys.argv[1])]))
"""


def compile_in(folder: str, process=0):
  done = subprocess.run(
    [sys.executable, '-c', CODE, folder, str(process)],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout.splitlines()[-1])


def test_a_second_process_compiles_nothing(make_bucket):
  """Of a host that is not the first, too; it writes when it is told to."""
  folder = make_bucket('s3')
  (compiled, cached), before, after = compile_in(folder, process=1)
  assert compiled >= 1 and cached == 0
  assert before == [] and len(after) == compiled
  assert compile_in(folder) == [[0, compiled], after, after]


def test_a_folder_that_fails_costs_one_line(tmp_path, monkeypatch):
  said = []
  cache = compilation_cache.SharedCache(str(tmp_path), said.append)
  cache.put('a', b'1')
  cache.put('a', b'2')  # the first stands
  assert cache.get('a') == b'1' and cache.get('b') is None
  assert os.listdir(tmp_path) == ['a-cache']

  def fail(path):
    raise storage.StorageError(f'{path}: reading failed (9 tries)')

  monkeypatch.setattr(storage, 'read_bytes', fail)
  assert [cache.get('a'), cache.get('a'), cache.put('c', b'3')] == [None] * 3
  (line,) = said
  assert line.startswith(f"COMPILATION_CACHE = '{tmp_path}': reading failed")
  assert os.listdir(tmp_path) == ['a-cache']


def test_a_folder_that_cannot_be_made_leaves_the_default(tmp_path, capsys):
  (tmp_path / 'file').touch()
  before = compilation_cache.jax.config.jax_compilation_cache_dir
  compilation_cache.share_programs(f'{tmp_path}/file/inner')
  assert 'inner' in capsys.readouterr().err
  assert compilation_cache.jax.config.jax_compilation_cache_dir == before


def test_another_scheme_is_refused():
  with pytest.raises(ValueError, match='expected a path of this machine, gs:'):
    compilation_cache.share_programs('hdfs://a/b')
