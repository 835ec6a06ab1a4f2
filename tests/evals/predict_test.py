"""Answers to questions: the same in any batch, order and mesh.

Tasks are those of the small files in testdata/evaluation; the model is random.
"""

import dataclasses

import jax
import numpy as np
import pytest

from atm.evals import predict
from atm.evals.task import Question
from atm.inference import prompts
from atm.inference.framing import Framing
from atm.model import parameters
from atm.model.transformer import AlexaTM
from atm.parallel import mesh as mesh_lib
from atm.parallel.sharding import Rules

from eval_runs import go_offline, random_model, rows, run, tasks


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
  yield from go_offline(tmp_path, monkeypatch)


@pytest.fixture(scope='module')
def model(words):
  return random_model(words)


@pytest.mark.parametrize('mode', prompts.MODES)
def test_the_likeliest_choice_by_logits_alone(model, tmp_path, mode):
  """Sums over Model.logits, a pair at a time. Faults seen: positions that go
  on from choice to choice; a choice that sees the one before it; the mean's
  argmin; an end token scored."""
  some = tasks('xnli_de', 'superglue_copa', 'xwinograd_*', mode=mode)
  run(model, some, tmp_path)
  words, P = model.vocabulary, model.config.positions
  pad = lambda ids: [*ids, *[model.config.pad_id] * (P - len(ids))]
  for task in some:
    for row in rows(tmp_path, task.name):
      means = []
      for (source, target), total in zip(
        row['pairs'], row['log_probabilities'], strict=True
      ):
        ids, source = words.encode(target), model.encode(source, mode)
        decoder = pad([model.config.start_id, *ids[:-1]])
        mask = np.arange(P) < len(source)
        logits = model.logits([pad(source)], [decoder], mask[None])[0]
        logits = logits[: len(ids)].astype(np.float64)
        logs = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
        mine = logs[np.arange(len(ids)), ids]
        np.testing.assert_allclose(total, mine.sum(), rtol=1e-5)
        means.append(mine.mean())
      # Texts that the vocabulary cannot tell apart are alike.
      alike = np.isclose(means, max(means), rtol=predict.TIE_TOLERANCE, atol=0)
      assert row['answer'] == np.argmax(alike)


def test_the_harness_sums_alike(model, tmp_path):
  """lm-evaluation-harness's own adapter, on the pairs of a suite."""
  from lm_eval.api.instance import Instance

  from atm.lm_eval import AtmLM

  (task,) = tasks('xnli_en')
  run(model, [task], tmp_path)
  (row, *_) = rows(tmp_path, 'xnli_en')
  asked = [
    Instance('loglikelihood', {}, (source, f' {target}'), i)
    for i, (source, target) in enumerate(row['pairs'])
  ]
  theirs = [total for total, _ in AtmLM(model).loglikelihood(asked, True)]
  np.testing.assert_allclose(theirs, row['log_probabilities'], rtol=1e-5)
  (summed,) = run(model, tasks('xnli_en', normalize='sum'), tmp_path / 'sum')
  assert summed['predictions'][0]['answer'] == np.argmax(theirs)


def test_long_texts_lose_their_beginning(model):
  words, P = model.vocabulary, model.config.positions
  framing = Framing(model.config, words)
  long = 'All human beings are born free. ' * 60
  ids, cut = predict.encode_prompt(framing, long + 'And so', 'clm')
  assert cut and len(ids) == P and ids[1] == words.clm_id
  assert words.decode(ids[2:-1]).endswith('free. And so')
  kept, cut = predict.encode_prompt(framing, 'And so' + long, 'clm', 'end')
  assert cut and len(kept) == len(ids)
  assert kept[:4] == model.encode('And so', 'clm')[:4]
  assert predict.encode_prompt(framing, 'And so', 'clm') == (
    model.encode('And so'),
    0,
  )
  texts = long + 'And so', long + 'And so No'
  source, target, cut = predict.encode_pair(framing, texts, 'denoise')
  assert cut and len(source) <= P and len(target) <= P
  ours, theirs = words.decode(source[1:-1]), words.decode(target)
  assert theirs.startswith(ours[:100])  # both begin at the same place
  assert theirs.endswith('And so No')
  _, target, cut = predict.encode_pair(framing, ('a', 'b'), 'denoise')
  assert not cut and target == words.encode('b')
  whole = predict.encode_pair(framing, (long, 'b'), 'clm', 'end', ends=True)
  assert whole[1] == [*words.encode('b'), words.eos_id] and whole[2]


def test_neither_batch_nor_order_nor_mesh_changes_an_answer(model, tmp_path):
  """Faults seen: answers in the order of lengths."""
  names = ('superglue_*', 'xnli_de', 'squadv2', 'flores101_en_de')
  first = run(model, tasks(*names), tmp_path / 'a')
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  shapes = parameters.abstract_params(AlexaTM(model.config), mesh, Rules())
  placed = jax.tree.map(
    lambda x, to: jax.device_put(x, to.sharding), model.params, shapes
  )
  spread = dataclasses.replace(model, mesh=mesh, params=placed)
  backwards = [
    dataclasses.replace(
      task, make_questions=lambda v, make=task.make_questions: make(v)[::-1]
    )
    for task in tasks(*names)
  ]
  for changed, some, size in (
    (model, tasks(*names), 1),
    (model, backwards, 3),
    (spread, tasks(*names), 8),
  ):
    folder = tmp_path / f'{size}'
    made = run(changed, some, folder, batch_size=size)
    for a, b in zip(first, made, strict=True):
      answers = [
        {p['id']: p['answer'] for p in x['predictions']} for x in (a, b)
      ]
      assert answers[0] == answers[1]
      for name, figure in a['scores'].items():
        assert b['scores'][name]['value'] == pytest.approx(figure['value'])


def test_a_sample_keeps_groups_whole_and_order():
  asked = [Question(str(i), 0, group=f'g{i // 3}') for i in range(30)]
  made = predict.sample_questions(asked, 4, 1)
  assert len(made) == 12 and made == predict.sample_questions(asked, 4, 1)
  assert [int(q.id) for q in made] == sorted(int(q.id) for q in made)
  assert made != predict.sample_questions(asked, 4, 2)
  assert predict.sample_questions(asked, 10, 0) == asked
  with pytest.raises(
    ValueError, match='LIMIT = 0: expected a whole number of at least 1'
  ):
    predict.sample_questions(asked, 0, 0)
