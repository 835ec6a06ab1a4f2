"""What a request is given comes in order, and its end once."""

import pytest

from atm.inference import sampling
from atm.serve.engine import Ticket
from atm.serve.generation_request import GenerationRequest
from atm.serve.job import Job
from atm.serve.observer import Observer


def make_job(**fields) -> tuple[Job, list]:
  updates = []
  request = GenerationRequest((5,), (1,), **fields)
  deliver = lambda index, update: updates.append((index, update))
  return Job(request, Ticket(lambda: None), 3, deliver), updates


def test_tokens_are_told_once_and_outputs_when_the_last_has_ended():
  sampled = sampling.Config(temperature=1.0, results=2)
  job, updates = make_job(config=sampled)
  job.add_token(0, 7, -0.5, None, None, end_id=2)
  job.deliver(Observer())
  job.deliver(Observer())  # nothing new
  job.add_token(0, 2, -0.25, None, None, end_id=2)
  job.end_output(0, 'stop')
  job.deliver(Observer())
  job.end('cancelled')
  job.deliver(Observer())
  job.deliver(Observer())
  assert [index for index, _ in updates] == [3, 3, 3]
  first, second, last = (update for _, update in updates)
  assert [token.id for token in first.tokens] == [7] and not first.ended
  assert second.ended == ((0, 'stop'),) and second.outputs is None
  assert [x.reason for x in last.outputs] == ['stop', 'cancelled']
  assert last.outputs[0].ids == [7]  # not the end token
  assert last.outputs[0].log_probabilities == [-0.5, -0.25]
  assert last.outputs[0].score == -0.75


def test_an_error_ends_a_request_without_outputs():
  job, updates = make_job()
  job.end(None, 'out of memory')
  job.deliver(Observer())
  assert updates[0][1].error == 'out of memory'
  assert updates[0][1].outputs == ()


@pytest.mark.parametrize('seconds, reason', [(None, None), (0.0, 'timeout')])
def test_a_request_ends_when_it_is_late(seconds, reason):
  job, _ = make_job(seconds=seconds)
  assert job.find_end(now=1e9) == reason
  job.ticket.cancel()
  assert job.find_end(now=1e9) == 'cancelled'


def test_a_caller_that_raises_ends_its_own_request_alone(caplog):
  def deliver(index, update):
    raise ZeroDivisionError

  request = GenerationRequest((5,), (1,))
  job = Job(request, Ticket(lambda: None), 0, deliver)
  job.add_token(0, 7, -0.5, None, None, end_id=2)
  job.deliver(Observer())
  assert job.find_end(0.0) == 'cancelled'
  assert 'could not be delivered' in caplog.text
