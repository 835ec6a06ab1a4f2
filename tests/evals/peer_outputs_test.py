"""What transformers computes for `atm check`, here without torch."""

import importlib.util
import json

import numpy as np
import pytest

from atm.evals import check_prompts, peer_outputs

from goldens import HERE

PUBLIC = f'{HERE}/public'


def ask(tmp_path, directory, texts):
  prompts = [
    dict(text=text, ids=[], source=source, target=target, computed=computed)
    for text, source, target, computed in texts
  ]
  request = dict(
    directory=directory, dtype='float32', max_tokens=4, beams=2, positions=30,
    prompts=prompts,
  )  # fmt: skip
  (tmp_path / 'request.json').write_text(json.dumps(request))
  return peer_outputs.compute_answers(str(tmp_path), lambda text: None)


@pytest.mark.parametrize(
  ('name', 'code', 'place'),
  [('nllb', 'deu_Latn', 0), ('mbart25', 'de_DE', -1), ('m2m_100', 'de', 0)],
)
def test_token_ids_need_no_torch(name, code, place, tmp_path, monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, 'find_spec',
    lambda name, *rest: None if name == 'torch' else find(name, *rest),
  )  # fmt: skip
  answer = ask(tmp_path, f'{PUBLIC}/{name}', [('Hallo', code, code, False)])
  assert [*answer] == ['ids']
  (ids,) = answer['ids']
  tokenizer = peer_outputs.open_tokenizer(
    f'{PUBLIC}/{name}', [{'text': 'Hallo'}]
  )
  number = peer_outputs.get_language_id(tokenizer, code)
  assert ids[place] == number
  start = peer_outputs.choose_start(tokenizer, code)
  key = 'decoder_start' if name == 'mbart25' else 'forced_bos'
  assert start == {f'{key}_token_id': number}
  assert json.loads((tmp_path / 'answer.json').read_text()) == answer


def test_a_blenderbots_text_ends_as_it_was_trained():
  """Without the end token states and outputs were another prompt's."""
  folder = f'{PUBLIC}/blenderbot'
  tokenizer = peer_outputs.open_tokenizer(folder, [{'text': 'Hello'}])
  prompt = {'text': 'Hello', 'source': None}
  *ids, end = peer_outputs.tokenize_prompt(tokenizer, prompt)
  assert end == tokenizer.eos_token_id not in ids and ids


def test_a_folder_without_texts_needs_no_tokenizer():
  assert peer_outputs.open_tokenizer('none', [{'text': None}]) is None
  assert peer_outputs.choose_start(None, None) == {}


def test_outputs_begin_with_the_target(tmp_path):
  pytest.importorskip('torch')
  texts = check_prompts.choose_texts(['eng_Latn', 'deu_Latn'])[:2]
  texts = [(text[:10], *rest) for text, *rest in texts]
  answer = ask(tmp_path, f'{PUBLIC}/nllb', texts)
  for i, row in enumerate(answer['greedy']):
    assert row[:2] == [2, answer['ids'][1 - i][0]] and len(row) <= 5
    states = np.load(peer_outputs.states_path(str(tmp_path), i))
    logits = np.load(peer_outputs.logits_path(str(tmp_path), i))
    assert len(states) == len(answer['ids'][i])
    assert logits.argmax(-1)[1:].tolist() == row[2:]
