"""Files in and out: order, kills, several hosts' settings, scores."""

import dataclasses
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

import atm
from atm import fileio, storage
from atm.checkpoint import pretrained
from atm.inference import api, file_jobs, input_rows, sampling

QUIET = dict(say=lambda text: None)
TEXTS = [
  'Everyone has',
  'Jeder',
  'सभी',
  'よって',
  'All human beings',
  'a',
  'b c',
]


@pytest.fixture
def loaded(model, monkeypatch):
  monkeypatch.setattr(api, 'load', lambda *args, **options: model)
  source = pretrained.PretrainedModel(
    'run', model.config, model.vocabulary, model.step, {}
  )
  monkeypatch.setattr(
    pretrained, 'open_pretrained', lambda *args, **options: source
  )
  return model


def written(path) -> list[dict]:
  with open(path, encoding='utf-8') as f:
    return [json.loads(line) for line in f]


@pytest.fixture
def prompts(tmp_path):
  path = tmp_path / 'in.jsonl'
  rows = [{'id': i, 'input': text} for i, text in enumerate(TEXTS)]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


SHORT = sampling.Config(max_tokens=6)


def run(path, **options):
  options = {
    'config': SHORT, 'batch_size': 2, 'overwrite': True, **QUIET, **options
  }  # fmt: skip
  return file_jobs.InferJob('run', str(path), **options).run()


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_rows_keep_their_order_and_fields(loaded, prompts, temperature):
  """Fault seen: sampling by place in the batch."""
  config = dataclasses.replace(SHORT, temperature=temperature)
  rows = written(run(prompts, config=config))
  want = [x.text for (x,) in loaded.complete(TEXTS, config=config)]
  assert [row['output'] for row in rows] == want
  assert [row['id'] for row in rows] == list(range(len(TEXTS)))
  assert not prompts.with_name('in.out.jsonl.part').exists()


@pytest.mark.parametrize('torn', [False, True])
@pytest.mark.parametrize('after', [1, 2, 3])
def test_a_killed_run_goes_on(loaded, prompts, monkeypatch, after, torn):
  """No row is lost, doubled or made again, a half-written one is made anew.

  Fault seen: the torn line kept.
  """
  config = dataclasses.replace(SHORT, temperature=1.0)
  whole = written(run(prompts, config=config, output=str(prompts) + '.whole'))
  complete, calls = api.Model.complete, []

  def dies(self, inputs, *args, **options):
    if len(calls) == after:
      raise KeyboardInterrupt
    calls.append(list(inputs))
    return complete(self, inputs, *args, **options)

  monkeypatch.setattr(api.Model, 'complete', dies)
  with pytest.raises(KeyboardInterrupt):
    run(prompts, config=config)
  part = prompts.with_name('in.out.jsonl.part')
  if torn:
    with open(part, 'ab') as f:
      f.write(b'{"row": 3, "outp')
  calls.clear()
  monkeypatch.setattr(api.Model, 'complete', complete)
  seen = []
  monkeypatch.setattr(
    api.Model,
    'complete',
    lambda self, inputs, *a, **k: (
      seen.extend(inputs),
      complete(self, inputs, *a, **k),
    )[1],
  )
  assert written(run(prompts, config=config)) == whole
  assert len(seen) == len(TEXTS) - 2 * after


def test_a_killed_run_goes_on_in_a_bucket(loaded, prompts, bucket, monkeypatch):
  """Input and output are objects; the .part is a log of parts."""
  whole = written(run(prompts))
  path = f'{bucket}/in.jsonl'
  storage.upload_file(str(prompts), path)
  complete, seen = api.Model.complete, []

  def dies(self, inputs, *args, **options):
    if len(seen) == 4:
      seen.append('')
      raise KeyboardInterrupt
    seen.extend(inputs)
    return complete(self, inputs, *args, **options)

  monkeypatch.setattr(api.Model, 'complete', dies)
  with pytest.raises(KeyboardInterrupt):
    run(path)
  assert storage.list_parts(f'{bucket}/in.out.jsonl.part')[0].endswith('.jsonl')
  with pytest.raises(ValueError, match='in.out.jsonl.part is of a run with'):
    run(path, mode='denoise', overwrite=False)
  output = run(path)
  assert output == f'{bucket}/in.out.jsonl'
  rows = storage.read_bytes(output).splitlines()
  assert list(map(json.loads, rows)) == whole
  assert len(list(filter(None, seen))) == len(TEXTS)  # each once
  assert not storage.exists(f'{output}.part')
  with pytest.raises(ValueError, match='is there already: OVERWRITE=True'):
    run(path, overwrite=False)


def test_other_settings_do_not_go_on(loaded, prompts, monkeypatch):
  complete, calls = api.Model.complete, []

  def dies(self, inputs, *args, **options):
    if not calls:
      return calls.append(1) or complete(self, inputs, *args, **options)
    monkeypatch.setattr(api.Model, 'complete', complete)
    raise KeyboardInterrupt

  monkeypatch.setattr(api.Model, 'complete', dies)
  with pytest.raises(KeyboardInterrupt):
    run(prompts)
  with pytest.raises(ValueError, match='in.out.jsonl.part is of a run with'):
    run(prompts, mode='denoise', overwrite=False)
  assert len(written(run(prompts))) == len(TEXTS)


def test_results_stops_and_prefixes(loaded, tmp_path):
  path = tmp_path / 'in.jsonl'
  path.write_text('{"input": "Everyone has", "prefix": "Every"}\n')
  config = sampling.Config(max_tokens=6, beams=3, results=2)
  (row,) = written(run(path, config=config))
  assert len(row['output']) == 2
  assert all(text.startswith('Every') for text in row['output'])


def test_a_stop_in_a_prefix_cuts_no_output(loaded, tmp_path):
  """Faults seen: the output cut inside its prefix; a .part of a version that
  did so continued."""
  path = tmp_path / 'in.jsonl'
  path.write_text('{"input": "Everyone has", "prefix": "Every; one"}\n')
  (row,) = written(run(path, stop=(';',)))
  assert row == written(run(path, stop=()))[0]
  assert len(row['output']) > len('Every; one')
  for prefix, stop in (('a', (';',)), ('a', ()), (None, (';',))):
    job = file_jobs.InferJob('/run', stop=stop)
    settings = job._settings(loaded, [{'input': 'x', 'prefix': prefix}])
    assert ('stops_in_prefixes' in settings) == bool(prefix and stop)


def test_scores_are_those_of_the_model(loaded, tmp_path):
  path = tmp_path / 'pairs.jsonl'
  rows = [{'input': text, 'target': text[::-1]} for text in TEXTS]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  out = file_jobs.ScoreJob('run', str(path), batch_size=3, **QUIET).run()
  assert out.endswith('pairs.scores.jsonl')
  total, counts = loaded.score(TEXTS, [text[::-1] for text in TEXTS])
  made = written(out)
  np.testing.assert_allclose(
    [row['log_probability'] for row in made], total, rtol=1e-5
  )
  assert [row['tokens'] for row in made] == counts.tolist()
  path.write_text('{"input": "a"}\n')
  with pytest.raises(ValueError, match='string `input` and `target`'):
    file_jobs.ScoreJob('run', str(path), overwrite=True, **QUIET).run()


def test_an_input_without_room_is_named_before_anything_is_written(
  loaded, tmp_path
):
  path = tmp_path / 'in.txt'
  path.write_text('a\n' + 'b ' * 200 + '\n')
  with pytest.raises(
    ValueError, match='in.txt: 1 of 2 inputs have more tokens'
  ):
    run(path)
  with pytest.raises(ValueError, match='one of INPUT'):
    file_jobs.InferJob('run', **QUIET).run()


def test_a_seqio_task_is_read(loaded, words, tmp_path):
  """As its pipeline makes it: the ids are what the model reads."""
  lengths = {'inputs': 48, 'targets': 48}
  rows = input_rows.read_task('udhr_en_clm', 'validation', lengths)[:3]
  assert rows[0]['input_ids'][:2] == [words.bos_id, words.clm_id]
  out = file_jobs.InferJob(
    'run',
    output=str(tmp_path / 'out'),
    task='udhr_en_clm',
    lengths=lengths,
    config=SHORT,
    **QUIET,
  ).run()
  made = written(out)
  want = loaded.complete([row['input_ids'] for row in rows], config=SHORT)
  assert [row['output'] for row in made[:3]] == [x.text for (x,) in want]
  assert set(made[0]) == {'input', 'target', 'output'}


@pytest.mark.parametrize(
  'job, options, mark',
  [
    (
      file_jobs.InferJob,
      dict(config=sampling.Config(beams=2), stop=('x',)),
      '1e63b08f27bfa5f0f00bd3021e02b7c54b4562c3272d506d55a6cf0d855a423c',
    ),
    (
      file_jobs.ScoreJob,
      dict(weights='bfloat16'),
      '01ac40db4ad4ff7c996504d82b35b28cdaefe0cf339de201154b76af9b112bd8',
    ),
  ],
)
def test_part_files_of_the_first_version_are_continued(job, options, mark):
  """The marks were written by the code of version 0.1.0.

  Fault seen: the fields of `sampling.Config` in another order.
  """

  class Trained:
    step = 7

  rows = [{'input': 'a', 'target': 'b'}]
  settings = job('/run', **options)._settings(Trained, rows)
  assert fileio.hash_json(settings) == mark


def test_from_checkpoint_to_jsonl(model, words, tmp_path):
  """What a trainer saved, `atm.load` and `infer` read, with 8 devices too."""
  from atm.checkpoint import manager
  from atm.train.run_folder import RunFolder
  from atm.train.step import State

  directory = str(tmp_path / 'run')
  checkpoints = manager.CheckpointManager(directory)
  meta = {
    'model': dataclasses.asdict(model.config),
    'vocabulary': words.sha256,
    'config': '',
  }
  state = State(jnp.zeros((), jnp.int32), model.params, {'x': jnp.zeros(1)})
  checkpoints.save(7, state.to_trees(), meta)
  checkpoints.close()
  RunFolder(directory).save_setup('', words)
  (tmp_path / 'in.jsonl').write_text('{"input": "Everyone", "id": 1}\n' * 3)
  out = file_jobs.InferJob(
    directory, str(tmp_path / 'in.jsonl'), say=lambda t: None
  ).run()
  with open(out, encoding='utf-8') as f:
    rows = [json.loads(line) for line in f]
  assert len(rows) == 3 and rows[0]['id'] == 1
  assert rows[0]['output'] == model.generate(['Everyone'])[0]
  loaded = atm.load(directory, at_step=7)
  assert loaded.step == 7 and loaded.mesh.size == 8
  with pytest.raises(FileNotFoundError, match='of step 3.*steps there: .7'):
    atm.load(directory, at_step=3)


def test_a_wrong_line_is_named_before_a_model_is_read(tmp_path):
  """Fault seen: the model loaded first."""
  path = tmp_path / 'in.jsonl'
  path.write_text('{"input": 3}\n')
  with pytest.raises(ValueError, match='line 1: expected JSON with a string'):
    file_jobs.InferJob('no such run', str(path)).run()


@pytest.mark.parametrize('job, row, given', [
  (file_jobs.InferJob, {'output': 'a', 'row': 7}, {'given_output': 'a'}),
  (file_jobs.InferJob, {'output': 1, 'given_output': 2},
   {'given_given_output': 1, 'given_output': 2}),
  (file_jobs.InferJob, {'doc_ids': [1], 'input_ids': [5]},
   {'doc_ids': [1], 'input_ids': [5]}),
  (file_jobs.ScoreJob, {'tokens': ['a'], 'target_ids': 'x'},
   {'given_tokens': ['a'], 'target_ids': 'x'}),
])  # fmt: skip
def test_no_field_of_the_input_is_lost(loaded, tmp_path, job, row, given):
  """Faults seen: `output` overwritten, `doc_ids` left out, `input_ids` read."""
  path, said = tmp_path / 'in.jsonl', []
  rows = [{'input': 'a', 'target': 'b', **row}, {'input': 'a', 'target': 'b'}]
  path.write_text(''.join(json.dumps(x) + '\n' for x in rows))
  first, second = written(job('run', str(path), say=said.append).run())
  assert set(second) <= set(first) and given.items() <= first.items()
  assert all(first[name] == pytest.approx(second[name]) for name in second)
  if 'given' in str(given):
    assert any('of the input are written as `given_' in line for line in said)


@pytest.mark.parametrize('name, output, message', [
  ('in.txt', 'in.txt', 'OUTPUT = .*is the file that is read'),
  ('in.txt.part', 'in.txt', 'OUTPUT = .*.part.*is the file that is read'),
  ('in.txt', '.', 'OUTPUT = .*is a folder'),
  ('in.txt', 'no/out', 'there is no folder'),
  ('in.txt', 'no/', "OUTPUT = 'no/' is a folder"),
  ('-', None, "INPUT = '-': OUTPUT = None"),
])  # fmt: skip
def test_outputs_are_checked_before_a_model_is_read(
  tmp_path, monkeypatch, name, output, message
):
  """Fault seen: all rows generated, then Errno 21."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'in.txt').write_text('{"output": 1}\n')
  (tmp_path / 'in.txt.part').write_text('a\n')
  with pytest.raises(ValueError, match=message):
    file_jobs.InferJob('no such run', name, output, overwrite=True).run()
  assert (tmp_path / 'in.txt').read_text() == '{"output": 1}\n'


@pytest.mark.parametrize('row, message', [
  ({'input': 'a', 'prefix': 5}, 'line 2: prefix = 5: expected a text, or None'),
  ({'input': 'a', 'prefix': 'b ' * 200}, 'line 2: a prefix of'),
  ({'input': 'b ' * 200}, '1 of 2 inputs have more tokens'),
  ({'text': 5}, 'line 2: expected JSON with a string `input`'),
])  # fmt: skip
def test_a_wrong_row_leaves_nothing_behind(loaded, tmp_path, row, message):
  """Fault seen: a .part of nothing."""
  path = tmp_path / 'in.jsonl'
  path.write_text('{"input": "a", "prefix": null}\n' + json.dumps(row))
  with pytest.raises(ValueError, match=f'in.jsonl[,:] {message}'):
    run(path)
  assert [x.name for x in tmp_path.iterdir()] == ['in.jsonl']


def test_a_refused_setting_leaves_nothing_behind(loaded, tmp_path, monkeypatch):
  """Fault seen: a .part without rows, of which the next run was told."""
  (tmp_path / 'in.txt').write_text('a\n')

  def refuses(*args, **options):
    raise ValueError('refused')

  monkeypatch.setattr(api.Model, 'complete', refuses)
  with pytest.raises(ValueError, match='refused'):
    run(tmp_path / 'in.txt')
  assert [x.name for x in tmp_path.iterdir()] == ['in.txt']


def test_no_rows_give_no_rows(loaded, tmp_path):
  (tmp_path / 'in.txt').touch()
  assert written(run(tmp_path / 'in.txt')) == []
  assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize('content', ['notes', '{"input": "a"}\n', '[1]'])
def test_an_output_of_another_kind_is_not_replaced(loaded, prompts, content):
  output = prompts.with_name('mine.txt')
  output.write_text(content)
  with pytest.raises(ValueError, match='OUTPUT = .*mine.txt. is there already'):
    run(prompts, output=str(output))
  assert output.read_text() == content
  output.write_text('{"input": "a", "output": "b"}\n')  # of an earlier run
  with pytest.raises(ValueError, match='is there already: OVERWRITE=True'):
    run(prompts, output=str(output), overwrite=False)
  assert len(written(run(prompts, output=str(output)))) == len(TEXTS)


# --- Inputs that are too long


LONG = ['a', 'b ' * 200, 'c', 'd ' * 90, 'e ' * 80, 'f ' * 70, 'g ' * 60]


def test_all_long_rows_are_named_before_the_parameters_are_read(
  tmp_path, loaded, monkeypatch
):
  """Fault seen: the first one alone, counted from 0, with the model loaded."""
  monkeypatch.setattr(api, 'load', lambda *args, **options: 1 / 0)
  path = tmp_path / 'in.txt'
  path.write_text('\n'.join(LONG) + '\n')
  with pytest.raises(ValueError) as e:
    run(path)
  text = str(e.value).removeprefix(f'{path}: ')
  assert text.startswith('5 of 7 inputs have more tokens than Config.positions')
  assert 'line 2 (403), line 4 (93), line 5 (83) and 2 more' in text
  assert "TRUNCATE='start' or 'end'" in text
  path = tmp_path / 'pairs.jsonl'
  path.write_text(json.dumps({'input': 'a', 'target': LONG[1]}))
  with pytest.raises(ValueError, match='1 of 1 targets .* line 1 .401.'):
    file_jobs.ScoreJob('run', str(path), **QUIET).run()


@pytest.mark.parametrize('side', ['start', 'end'])
def test_long_rows_are_cut_and_say_so(tmp_path, loaded, side):
  """The outputs are those of the inputs cut by hand, frames and all."""
  path, said = tmp_path / 'in.txt', []
  path.write_text('\n'.join(LONG) + '\n')
  rows = written(run(path, truncate=side, say=said.append))
  P, words = loaded.config.positions, loaded.vocabulary
  for row, text in zip(rows, LONG):
    ids, room = words.encode(text), P - 3
    cut = max(0, len(ids) - room)
    kept = ids[cut:] if side == 'start' else ids[: len(ids) - cut]
    framed = [words.bos_id, words.clm_id, *kept, words.eos_id]
    assert row['output'] == loaded.complete([framed], config=SHORT)[0][0].text
    assert row['truncated'] == cut
    assert row['truncated_at'] == (side if cut else None)
  assert f'5 of 7 inputs were cut at the {side}, by 455 tokens' in said[-1]


@pytest.mark.parametrize('after', [1, 2])
def test_a_killed_run_of_cut_rows_goes_on(tmp_path, loaded, monkeypatch, after):
  """Byte for byte; not with results of another way to cut."""
  path = tmp_path / 'in.txt'
  path.write_text('\n'.join(LONG) + '\n')
  whole = run(path, truncate='end', output=str(tmp_path / 'whole'))
  complete, calls = api.Model.complete, []

  def dies(self, *args, **options):
    if len(calls) == after:
      raise KeyboardInterrupt
    calls.append(0)
    return complete(self, *args, **options)

  monkeypatch.setattr(api.Model, 'complete', dies)
  with pytest.raises(KeyboardInterrupt):
    run(path, truncate='end', overwrite=False)
  monkeypatch.setattr(api.Model, 'complete', complete)
  with pytest.raises(ValueError, match='OVERWRITE=True begins a run'):
    run(path, truncate='start', overwrite=False)
  made = run(path, truncate='end', overwrite=False)
  with open(made, 'rb') as a, open(whole, 'rb') as b:
    assert a.read() == b.read()
  with pytest.raises(ValueError, match='is there already: OVERWRITE=True'):
    run(path, truncate='end', overwrite=False)


def test_scores_of_cut_targets(tmp_path, loaded):
  """A target cut at its end has no end token; the other keeps it."""
  path = tmp_path / 'pairs.jsonl'
  path.write_text(json.dumps({'input': LONG[1], 'target': LONG[1]}))
  P = loaded.config.positions
  for side in ('start', 'end'):
    job = file_jobs.ScoreJob(
      'run', str(path), truncate=side, overwrite=True, **QUIET
    )
    (row,) = written(job.run())
    ids = [*loaded.vocabulary.encode(LONG[1]), loaded.config.end_id]
    kept = ids[-P:] if side == 'start' else ids[:P]
    total, _ = loaded.score([LONG[1]], [kept], truncate=side)
    assert row['log_probability'] == pytest.approx(total[0], rel=1e-5)
    assert (row['truncated'], row['target_truncated']) == (403 - P, 401 - P)
    assert row['tokens'] == P and row['truncated_at'] == side


def test_results_of_one_adapter_are_not_continued_with_another(
  loaded, prompts, monkeypatch
):
  """Nor with those of no adapter: what is in the folder decides."""
  source, marks = pretrained.open_pretrained('run'), []
  for mark in ('one', 'other'):
    adapter = types.SimpleNamespace(fingerprint=lambda mark=mark: mark)
    opened = dataclasses.replace(source, adapter=adapter)
    monkeypatch.setattr(
      pretrained, 'open_pretrained', lambda *args, opened=opened: opened
    )
    job = file_jobs.InferJob('run', str(prompts), adapter='law', **QUIET)
    settings = job._settings(job.open(), [])
    marks.append(settings['adapter'])
    assert job.title == 'run with law'
  assert marks == ['one', 'other']
  job = file_jobs.InferJob('run', str(prompts), **QUIET)
  assert 'adapter' not in job._settings(source, [])
