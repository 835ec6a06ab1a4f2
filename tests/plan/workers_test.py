"""Processes that plan."""

import os

from atm.plan import train_plan, workers

from plan_runs import run


def dies(devices):
  os._exit(3)


def test_a_process_that_fails_is_an_error():
  given = workers.portable_settings(run(topology=None))
  jobs = [
    ('refused', {**given, 'batch_size': 0}, False),
    ('dead', {**given, 'make_mesh': dies}, False),
  ]
  made = dict(workers.run_plans(train_plan.plan, jobs, 2))
  assert made['refused']['error'].startswith('BATCH_SIZE = 0')
  assert made['dead']['error'] == 'its process ended with status 3'
  assert all(m['seconds'] > 0 for m in made.values())
