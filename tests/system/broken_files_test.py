"""Every JSON file that is read, broken in every way, ends in a named error.

Of a valid file each value of its first levels is left out, null, of another
type, huge, or nested 100,000 deep, and the file itself is no file at all. Its
reader raises a ValueError or OSError of one line that names the path, or what
it returns can be used.
"""

import contextlib
import copy
import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from atm import fileio
from atm.checkpoint import config_json, hf_folder, hf_keys, paths, pretrained
from atm.data import cache, token_store, vocabulary
from atm.evals import compare, results
from atm.inference import partial_results
from atm.pages import (
  answer_cards,
  arm_records,
  arms_page,
  eval_page,
  train_page,
)
from atm.train import goodput, initial_state, metric_writer

import arm_runs
from command_line import atm
from conftest import tiny
from goldens import HERE, folder_of
from synthetic import synthetic

DEEP = '[' * 100_000 + ']' * 100_000
DEEP_MARK = 'nested deep'  # Python cannot write it
SECONDS = 5  # nothing waits for a pipe


def variants(value, depth: int = 3) -> Iterator[tuple[str, object]]:
  """Yields (what was done, a copy of a JSON value with one fault)."""
  if isinstance(value, dict) and depth:
    keys = list(value)
    chosen = keys if depth == 3 else keys[:12]
  elif isinstance(value, list) and depth and value:
    chosen = [0]
  else:
    return
  for key in chosen:
    faults = {
      'null': None,
      'of another type': 5 if isinstance(value[key], str) else 'x',
      'a list': [[]],
      'an object': {'x': {}},
      'true': True,
      'huge': 2**70,
      'negative': -(2**70),
      'not finite': float('inf'),
      'deep': DEEP_MARK,
    }
    for name, fault in faults.items():
      broken = copy.copy(value)
      broken[key] = fault
      yield f'{key} {name}', broken
    broken = copy.copy(value)
    del broken[key]
    yield f'{key} missing', broken
    for name, inner in variants(value[key], depth - 1):
      broken = copy.copy(value)
      broken[key] = inner
      yield f'{key}.{name}', broken


def write(path: str, value) -> None:
  """Writes a JSON value, `DEEP_MARK` as what is nested deep."""
  text = json.dumps(value).replace(f'"{DEEP_MARK}"', DEEP)
  with open(path, 'w') as f:
    f.write(text)


@contextlib.contextmanager
def alarm():
  """Raises TimeoutError in a block that waits."""

  def ring(*_):
    raise AssertionError('it waits for ever')

  before = signal.signal(signal.SIGALRM, ring)
  signal.alarm(SECONDS)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def outcome(read: Callable, path: str, what: str) -> bool:
  """Tells whether a broken file is refused; asserts that it is so in a line."""
  try:
    with alarm():
      read()
  except (ValueError, OSError) as e:
    text = str(e)
    assert len(text) < 500 and '\n' not in text, f'{what}: {text}'
    assert path in text, f'{what}: {text}'
    return True
  except Exception as e:
    raise AssertionError(f'{what}: {type(e).__name__}: {e}') from e
  return False


def check_values(
  path: str, read: Callable, named: str | None = None
) -> tuple[int, int]:
  """Breaks each value of a JSON file; returns (how many, how many refused).

  Args:
    path: of the file.
    read: its reader.
    named: what errors name; None: the path.
  """
  with open(path) as f:
    whole = json.load(f)
  read()
  fates = []
  for what, broken in variants(whole):
    write(path, broken)
    fates.append(outcome(read, named or path, what))
  for what in (None, [], 5, 'x', {}, DEEP_MARK):
    write(path, what)
    fates.append(outcome(read, named or path, repr(what)))
  write(path, whole)
  read()
  return len(fates), sum(fates)


def check_file(path: str, read: Callable, whole: bool = False) -> None:
  """Puts what is no such file in a file's place.

  Args:
    path: of a file that is there.
    read: its reader.
    whole: a shorter file is no error, as of lines.
  """
  kept = path + '.kept'
  os.rename(path, kept)
  with open(kept, 'rb') as f:
    content = f.read()
  texts = {'empty': b'', 'noise': os.urandom(999), 'deep': DEEP.encode(),
           'cut': content[: len(content) // 2], 'NUL': b'\0' * 99}  # fmt: skip
  makers = {
    'a pipe': os.mkfifo,
    'a device': lambda p: os.symlink('/dev/zero', p),
    'a folder': os.mkdir,
  }
  try:
    for what, text in texts.items():
      with open(path, 'wb') as f:
        f.write(text)
      refused = outcome(read, path, what)
      assert refused or (whole and what not in ('noise', 'deep')), what
    os.remove(path)
    for what, make in makers.items():
      make(path)
      assert outcome(read, path, what), what
      os.rmdir(path) if what == 'a folder' else os.remove(path)
    os.symlink(path, path)
    with contextlib.suppress(ValueError, OSError):  # or as if none were there
      read()
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.remove(path)
    os.rename(kept, path)


def copy_of(folder: str, to) -> str:
  return str(shutil.copytree(folder, to / 'copy'))


# --- Weights


@pytest.mark.parametrize(
  'name', ['untied', 'blenderbot_a', 'xlmr_xl', 'public/m2m_100']
)
def test_config_json(name, tmp_path):
  """Faults seen: OverflowError of a vocab_size of 2^63; 'no' taken as True."""
  folder = copy_of(folder_of(name, tmp_path), tmp_path)
  path = f'{folder}/config.json'
  make = config_json.config_from_hf
  if name == 'xlmr_xl':
    make = config_json.config_from_xlmr
  with open(path) as f:
    described = json.load(f)
  used = {*config_json._SIZES.values(), *config_json._XLMR_SIZES.values(), *(
    'model_type layer_norm_eps dropout tie_word_embeddings hidden_act '
    'activation_function scale_embedding share_embeddings'
  ).split()}  # fmt: skip
  with open(path, 'w') as f:
    json.dump({k: v for k, v in described.items() if k in used}, f)
  read = lambda: make(hf_folder.read_json_object(path), path)
  count, refused = check_values(path, read)
  assert refused > 0.8 * count
  check_file(path, read)


@pytest.mark.parametrize('size', [0, -1, 1.5, True, '10', 1e400, 2**63, None])
def test_sizes_that_no_model_has(size, tmp_path):
  folder = copy_of(folder_of('untied', tmp_path), tmp_path)
  path = f'{folder}/config.json'
  with open(path) as f:
    described = json.load(f)
  for key in ('vocab_size', 'd_model', 'decoder_layers', 'pad_token_id'):
    write(path, {**described, key: size})
    if (key, size) != ('pad_token_id', 0):
      with pytest.raises(hf_keys.WeightsError, match=r'config\.json: '):
        pretrained.open_pretrained(folder)


@pytest.fixture
def sharded(tmp_path) -> str:
  """Returns a folder whose weights are one shard and an index."""
  folder = copy_of(folder_of('untied', tmp_path), tmp_path)
  tensors = hf_folder.open_weights(folder)
  os.rename(f'{folder}/model.safetensors', f'{folder}/part.safetensors')
  files = {'weight_map': dict.fromkeys(tensors, 'part.safetensors')}
  write(f'{folder}/{hf_folder.INDEXES[0]}', files)
  return folder


def test_an_index_of_shards(sharded):
  """Faults seen: KeyError and AttributeError of a weight_map that is none."""
  path = f'{sharded}/{hf_folder.INDEXES[0]}'
  read = lambda: hf_folder.open_weights(sharded)
  check_values(path, read)
  check_file(path, read)
  for name in ('../part.safetensors', '/etc/passwd', '.', '..', '', 'a/b', 5):
    write(path, {'weight_map': {'x': name}})
    with pytest.raises(hf_keys.WeightsError, match='index.json'):
      read()
  write(path, {'weight_map': {'x': '\ud800\0'}})
  with pytest.raises((FileNotFoundError, hf_keys.WeightsError)):
    read()


def test_files_of_tensors(sharded):
  """Fault seen: a pipe named model.safetensors is waited for."""
  path = f'{sharded}/part.safetensors'
  check_file(path, lambda: hf_folder.open_weights(sharded))
  os.remove(f'{sharded}/{hf_folder.INDEXES[0]}')
  path = shutil.move(path, f'{sharded}/pytorch_model.bin')
  with pytest.raises(ValueError, match='pytorch_model.bin: is not a PyTorch'):
    hf_folder.open_weights(sharded)
  os.remove(path)
  os.mkfifo(path)
  with alarm(), pytest.raises(ValueError, match='not a pipe'):
    hf_folder.open_weights(sharded)


def test_a_copy_of_a_tied_matrix_is_not_read_before_its_shape(tmp_path):
  """Faults seen: a copy that claims petabytes; AttributeError of its dtype."""
  folder = copy_of(folder_of('tied', tmp_path), tmp_path)
  model = pretrained.open_pretrained(folder)
  tensors = hf_folder.open_weights(folder)
  huge = (0, 2**62, 2**62)

  def read():
    raise AssertionError('it is read')

  for change in (dict(shape=huge), dict(dtype='F8_E8M0')):
    tensors['lm_head.weight'] = tensors['lm_head.weight']._replace(
      **change, read=read
    )
    opened = pytest.MonkeyPatch()
    opened.setattr(hf_folder, 'open_weights', lambda _: tensors)
    with opened.context(), pytest.raises(hf_keys.WeightsError, match='differs'):
      model.parameter_reader()
    opened.undo()


def test_a_tokenizer(tmp_path):
  """Random bytes are no model, nor is one without pieces."""
  from sentencepiece import sentencepiece_model_pb2

  path = str(tmp_path / vocabulary.MODEL_FILE)
  shutil.copy(f'{HERE}/xlmr_xl/sentencepiece.bpe.model', path)
  check_file(path, lambda: vocabulary.Vocabulary(path))
  check_file(path, lambda: vocabulary.convert_xlmr(path, str(tmp_path / 'to')))
  none = sentencepiece_model_pb2.ModelProto()
  unknown = none.SentencePiece(piece='<unk>', type=2)
  few = sentencepiece_model_pb2.ModelProto(pieces=[unknown])
  for model in (none, few):
    with open(path, 'wb') as f:
      f.write(model.SerializeToString())
    assert outcome(lambda: vocabulary.Vocabulary(path), path, 'few pieces')


# --- Checkpoints


class Checkpoints:
  """A reader of one step, whose metadata are given."""

  directory = '/the/folder'

  def __init__(self, meta):
    self.meta = lambda _: meta


def test_metadata_of_a_model():
  """Faults seen: KeyError, and TypeError of a field of a later version."""
  whole = {'model': dataclasses.asdict(tiny())}
  read = lambda meta: pretrained.read_model_config(Checkpoints(meta), 7)
  assert read(whole) == tiny()
  for what, broken in (
    *variants(whole),
    ('later', {'model': whole['model'] | {'new': 1}}),
    *((repr(model), {'model': model}) for model in (None, [], 'x', 5)),
  ):
    outcome(lambda broken=broken: read(broken), '/the/folder', what)


def test_metadata_of_a_run_that_goes_on():
  whole = {
    'data': {'step': 5}, 'vocabulary': 'x', 'log': {'sums': {'loss': 0.1}},
    'skip_steps': [[1, 2]], 'optimizer': {}, 'encoder_apart': False,
  }  # fmt: skip
  read = lambda meta: fileio.check_json(meta, initial_state.META, '/path')
  read(whole)
  for what, broken in variants(whole):
    outcome(lambda broken=broken: read(broken), '/path', what)
  assert outcome(lambda: read({**whole, 'log': None}), '/path', 'log')


def test_the_file_that_names_the_folder_of_checkpoints(tmp_path):
  """Fault seen: an empty one means the working directory."""
  path = tmp_path / paths.CHECKPOINTS
  for text in (b'', b'\n', b'here', b'/a\0b', os.urandom(99) + b'\0'):
    path.write_bytes(text)
    with pytest.raises(ValueError, match='expected the path of a folder'):
      paths.find_checkpoint_dir(str(tmp_path))


# --- Rows


def test_a_manifest_of_rows(tmp_path):
  """Also one of before there were seals."""
  folder = str(tmp_path / 'rows')
  os.mkdir(folder)
  file = token_store.write_rows(f'{folder}/a.array_record', [np.arange(9)])
  part = {'file': file, 'counts': {'documents': 1}}
  made_from = {'lengths': [48, 48]}
  token_store.write_manifest(folder, made_from, [part])
  path = f'{folder}/{token_store.MANIFEST}'

  def read():
    token_store.TokenRows(folder)
    with contextlib.suppress(FileNotFoundError):  # it has no vocabulary
      cache.open_cache(str(tmp_path))

  count, refused = check_values(path, read)
  assert refused >= count - 1  # the seal missing: it is of before
  check_file(path, read)
  unsealed = fileio.read_json(path)
  del unsealed[fileio.SEAL]
  write(path, unsealed)
  count, refused = check_values(path, read, folder)
  assert refused > 0.7 * count


# --- Evaluations


@pytest.fixture(scope='module')
def evaluation(tmp_path_factory) -> str:
  folder = tmp_path_factory.mktemp('a') / 'runs'
  return synthetic(folder, n=4, languages=['en'])


def fewer(folder: str, names) -> list[dict]:
  """Leaves some tasks in results.json; returns them."""
  path = f'{folder}/{results.RESULTS_FILE}'
  whole = fileio.read_json(path)
  tasks = {task['name']: task for task in whole['tasks']}
  whole['tasks'] = [tasks[name] for name in names]
  write(path, whole)
  return whole['tasks']


def test_results_of_an_evaluation(evaluation, tmp_path):
  """What is read can be shown and compared. Faults seen: KeyError, IndexError
  and TypeError of its pages."""
  folder = copy_of(evaluation, tmp_path)
  fewer(folder, ['squadv2'])
  path = f'{folder}/{results.RESULTS_FILE}'
  original = results.read_results(folder)

  def read():
    found = results.read_results(folder)
    eval_page.eval_page_data(folder, found)
    with contextlib.suppress(KeyError):
      compare.compare_runs([original, found], ['a', 'b'])

  count, refused = check_values(path, read)
  assert refused > 0.6 * count
  check_file(path, read)


def test_metrics_of_runs_in_arms(tmp_path):
  """What is read can be compared."""
  path = str(tmp_path / 'runs.jsonl')
  arm_records.write_arm_file(path, [arm_runs.make_run('a', 0)])

  def read():
    arms_page.format_markdown(arm_records.read_arm_file(path))

  count, refused = check_values(path, read)
  assert refused > 0.6 * count
  check_file(path, read)


@pytest.mark.parametrize('name', ['squadv2', 'xnli_en', 'superglue_record'])
def test_lines_of_answers(name, evaluation, tmp_path):
  """What is read can be shown."""
  folder = copy_of(evaluation, tmp_path)
  (task,) = fewer(folder, [name])
  path = f'{folder}/{results.PREDICTIONS}/{name}.jsonl'
  with open(path) as f:
    first, *rest = f.readlines()
  for what, broken in variants(json.loads(first), 2):
    write(path, broken)
    with open(path, 'a') as f:
      f.writelines(['\n', *rest])
    outcome(lambda: answer_cards.task_cards(folder, task), path, what)
  with open(path, 'w') as f:
    f.writelines([first, *rest])
  check_file(path, lambda: answer_cards.task_cards(folder, task))


def test_answers_that_an_earlier_evaluation_left(tmp_path):
  output = str(tmp_path / 'out.jsonl')
  part = output + '.part'
  partial = partial_results.PartialResults(output, {'a': 1}, 2)
  partial.add({0: {'output': 'x'}})
  read = lambda: partial_results.PartialResults(output, {'a': 1}, 2)
  assert read().done == {0: {'output': 'x'}}
  for what, make in (
    ('a pipe', os.mkfifo), ('a device', lambda p: os.symlink('/dev/zero', p))
  ):  # fmt: skip
    os.remove(part)
    make(part)
    outcome(read, part, what)


# --- Training runs


def test_lines_and_samples_of_a_training_run(tmp_path):
  folder = str(tmp_path)
  metrics, spent, samples = (
    os.path.join(folder, name)
    for name in (
      metric_writer.METRICS_FILE, goodput.GOODPUT_FILE, train_page.SAMPLES_FILE
    )
  )  # fmt: skip
  write(metrics, {'step': 1, 'loss': 2.0, 'eval/loss/clm': None})
  seconds = dict.fromkeys(goodput.MEASURED, 1.0)
  line = {'began': 1.5, 'now': 99, 'first': 0, 'step': 4, 'seconds': seconds}
  write(spent, line)
  sample = dict.fromkeys(train_page.SAMPLE, 'x')
  write(samples, {'step': 4, 'samples': [sample]})
  for path, read in (
    (metrics, lambda: metric_writer.read_metrics(folder)),
    (spent, lambda: train_page.wall_time(folder)),
    (samples, lambda: train_page.read_samples(folder)),
  ):
    count, refused = check_values(path, read)
    assert refused > 0.5 * count
    check_file(path, read, whole=path != samples)


# --- The command


def test_the_command_names_the_file(sharded, tmp_path):
  """Faults seen: a traceback; a pipe is waited for."""
  run, path = str(tmp_path / 'run'), f'{sharded}/part.safetensors'
  os.remove(path)
  os.mkfifo(path)
  with contextlib.ExitStack() as block:
    block.callback(signal.alarm, 0)
    signal.alarm(120)  # ends the tests where it waits
    done = atm(
      'import', f'--gin.SOURCE="{sharded}"', f'--gin.MODEL_DIR="{run}"'
    )
  assert done.returncode == 2 and done.stdout == '', done.stderr
  assert done.stderr.startswith(
    f'atm: error: {path}: expected a file, not a pipe'
  )
  assert done.stderr.count('\n') == 1 and len(done.stderr) < 500
  assert not os.path.exists(run)
