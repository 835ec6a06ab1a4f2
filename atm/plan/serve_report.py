"""Plans of serving as text, as `atm plan` prints them."""

from atm.parallel.device_memory import format_bytes
from atm.plan import report
from atm.plan.report import format_range


def serve_page(plan: dict, pod) -> str:
  """Formats what `serve_plan.plan_engine` returns, for a Pod or None."""
  step = plan['step']['estimate'] or {}
  return report.join_parts(
    _verdict(plan),
    _tried(plan),
    _memory(plan),
    report.format_arrays(
      report.LARGEST.format('a step'), step.get('largest_arrays')
    ),
    report.format_collectives('a chip and step', step),
    report.format_cycles(step),
    _steps(plan),
    _admissions(plan),
    _speed(plan),
    report.format_list('warnings', plan['warnings'] or ['none']),
    report.format_list('assumptions', _assumptions(plan, pod)),
  )


def _verdict(plan: dict) -> str:
  verdict = report.format_verdict(plan, '')
  if plan['searched'] and plan['fits']:
    return f'the most slots that fit: {plan["slots"]}\n{verdict}'
  return f'{plan["slots"]} slots: {verdict}'


def _tried(plan: dict) -> str:
  rows = [('slots', 'GiB a chip', '', '')]
  for row in plan['tried']:
    rows.append((
      f'{row["slots"]:,}',
      f'{row["peak_hbm_gib"]:.2f}',
      {True: 'fits', False: 'does not fit', None: ''}[row['fits']],
      'compiled' if row['whole'] else 'placed',
    ))  # fmt: skip
  return report.format_table('slots tried', rows)


def _memory(plan: dict) -> str:
  sizes, vocabulary = plan['sizes'], plan['vocab_size']
  logits = plan['slots'] * vocabulary * 4 / plan['mesh']['tensor']
  return report.format_memory(
    f'{plan["params"]:,} parameters, {plan["weights"]}',
    plan['memory'],
    [
      f'the caches of a slot: {format_bytes(plan["slot_bytes"])} over all '
      f'chips, {sizes["max_input"]:,} + {sizes["max_output"]:,} positions',
      f'beams: {sizes["beam_groups"]} groups of {sizes["beams"]}',
      f'logits of a step, among temporaries: {format_bytes(logits)}',
    ],
  )


def _milliseconds(pair) -> str:
  return format_range(pair and [1000 * s for s in pair], ',.3g')


def _steps(plan: dict) -> str:
  """Tells what a step of all rows takes, of few, and of beams."""
  rows = [('a step', 'rows', 'positions', 'ms', 'ms where rows sample')]
  names = ('all slots', 'step'), ('a request alone', 'alone')
  for title, name in (*names, ('all beams', 'beam_step')):
    found = plan.get(name)
    if not found or not found['estimate']:
      continue
    R, T, S = found['shape']
    rows.append((
      title,
      f'{R:,}' if name != 'beam_step' else f'{R} x {plan["sizes"]["beams"]}',
      f'{S:,} + {T:,}',
      _milliseconds(found['estimate']['time_range_s']),
      _milliseconds(found['asked']['time_range_s']),
    ))  # fmt: skip
  return report.format_table('time', rows)


def _admissions(plan: dict) -> str:
  rows = [('inputs', 'tokens', 'ms', 'ms an input')]
  for found in plan.get('admissions') or ():
    (B, S), times = found['shape'], found['estimate']
    pair = times and times['time_range_s']
    each = pair and [s / B for s in pair]
    rows.append((f'{B:,}', f'{S:,}', _milliseconds(pair), _milliseconds(each)))
  return report.format_table('admission: the encoder reads', rows)


def _speed(plan: dict) -> str:
  """Tells tokens a second, and what a client waits between tokens."""
  if plan['tokens_per_second_range'] is None:
    return 'speed: ' + report.NOT_KNOWN
  sizes, step = plan['sizes'], plan['step']['estimate']['time_range_s']
  longest = plan['admissions'][-1]['estimate']['time_range_s']
  pause = [a + b for a, b in zip(step, longest)]
  shown = lambda name: format_range(plan[name], ',.0f')
  return report.format_list(
    'speed',
    [
      f'tokens/s: {shown("tokens_per_second_range")} of all slots, '
      f'{shown("alone_tokens_per_second_range")} of a request alone',
      f'inter-token latency: {_milliseconds(step)} ms where all slots write, '
      f'{_milliseconds(pause)} ms where an input of '
      f'{sizes["max_input"]:,} tokens is admitted between',
      f'requests/s: {format_range(plan["requests_per_second_range"], ".3g")}, '
      f'each of {sizes["max_input"]:,} tokens read and '
      f'{sizes["max_output"] - 1:,} written',
    ],
  )


def _assumptions(plan: dict, pod) -> list[str]:
  lines = [report.describe_compilation(plan) + ', as `atm serve` compiles']
  if pod is None:
    return [*lines, "this machine's devices: no memory limit, no time"]
  return [
    *lines,
    *report.list_chip_assumptions(pod.chip),
    *report.list_token_assumptions(pod.chip),
    report.ENCODER_TIME,
    'a call of the device takes several steps, so tokens come several at a '
    'time; what a call costs the host is measured when the engine starts',
    'not counted: hosts, HTTP, tokenising, slots that are free',
  ]
