"""Makes one process of a run slow, hang or fail: `--import=hooks_of_hosts`.

HOST_HOOK is [process, what, seconds]: 'sleep' in every step, 'hang' in the one
after step 5, or 'fail' there as a store does. Windows of host times have ten
steps.
"""

import json
import os
import time

import jax

from atm.storage.client import PassingError
from atm.train import host_times
from atm.train.loop import Loop

PROCESS, WHAT, SECONDS = json.loads(os.environ['HOST_HOOK'])
host_times.WINDOW = 10
do_step = Loop._step


def oversleep():
  time.sleep(SECONDS)


def step(loop, *args):
  due = WHAT == 'sleep' or loop.done == 5
  if due and jax.process_index() == PROCESS:
    if WHAT == 'fail':
      raise PassingError('gs://bucket/x: HTTP 503')
    oversleep()
  return do_step(loop, *args)


Loop._step = step
