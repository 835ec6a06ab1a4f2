"""Nothing is lost and nothing is claimed that is not so: runs in processes of
their own, killed, stopped, doubled, damaged, and short of disk."""

import os
import signal
import time

import pytest

from atm.checkpoint import reader
from atm.data import cache
from atm.train import crash_report, metric_writer

import survive
from damage import change_a_value
from tiny_runs import comparable

pytestmark = pytest.mark.processes

STEPS = 20
# As on a full disk: a file of the vocabulary fits, one of an embedding of WIDE
# does not. How many arrays go into one file is a matter of time.
ROOM, WIDE = 400_000, 64  # bytes; d_model


@pytest.fixture(scope='module')
def rows(words, tmp_path_factory):
  import atm_tasks

  made = str(tmp_path_factory.mktemp('rows') / 'rows')
  cache.build(
    'udhr', words.path, {'inputs': 32, 'targets': 32}, made,
    configure_tasks=atm_tasks.configure, say=lambda text: None,
  )  # fmt: skip
  return made


@pytest.fixture(scope='module')
def nursery(rows, tmp_path_factory):
  with survive.Nursery(str(tmp_path_factory.mktemp('logs')), rows) as made:
    yield made


@pytest.fixture(scope='module')
def campaign(nursery, tmp_path_factory):
  folder = tmp_path_factory.mktemp('campaign')
  return survive.Campaign(nursery, folder, seed=1, train_steps=STEPS)


def assert_as_whole(directory, campaign):
  """As the run that nothing happened to, in every row and every bit."""
  assert comparable(directory) == comparable(campaign.whole)
  mine = survive.state_of(directory, STEPS)
  for name, value in survive.state_of(campaign.whole, STEPS).items():
    assert mine[name].tobytes() == value.tobytes(), name


def test_kills_lose_no_more_than_the_last_steps(campaign):
  """Six kills; `make test-slow` and benchmarks/survive.py do fifty.

  Faults seen: the evaluation at step 0 kept of a run that was killed before its
  first checkpoint; config.gin written in place.
  """
  for point, nth in (
    (None, 1),
    ('commit', 1),
    ('params without meta', 1),
    ('cleanup', 1),
    ('torn metrics', 2),
    (None, 1),
  ):
    campaign.kill(point, nth)
  campaign.finish()
  tally = campaign.tally
  assert tally.kills >= 5 and tally.inside >= 3 and tally.finished >= 1
  # One may die before it says so; not those after 'cleanup' and at the end.
  assert tally.resumes >= 2


# One of both in CI: each takes a minute and more.
@pytest.mark.parametrize(
  'scheme', ['gs', pytest.param('s3', marks=pytest.mark.slow)]
)
def test_kills_in_a_store_lose_no_more(make_bucket, scheme, rows, tmp_path):
  """benchmarks/survive.py does fifty on each."""
  with survive.Nursery(str(tmp_path), rows) as nursery:
    made = survive.Campaign(nursery, make_bucket(scheme), seed=1, train_steps=8)
    made.kill('commit', 2)
    made.kill('sweep', 1)
    made.finish()
  assert made.tally.kills == 2 and made.tally.finished == 1
  assert made.tally.resumes >= 1


@pytest.mark.slow
def test_fifty_kills(nursery, tmp_path):
  made = survive.Campaign(nursery, tmp_path, seed=0)
  made.kill_all(50, inside=25)
  assert made.tally.kills == 50 and made.tally.inside >= 25
  assert made.tally.resumes >= 30 and made.tally.finished >= 1


def test_a_kill_before_the_first_checkpoint_begins_anew(
  nursery, campaign, tmp_path
):
  run = tmp_path / 'run'
  for point in ('config', 'begin'):
    assert nursery.run(run, point, train_steps=STEPS).code == -9
  assert survive.last_step(run) == 3 and not survive.saved_steps(run)
  assert nursery.run(run, train_steps=STEPS).code == 0
  assert_as_whole(run, campaign)


def test_sigterm_saves_and_ends_within_seconds(nursery, campaign, tmp_path):
  """Fault seen: it said that all was saved while the save was being written."""
  run = tmp_path / 'run'
  with nursery.start(run, train_steps=STEPS) as child:
    child.wait_for('step 5/')
    child.send(signal.SIGTERM)
    sent = time.perf_counter()
  took = time.perf_counter() - sent
  assert child.ended.code == 130 and took < 30, took
  last = child.ended.lines[-1]
  assert last.startswith('stopped and saved at step '), last
  step = int(last.split()[5].rstrip(';'))
  assert 5 <= step == survive.last_step(run) == survive.saved_steps(run)[-1]
  ended = nursery.run(run, train_steps=STEPS)
  assert any(f'resumed from step {step} ' in line for line in ended.lines)
  assert_as_whole(run, campaign)


def test_a_second_run_is_refused_and_a_dead_one_holds_nothing(
  nursery, rows, campaign, tmp_path
):
  """Faults seen: no lock; a lock that is a file, and outlives its process."""
  run = tmp_path / 'run'
  with nursery.start(run, train_steps=STEPS) as child:
    child.wait_for('step 4/')
    with pytest.raises(ValueError, match=f'in use by process {child.pid} on '):
      survive.train(str(run), rows)
    child.send(signal.SIGKILL)
  assert child.ended.code == -9
  assert (run / 'lock').exists()
  assert nursery.run(run, train_steps=STEPS).code == 0
  assert_as_whole(run, campaign)


def test_a_damaged_step_is_done_again(nursery, campaign, tmp_path):
  """Fault seen: rows of the log beyond the step fallen back to were kept."""
  run = tmp_path / 'run'
  nursery.run(run, 'begin', 3, train_steps=STEPS)
  assert survive.saved_steps(run) == [3, 6]
  change_a_value(run, 6)
  ended = nursery.run(run, 'begin', 2, train_steps=STEPS)
  said = '\n'.join(ended.lines)
  assert f'step 6 in {run}/checkpoints is damaged: params/' in said
  assert 'falling back to step 3, the newest intact one; kept' in said
  assert 'resumed from step 3 ' in said
  assert survive.saved_steps(run) == [3, 6]  # the second 6 is a sound one
  assert (run / 'checkpoints' / '6.damaged').is_dir()
  assert nursery.run(run, train_steps=STEPS).code == 0
  assert_as_whole(run, campaign)


def test_where_all_is_damaged_nothing_is_begun_anew(nursery, tmp_path):
  run = tmp_path / 'run'
  nursery.run(run, 'begin', 3, train_steps=STEPS)
  for step in (3, 6):
    change_a_value(run, step)
  before = metric_writer.read_metrics(str(run))
  ended = nursery.run(run, train_steps=STEPS)
  assert ended.code == 1 and survive.saved_steps(run) == [3, 6]
  assert any('all of [3, 6] are damaged' in line for line in ended.lines)
  assert metric_writer.read_metrics(str(run)) == before


def command(run, rows, *more) -> list[str]:
  """`atm pretrain` of the model of `survive.train`."""
  sizes = dict(
    vocab_size=2048, d_model=32, encoder_layers=1, decoder_layers=1,
    encoder_heads=2, decoder_heads=2, encoder_ff=64, decoder_ff=64,
    positions=64, dropout=0.1,
  )  # fmt: skip
  return [
    'pretrain', '--gin_file=models/tiny.gin',
    f"--gin.MODEL_DIR='{run}'", f"--gin.CACHE_DIR='{rows}'",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 32}",
    '--gin.BATCH_SIZE=8', '--gin.TRAIN_STEPS=20', '--gin.LOG_EVERY=1',
    '--gin.EVAL_EVERY=50', '--gin.SAVE_EVERY=3', '--gin.ROW_PASSES=1',
    '--gin.sharding.start.cpu_devices=1',
    *(f'--gin.model.Config.{name}={n}' for name, n in sizes.items()), *more,
  ]  # fmt: skip


def test_a_full_disk_ends_a_run_with_one_screen(nursery, rows, tmp_path):
  """Fault seen: a traceback of 300 lines, and nothing of how to go on."""
  run = tmp_path / 'run'
  wide = command(run, rows, f'--gin.model.Config.d_model={WIDE}')
  with nursery.start(command=wide, room=ROOM) as child:
    pass
  lines = child.ended.lines
  start = next(i for i, x in enumerate(lines) if x.startswith('atm: error: '))
  screen = lines[start:]
  assert child.ended.code == 2 and len(screen) == 5, lines
  assert len(lines) < 25, lines
  assert 'the checkpoint of step 3 could not be saved: ' in screen[0]
  text = '\n'.join(screen)
  assert 'File too large' in screen[0]
  assert '\n  where      after step ' in text and ' of 20, in ' in text
  assert '\n  last good  none' in text
  assert f'\n  resume     atm pretrain --gin_file={run}/config.gin' in text
  assert 'Traceback' in (run / crash_report.FAILURE_FILE).read_text()
  assert reader.latest_step(str(run)) is None
  assert os.listdir(run / 'checkpoints') == []


def test_training_may_go_on_but_its_end_must_be_saved(nursery, tmp_path):
  settings = dict(train_steps=8, on_save_error='go_on', d_model=WIDE)
  run = tmp_path / 'run'
  with nursery.start(run, room=ROOM, **settings) as child:
    pass
  lines = child.ended.lines
  assert child.ended.code == 1
  failed = [line for line in lines if 'training goes on' in line]
  assert [int(line[-1]) for line in failed] == [1, 2, 3]
  assert survive.last_step(run) == 8 and not survive.saved_steps(run)
  assert any('step 8 could not be saved' in line for line in lines[-20:])
