"""What a card tells of a run, counted by other means than the card's."""

import dataclasses
import json

import pytest

from atm.model import flops
from atm.model.lora import LoraConfig
from atm.pages import card_facts, train_page
from atm.train import goodput, metric_writer

MACHINE = {'kind': 'NVIDIA H200', 'devices': 8}


@pytest.fixture(scope='module')
def records(train):
  return card_facts.read_run_records(str(train.whole(8)))


@pytest.fixture
def process(tmp_path):
  """Returns a function that appends a process to a run's goodput.jsonl."""

  def write(began, now, first, step, **more):
    seconds = dict.fromkeys(goodput.MEASURED, 0.0)
    line = dict(began=began, now=now, first=first, step=step, seconds=seconds)
    with open(tmp_path / goodput.GOODPUT_FILE, 'a') as f:
      f.write(json.dumps({**line, 'now': began, **more}) + '\n')
      f.write(json.dumps(line) + '\n')

  return write


def test_records_are_those_of_the_run(records):
  rows = metric_writer.read_metrics(records.model_dir)
  assert records.step == records.count_steps() == 8
  read = [row['tokens/input'] + row['tokens/target']
          for row in rows if 'loss' in row]  # fmt: skip
  assert len(read) == 8 and records.sum_tokens() == sum(read)
  one = flops.train_flops(records.config, 16, 32, 32)
  assert records.compute_flops() == pytest.approx(8 * one)


def test_steps_that_were_skipped_or_frozen_cost_less(records):
  one = flops.train_flops(records.config, 16, 32, 32)
  meta = {**records.meta, 'skip_steps': [[2, 3], [3, 4], [8, 20]]}
  skipping = dataclasses.replace(records, meta=meta)
  assert skipping.count_steps() == 4
  assert skipping.compute_flops() == pytest.approx(4 * one)
  macros = {'FREEZE_ENCODER_STEPS': 3}
  frozen = flops.train_flops(records.config, 16, 32, 32, frozen=True)
  assert dataclasses.replace(
    records, macros=macros
  ).compute_flops() == pytest.approx(3 * frozen + 5 * one)


def test_adapters_are_counted_and_cost_less(records):
  config = LoraConfig(rank=2, targets=('decoder/.*query',))
  adapted = dataclasses.replace(records, adapters=config)
  D, layers = records.config.d_model, records.config.decoder_layers
  assert adapted.count_adapters() == 2 * layers * 2 * (D + D)
  one = flops.train_flops(records.config, 16, 32, 32, adapted=True)
  assert adapted.compute_flops() == pytest.approx(8 * one)
  assert records.adapters is None and records.count_adapters() == 0


def test_the_data_of_a_run(records):
  data = card_facts.describe_data(records)
  assert data['objectives'] == pytest.approx({'denoise': 0.8, 'clm': 0.2})
  assert len(data['lines']) == 12 and data['mixture'] == 'udhr'
  assert sum(line['share'] for *_, line in data['lines']) == pytest.approx(1)
  languages = card_facts.collect_languages(records, data)
  assert len(languages) == 12 and languages[:2] == ['ar', 'de']
  rows = 8 * 16  # with room for 32 tokens a side
  assert 0 < data['epochs'] * data['tokens'] <= rows * 64


def test_languages_of_pairs_and_their_iso_codes(records):
  lines = [('pairs', name, '', {}) for name in ('en-de', 'zh-CN', 'all')]
  bare = dataclasses.replace(records, rows=[])
  codes = card_facts.collect_languages(bare, {'lines': lines})
  assert codes == ['de', 'en', 'zh-CN']
  # A set of pairs has a held-out loss, and is no language.
  names = 'pair', 'pair/opus', 'pair/en-ta'
  row = {'step': 1, **{f'eval/loss/{name}': 2.0 for name in names}}
  sets = dataclasses.replace(records, rows=[row])
  lines = [('opus', 'all', '', {}), ('flores', 'en-ta', '', {})]
  codes = card_facts.collect_languages(sets, {'lines': lines})
  assert codes == ['en', 'ta']
  iso = ['zh', 'eng', 'de', None]
  assert [*map(card_facts.to_iso, ('zh-CN', 'eng_Latn', 'de_DE', 'X'))] == iso


def test_energy_is_time_by_devices_by_watts(records, process, tmp_path):
  process(0.0, 3600.0, 0, 4, machine=MACHINE)
  process(9000.0, 10800.0, 4, 8, machine={**MACHINE, 'devices': 4})
  mine = dataclasses.replace(records, model_dir=str(tmp_path))
  work = card_facts.describe_training(mine, None)
  assert work['seconds'] == 5400
  assert work['energy'] == pytest.approx(0.7 * (8 * 1 + 4 * 0.5))
  assert work['machines'] == ['8 x NVIDIA H200', '4 x NVIDIA H200']
  assert work['rated'] == {'NVIDIA H200': 700}
  assert card_facts.describe_training(mine, 500)['energy'] == pytest.approx(5)
  process(20000.0, 20001.0, 8, 8)  # of a version that recorded no machine
  assert card_facts.describe_training(mine, 500)['energy'] is None


def test_energy_of_what_has_no_rated_power_is_not_known(
  records, process, tmp_path
):
  mine = dataclasses.replace(records, model_dir=str(tmp_path))
  assert card_facts.describe_training(mine, None)['energy'] is None
  process(0.0, 3600.0, 0, 8, machine={'kind': 'Xeon', 'devices': 2})
  assert card_facts.describe_training(mine, None)['energy'] is None
  assert card_facts.describe_training(mine, 100)['energy'] == pytest.approx(0.2)


def test_limitations_are_those_of_the_records(records):
  data = card_facts.describe_data(records)
  data = {**data, 'epochs': 37.5}
  short = dataclasses.replace(records, macros={'TRAIN_STEPS': 20})
  text = '\n'.join(card_facts.list_limitations(short, data, ['de'], []))
  for part in (
    'to have 20 steps, and this is step 8', 'a parameter', 'read 37.5 times',
    "is not below a unigram model's", 'no others: German',
    'at most 64 tokens', 'No task was evaluated',
  ):  # fmt: skip
    assert part in text
  tuned = dataclasses.replace(records, macros={'INIT_FROM': 'runs/base'})
  found = card_facts.list_limitations(tuned, data, ['de'], [])
  assert 'started from' in found[0] and 'a parameter' not in ''.join(found)
  scores = [{'questions': 5, 'of': 9}]
  done = dataclasses.replace(records, macros={'TRAIN_STEPS': 8}, rows=[])
  data = {**data, 'epochs': None}
  found = card_facts.list_limitations(done, data, [], scores)
  assert len(found) == 2 and 'only a part' in found[1]


def test_macros_of_a_config(records):
  text = (
    "A = 1\nINIT_FROM = \\\n    'runs/a b'\nSIZES = {'inputs': 48,\n"
    "         'targets': 48}\nREF = %A\nmodel.Config.x = 3\nNO = None\n"
  )
  assert train_page.read_macros(text) == {
    'A': 1, 'INIT_FROM': 'runs/a b', 'SIZES': {'inputs': 48, 'targets': 48},
    'NO': None,
  }  # fmt: skip
