"""The process that transformers runs in."""

import re
import sys

from atm.evals import peer_process


def test_versions_are_of_what_is_installed(monkeypatch):
  monkeypatch.setattr(peer_process, 'LIBRARIES', ('numpy', 'no_such_library'))
  assert [*peer_process.list_versions()] == ['numpy']
  assert peer_process.explain_missing() == (
    "no_such_library is not installed: pip install 'atm-jax[hf]'"
  )
  monkeypatch.setattr(peer_process, 'LIBRARIES', ('numpy',))
  assert peer_process.explain_missing() == ''


def test_a_failure_is_told_by_its_last_line(tmp_path):
  lines = []
  said = peer_process.ask_peer(str(tmp_path), lines.append)
  assert re.fullmatch(
    r'transformers failed: FileNotFoundError: .*request.json.*', said
  )
  assert not lines


def test_progress_is_printed_and_a_signal_is_told(tmp_path, monkeypatch):
  (tmp_path / 'stand_in.py').write_text(
    'import os, sys\n'
    'print("prompt 1", flush=True)\n'
    'os.kill(os.getpid(), 9)\n'
  )  # fmt: skip
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  monkeypatch.setattr(peer_process, 'SECONDS_BETWEEN_LINES', 0)
  monkeypatch.setattr(peer_process.peer_outputs, '__name__', 'stand_in')
  lines = []
  said = peer_process.ask_peer(str(tmp_path), lines.append)
  assert said.startswith('transformers was ended by signal 9')
  assert lines == ['  prompt 1'] and sys.executable
