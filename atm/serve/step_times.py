"""How long steps of a decoder take, and how many a call of it takes."""

import math
import time
from collections.abc import Callable

MEASURE_SECONDS = 0.2  # of each window, when an engine starts
# Of a call's time that is not its steps'.
CALL_SHARE = 0.1
CALL_SECONDS = 0.1  # of a call's steps, at most, for whoever reads a stream
NEWEST = 0.05  # the share of a new time in a running average


class StepTimes:
  """Times of the steps in each window, measured first, then corrected.

  A call of K steps takes c + K s seconds: s of a step, c of all that a call
  costs by itself (its start, copies of the window, bringing what it told), and
  h of the host between two calls, while requests are told what they brought.

  Attributes:
    most_steps: K at most.
    seconds: window -> (s, c).
    host_seconds: h, a running average.
  """

  def __init__(self, most_steps: int):
    self.most_steps = most_steps
    self.seconds: dict[tuple, tuple[float, float]] = {}
    self.host_seconds = 0.0

  def measure(self, take: Callable[[int, tuple], None], window: tuple) -> None:
    """Notes s and c of a window; take(steps, window) runs a call."""
    few, many = 1, min(5, self.most_steps)
    seconds = {few: [], many: []}
    end = time.perf_counter() + MEASURE_SECONDS
    while len(seconds[many]) < 3 or time.perf_counter() < end:
      for steps in seconds:
        start = time.perf_counter()
        take(steps, window)
        seconds[steps].append(time.perf_counter() - start)
    # The fastest, for others may use the machine, too.
    call, calls = (min(seconds[n][1:]) for n in (few, many))
    step = max(1e-6, (calls - call) / max(1, many - few))
    self.seconds[window] = step, max(0.0, call - step)

  def note_call(self, window: tuple, steps: int, seconds: float) -> None:
    """Corrects s and c by what a call took.

    As least mean squares does (Widrow and Hoff, 1960), with a normalised step:
    what was measured first may have been beside other load.
    """
    step, call = self.seconds[window]
    error = seconds - (call + steps * step)
    share = NEWEST * error / (1 + steps**2)
    self.seconds[window] = max(1e-6, step + steps * share), max(0, call + share)

  def note_host(self, seconds: float) -> None:
    """Notes what the host took between two calls."""
    self.host_seconds += NEWEST * (seconds - self.host_seconds)

  def choose_steps(self, window: tuple) -> int:
    """Returns K, how many steps a call takes.

    The greater K, the smaller the share (c + h) / (K s) that is lost of the
    throughput; but a row that ends, a client's next tokens and a request that
    comes wait for half a call on average. K is the least with which no more
    than CALL_SHARE is lost: within that of the best throughput, at the least
    latency. Its steps take no longer than CALL_SECONDS, unless there is one.
    """
    step, call = self.seconds[window]
    least = math.ceil((call + self.host_seconds) / (CALL_SHARE * step))
    most = min(self.most_steps, int(CALL_SECONDS / step))
    return max(1, min(least, most))

  def estimate(self, window: tuple) -> float:
    """Returns the seconds of a step, its share of a call's own among them."""
    step, call = self.seconds[window]
    return step + call / self.choose_steps(window)
