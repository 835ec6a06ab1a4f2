"""A batch is a pure function of (seed, step), whoever asks."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atm import data, objectives

LENGTHS = data.Lengths(64, 64)


@pytest.fixture(scope='module')
def parts(words, tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('rows'))
  return data.load('udhr', 'train', words, LENGTHS, folder)


def batches(parts, words, seed=0, batch_size=16):
  return data.Batches(parts, words, LENGTHS, batch_size, seed)


def same(a, b):
  return a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)


@given(n=st.integers(1, 5000), key=st.integers(0, 2**63))
def test_permute_is_a_permutation(n, key):
  made = data.permute(np.arange(n), n, np.uint64(key))
  np.testing.assert_array_equal(np.sort(made), np.arange(n))


def test_permutations_differ_by_key_and_look_random():
  n = 1000
  a, b = (data.permute(np.arange(n), n, np.uint64(k)) for k in (1, 2))
  assert (a == b).mean() < 0.02
  assert abs(np.corrcoef(a, np.arange(n))[0, 1]) < 0.1


def test_a_batch_is_a_function_of_seed_and_step(parts, words):
  a, b = batches(parts, words), batches(parts, words)
  for step in (0, 3, 1_000_000):
    assert same(a(step), b(step))
  b(7)
  assert same(a(3), b(3))
  assert not same(a(3), a(4))
  assert not same(a(3), batches(parts, words, seed=1)(3))


@pytest.mark.parametrize('hosts', [1, 2, 4, 8])
def test_hosts_together_read_the_global_batch(parts, words, hosts):
  whole = batches(parts, words)
  for step in range(3):
    shares = [whole(step, data.host_rows(16, h, hosts)) for h in range(hosts)]
    glued = {k: np.concatenate([s[k] for s in shares]) for k in shares[0]}
    assert same(whole(step), glued)


def test_a_batch_must_divide_by_the_hosts():
  with pytest.raises(ValueError, match='BATCH_SIZE = 6: 4 hosts'):
    data.host_rows(6, 0, 4)


def test_the_mixture_is_80_to_20_and_even_over_languages(parts, words):
  made = batches(parts, words)
  part = np.array(
    [
      i
      for step in range(0, 4096)
      for i in made.place(step * 16 + np.arange(16))[0]
    ]
  )
  denoise = np.array([p.objective.name == 'denoise' for p in parts])
  assert abs(denoise[part].mean() - 0.8) < 1e-3
  languages = [p.language for p in parts]
  shares = [
    np.mean([languages[i] == name for i in part[:20_000]])
    for name in set(languages)
  ]
  assert len(shares) == 12 and abs(np.array(shares) - 1 / 12).max() < 0.01


def test_an_epoch_reads_every_row_once(parts, words):
  made = batches(parts, words)
  part, epoch, row = made.place(np.arange(3 * data.CYCLE))
  for i in (0, 1, 23):
    for number in range(2):
      mine = row[(part == i) & (epoch == number)]
      np.testing.assert_array_equal(
        np.sort(mine), np.arange(len(parts[i].rows))
      )
    first, second = (row[(part == i) & (epoch == n)] for n in (0, 1))
    assert (first != second).any()


def test_noise_changes_with_the_epoch(parts, words):
  ids = objectives.Ids.of(words)
  zero = np.zeros(1, np.int64)
  a, b = (
    data.examples(parts[1], ids, LENGTHS, 0, zero + e, zero) for e in (0, 1)
  )
  assert parts[1].objective.name == 'denoise'
  assert (a['decoder_target_tokens'] == b['decoder_target_tokens']).all()
  assert (a['encoder_input_tokens'] != b['encoder_input_tokens']).any()


def test_rows_are_the_shipped_text(parts, words):
  english = next(p for p in parts if p.name == 'udhr_en_denoise')
  assert words.decode(english.rows.head(20)).startswith(
    'Whereas recognition of'
  )


def test_passes_join_documents_in_other_orders(words, tmp_path):
  once = data.load(
    'udhr_en_denoise', 'train', words, LENGTHS, str(tmp_path / 'a')
  )
  thrice = data.load(
    'udhr_en_denoise', 'train', words, LENGTHS, str(tmp_path / 'b'), passes=3
  )
  a, b = once[0].rows, thrice[0].rows
  assert abs(b.tokens / a.tokens - 3) < 0.05
  text = lambda ids: np.sort(ids[ids != words.doc_id])
  third = text(b.head(b.tokens))
  np.testing.assert_array_equal(
    np.bincount(third, minlength=words.size),
    3 * np.bincount(text(a.head(a.tokens)), minlength=words.size),
  )


def test_evaluation_reads_each_row_once_and_fills_with_nothing(words, tmp_path):
  held = data.load('udhr', 'validation', words, LENGTHS, str(tmp_path))
  made = list(data.evaluation_batches(held, words, LENGTHS, 32, 0, 5))
  owner = np.concatenate([o for o, _ in made])
  assert all(len(o) == 32 for o, _ in made)
  for i, part in enumerate(held):
    assert (owner == i).sum() == min(5, len(part.rows))
  weights = np.concatenate([b['decoder_loss_weights'] for _, b in made])
  assert (weights[owner == -1] == 0).all()
  assert (weights[owner >= 0].sum(1) > 0).all()


def test_train_and_validation_share_no_text():
  train = set(data.texts('udhr', 'train'))
  held = set(data.texts('udhr', 'validation'))
  assert len(train) > 600 and len(held) > 60 and not train & held


# --- A folder of the user's own text


def folder_with(tmp_path, **files):
  for name, content in files.items():
    (tmp_path / name.replace('_', '.')).write_text(content, encoding='utf-8')
  return str(tmp_path)


def test_a_folder_of_text_and_jsonl(words, tmp_path):
  import atm_tasks

  lines = '\n'.join(f'English line number {i}' for i in range(300))
  objects = '\n'.join(
    json.dumps({'text': f'ligne {i}', 'other': 1}) for i in range(100)
  )
  folder = folder_with(tmp_path, en_txt=lines, fr_jsonl=objects)
  atm_tasks.configure(text_dir=folder, held_out=0.1)
  train, held = list(data.texts('text')), list(data.texts('text', 'validation'))
  assert len(train) + len(held) == 400 and 10 < len(held) < 80
  assert ('fr', 'ligne 7') in train + held
  rates = {p.name: p.rate for p in data.load(
    'text', 'train', words, LENGTHS, str(tmp_path / 'rows')
  )}  # fmt: skip
  assert rates['text_en_denoise'] / rates['text_en_clm'] == pytest.approx(4)
  # Languages by counts ** 0.5 (paper, section 2.1).
  assert rates['text_en_clm'] / rates['text_fr_clm'] == pytest.approx(3**0.5)


@pytest.mark.parametrize(
  'files, message',
  [
    ({}, 'no LANG.txt or LANG.jsonl'),
    ({'en_jsonl': '{"txt": 1}'}, r'en.jsonl, line 1: expected an object'),
    ({'en_jsonl': '{"text": "a"}\n[3]'}, r'en.jsonl, line 2: expected an'),
    ({'en_txt': ''}, "no text in 'en'"),
  ],
)
def test_bad_folders_are_named(words, tmp_path, files, message):
  import atm_tasks

  with pytest.raises(ValueError, match=message):
    atm_tasks.configure(text_dir=folder_with(tmp_path, **files))
    list(data.texts('text', 'train'))
    list(data.texts('text', 'validation'))


def test_a_wrong_encoding_is_named(words, tmp_path):
  import atm_tasks

  (tmp_path / 'de.txt').write_bytes('gut\nschön'.encode('latin-1'))
  atm_tasks.configure(text_dir=str(tmp_path), held_out=0.0)
  with pytest.raises(ValueError, match='de.txt, line 2: expected UTF-8'):
    list(data.texts('text'))


def test_unknown_names_suggest_the_nearest():
  with pytest.raises(ValueError, match="'udrh'.*Did you mean 'udhr'"):
    data.find('udrh')


# --- The same tasks as seqio streams


def test_seqio_streams_the_same_objectives(words):
  import seqio

  import atm_tasks

  atm_tasks.configure(vocabulary=words.path)
  lengths = {'inputs': 64, 'targets': 64}

  def stream(name, seed):
    dataset = seqio.get_mixture_or_task(name).get_dataset(
      lengths, 'train', shuffle=False, seed=seed
    )
    return list(dataset.take(8).as_numpy_iterator())

  for example in stream('udhr_en_denoise', 1):
    source, target = example['inputs'], example['targets']
    assert source[0] == words.bos_id and target[-1] == words.eos_id
    n = len(target) - 1
    assert len(source) - 2 == n - int(np.floor(n * 0.15 + 0.5))
  for example in stream('udhr_en_clm', 1):
    assert list(example['inputs'][:2]) == [words.bos_id, words.clm_id]
  a, b, c = (stream('udhr', s) for s in (1, 1, 2))
  equal = lambda x, y: all(
    np.array_equal(p['inputs'], q['inputs']) for p, q in zip(x, y)
  )
  assert equal(a, b) and not equal(a, c)
