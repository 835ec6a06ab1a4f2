"""The model card, as the Hub's own library reads it.

Faults seen: `no` read as false by YAML; a card that a person edited replaced.
"""

import dataclasses
import shutil

import pytest

from atm.cli import main
from atm.model.lora import LoraConfig
from atm.pages import card, card_facts

from synthetic import synthetic

hub = pytest.importorskip('huggingface_hub')


@pytest.fixture
def run(train, tmp_path):
  """A copy of a run, whose name is not harmless in YAML."""
  path = tmp_path / 'no: "1"'
  shutil.copytree(train.whole(8), path)
  (path / 'config.gin').write_text(
    "TRAIN_STEPS = 8\nINIT_FROM = 'runs/base'\nPAIRS_MODE = 'clm'\n"
  )
  return path


def load(path):
  """Returns the card, whose metadata the Hub's library has parsed."""
  return hub.ModelCard.load(path)


def test_adapters_are_told(run, monkeypatch):
  records = card_facts.read_run_records(str(run))
  adapted = dataclasses.replace(records, adapters=LoraConfig(rank=4))
  monkeypatch.setattr(card_facts, 'read_run_records', lambda _: adapted)
  card.write_card(str(run))
  assert 'lora' in load(run / 'README.md').data.tags
  text = (run / 'README.md').read_text()
  assert 'trained on by adapters for' in text
  assert 'of adapters: LoRA of rank 4, alpha 32, of kernel |' in text


def test_the_hub_reads_the_metadata(run):
  said = card.write_card(str(run))
  path = run / 'README.md'
  assert said == f'wrote {path}'
  found = load(path)
  data = found.data.to_dict()
  assert data['language'] == sorted(
    'ar de en es fr hi it ja mr pt ta te'.split()
  )
  assert data['library_name'] == 'atm'
  assert data['pipeline_tag'] == 'text-generation'
  assert 'license' not in data and '# license: to fill' in path.read_text()
  assert {'denoise', 'clm', 'multilingual', 'fine-tuned'} <= {*data['tags']}
  assert found.data.model_name == 'no: "1"'
  results = {r.dataset_name: r for r in found.data.eval_results}
  losses = card.train_page.held_out_losses(
    card_facts.read_run_records(str(run)).rows
  )[None]
  assert results['udhr, held out (clm)'].metric_value == pytest.approx(
    losses['clm']['last'], abs=1e-4
  )
  # The library writes what it has read, and reads that.
  again = hub.ModelCard(str(found)).data
  assert again.to_dict() == data
  for part in (
    'started from `runs/base`', '## Limitations', '| all | 7.', '80.00% of the',
    '| layers | 2 encoder + 2 decoder |', "mode=\"clm\"", 'No task was',
  ):  # fmt: skip
    assert part in found.text, part


def test_scores_come_with_their_intervals(run):
  synthetic(run / 'eval' / 'all', n=12, languages=('de', 'hi'))
  card.write_card(str(run), license='apache-2.0', watts=150)
  found = load(run / 'README.md')
  assert found.data.license == 'apache-2.0'
  scores = card_facts.list_scores(card_facts.read_evaluations(str(run)))
  assert len(found.data.eval_results) == len(scores) > 5
  for score, result in zip(scores, found.data.eval_results, strict=True):
    assert result.metric_value == pytest.approx(score['value'], abs=1e-4)
    interval = f'{score["low"]:.2f} to {score["high"]:.2f}'
    assert result.metric_name.endswith(f'95% interval {interval}')
  assert f'| {score["title"]} | {score["value"]:.2f} |' in found.text
  assert 'Watts: 150 a device, a figure given' in found.text


def test_an_edited_card_stays(run, capsys):
  path = run / 'README.md'
  card.write_card(str(run))
  written = path.read_bytes()
  card.write_card(str(run))  # nobody edited it
  assert path.read_bytes() == written
  edited = written.replace(b'**To fill in:** who', b'Me, for fun; who')
  path.write_bytes(edited)
  assert main.main(['card', str(run)]) == 2
  assert 'was edited, or is no card' in capsys.readouterr().err
  assert path.read_bytes() == edited
  for other in (b'', b'# Mine\n', b'\xff'):
    path.write_bytes(other)
    with pytest.raises(ValueError, match='OVERWRITE=True'):
      card.write_card(str(run))
    assert path.read_bytes() == other
  card.write_card(str(run), overwrite=True)
  assert path.read_bytes() == written


def test_a_run_whose_records_say_less(run, tmp_path):
  """What older versions left: no data.json, no machine, no goodput."""
  for name in ('data.json', 'goodput.jsonl', 'metrics.jsonl'):
    (run / name).unlink()
  output = tmp_path / 'card.md'
  card.write_card(str(run), str(output))
  found = load(output)
  assert found.data.eval_results is None and found.data.language is None
  for part in (
    'tokens and shares of each source', '| wall time | **To fill in:**',
    '| energy | **To fill in:**', '| devices | **To fill in:**',
  ):  # fmt: skip
    assert part in found.text, part


def test_a_card_of_what_is_no_run(tmp_path, capsys):
  assert main.main(['card', str(tmp_path / 'none')]) == 2
  assert 'MODEL_DIR' in capsys.readouterr().err
  assert main.main(['card', str(tmp_path)]) == 2
  assert not list(tmp_path.iterdir())
  assert 'checkpoint' in capsys.readouterr().err


def test_text_of_others_breaks_no_table():
  assert card.to_cell('a|b\n`c` <d>') == r'a\|b \`c\` \<d\>'
  assert card.to_yaml('no') == '"no"'
  assert card.to_yaml('a\x7f"') == '"a�\\""'
