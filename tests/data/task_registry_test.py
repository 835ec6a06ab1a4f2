"""Tasks by name, their text, and errors that name it."""

import pytest

from atm.data import task_registry

from built_rows import write_texts


def test_train_and_validation_share_no_text():
  train = set(task_registry.read_texts('udhr', 'train'))
  held = set(task_registry.read_texts('udhr', 'validation'))
  assert len(train) > 600 and len(held) > 60 and not train & held


@pytest.mark.parametrize(
  'files, message',
  [
    ({}, 'no LANG.txt, LANG.jsonl'),
    ({'en_jsonl': '{"txt": 1}'}, r'en.jsonl, line 1: expected an object'),
    ({'en_jsonl': '{"text": "a"}\n[3]'}, r'en.jsonl, line 2: expected an'),
    ({'en_txt': ''}, "no text in 'en'"),
  ],
)
def test_bad_folders_are_named(words, tmp_path, files, message):
  import atm_tasks

  with pytest.raises(ValueError, match=message):
    atm_tasks.configure(text_dir=write_texts(tmp_path, **files))
    list(task_registry.read_texts('text', 'train'))
    list(task_registry.read_texts('text', 'validation'))


def test_a_wrong_encoding_is_named(words, tmp_path):
  import atm_tasks

  (tmp_path / 'de.txt').write_bytes('gut\nschön'.encode('latin-1'))
  atm_tasks.configure(text_dir=str(tmp_path), held_out=0.0)
  with pytest.raises(ValueError, match='de.txt, line 2: expected UTF-8'):
    list(task_registry.read_texts('text'))


def test_unknown_names_suggest_the_nearest():
  with pytest.raises(ValueError, match="'udrh'.*Did you mean 'udhr'"):
    task_registry.find_task('udrh')
