"""What a model card tells of a run: sizes, data, work, energy, scores, limits.

All of it is read from MODEL_DIR. What its records do not have is None or empty,
and the card leaves it to be filled in.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from atm import storage
from atm.checkpoint import adapters, best_step, pretrained, reader
from atm.data import mixture_stats
from atm.data.language_codes import describe_language
from atm.data.task_registry import Lengths
from atm.evals import metrics, results
from atm.model import flops, lora
from atm.model.config import ModelConfig
from atm.model.lora import LoraConfig
from atm.pages import train_page
from atm.parallel.machine import find_rated_watts
from atm.train import goodput, metric_writer, run_folder

EVALUATIONS = 'eval'  # a folder of MODEL_DIR
MANY_EPOCHS = 4  # repeated more often, text teaches less (Muennighoff 2023)
TOKENS_A_PARAMETER = 20  # of Hoffmann et al. 2022


@dataclasses.dataclass(frozen=True)
class RunRecords:
  """The records of a run up to one of its checkpoints.

  Attributes:
    model_dir: its folder.
    step: of the checkpoint.
    meta: the checkpoint's.
    config: of the model.
    rows: of metrics.jsonl, up to the step.
    macros: settings of its config.gin.
    adapters: what the run trained in place of the parameters, or None.
  """

  model_dir: str
  step: int
  meta: dict
  config: ModelConfig
  rows: list[dict] = dataclasses.field(repr=False)
  macros: dict[str, Any]
  adapters: LoraConfig | None = None

  @property
  def batch_size(self) -> int:
    """Rows a step."""
    return self.meta['data']['batch_size']

  def count_parameters(self) -> int:
    """Counts the model's parameters."""
    shapes = pretrained.shapes_on_one_device(self.config)
    return sum(x.size for x in jax.tree.leaves(shapes))

  def count_adapters(self) -> int:
    """Counts the parameters of its adapters; 0 where it has none."""
    if self.adapters is None:
      return 0
    shapes = pretrained.shapes_on_one_device(self.config)
    make = lambda key: lora.init_adapters(shapes, self.adapters, key)
    made = jax.eval_shape(make, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(made))

  def sum_tokens(self) -> float:
    """Sums the tokens that the run's steps read, targets included."""
    trained = [row for row in self.rows if row.get('loss') is not None]
    return train_page.sum_tokens(trained)

  def count_steps(self) -> int:
    """Counts the steps that were trained on, without those of SKIP_STEPS."""
    skipped = set()
    for first, last in self.meta.get('skip_steps', ()):
      skipped.update(range(first, min(last, self.step) + 1))
    return self.step - len(skipped)

  def compute_flops(self) -> float:
    """Computes the model FLOPs of the steps, see `flops.train_flops`."""
    lengths = Lengths.of(self.meta['lengths'])
    sizes = self.config, self.batch_size, *lengths.both
    steps = self.count_steps()
    frozen = min(steps, self.macros.get('FREEZE_ENCODER_STEPS') or 0)
    return frozen * flops.train_flops(*sizes, frozen=True) + (
      steps - frozen
    ) * flops.train_flops(
      *sizes, adapted=self.adapters is not None,
      prompt_loss=bool(self.macros.get('PROMPT_LOSS')),
    )  # fmt: skip


def read_run_records(model_dir: str) -> RunRecords:
  """Reads the records of a run at the checkpoint that others would read.

  Raises:
    FileNotFoundError: there is no checkpoint, or it is not a run's.
  """
  # The base of adapters need not be here.
  with reader.open_step(model_dir, None) as (checkpoints, step):
    meta = checkpoints.meta(step)
    config = pretrained.read_model_config(checkpoints, step)
  if 'data' not in meta:
    raise FileNotFoundError(
      f'MODEL_DIR = {model_dir!r}: expected the folder of a training run: '
      'only such a one has records of how its model was made'
    )
  rows = metric_writer.read_metrics(model_dir)
  described = adapters.read_description(model_dir)
  return RunRecords(
    model_dir, step, meta, config,
    [row for row in rows if row['step'] <= step],
    train_page.read_macros(train_page.read_config_text(model_dir)),
    described and described[0],
  )  # fmt: skip


# --- Data


def describe_data(records: RunRecords) -> dict[str, Any]:
  """Returns the mixture: objectives, and sources and languages.

  Returns:
    `mixture`, a name; `objectives`, {name: share of the rows}; `lines`, of
    each source, language and form its tokens, share and epochs. Those two are
    empty where the run has no data.json.
  """
  data = run_folder.read_data(records.model_dir)
  parts = data['parts'] if data else []
  read = records.count_steps() * records.batch_size
  objectives: dict[str, float] = {}
  lines: dict[tuple, dict] = {}
  for part in parts:
    name, share = part['objective'], part['share']
    objectives[name] = objectives.get(name, 0.0) + share
    key = part['source'], part['language'], part['form']
    line = lines.setdefault(
      key, {'tokens': part['tokens'], 'share': 0.0, 'epochs': 0.0}
    )
    line['share'] += share
    line['epochs'] += read * share / part['rows'] * part['passes']
  total = sum(line['tokens'] for line in lines.values())
  epochs = sum(x['tokens'] * x['epochs'] for x in lines.values())
  return {
    'mixture': records.meta['data']['mixture'],
    'objectives': objectives,
    'lines': [(*key, line) for key, line in lines.items()],
    'tokens': total,
    'epochs': epochs / total if total else None,
  }


def collect_languages(
  records: RunRecords, data: Mapping[str, Any]
) -> list[str]:
  """Lists the codes of languages that a run trained on or measured."""
  parts = [language for _, language, _, _ in data['lines']]
  parts += filter(None, _leave_out_sets(records, data))
  codes = {code for part in parts for code in _split_direction(part)}
  return sorted(codes)


def _leave_out_sets(
  records: RunRecords, data: Mapping[str, Any]
) -> dict[str | None, dict]:
  """Returns held-out losses without those of sets of pairs, by language."""
  sources = {source for source, *_ in data['lines']}
  losses = train_page.held_out_losses(records.rows)
  return {key: loss for key, loss in losses.items() if key not in sources}


def _split_direction(language: str) -> list[str]:
  """Splits 'en-de' of pairs; a code of one language is itself."""
  if language == 'all':
    return []
  codes = language.split('-')
  # 'zh-CN' and 'sr-Latn' are languages, not directions.
  pair = len(codes) == 2 and codes[1] == codes[1].lower()
  return codes if pair else [language]


def to_iso(code: str) -> str | None:
  """Returns the ISO 639 part of a model's code; None where it has none."""
  head = re.split('[-_]', code.strip('_'))[0]
  return head if re.fullmatch('[a-z]{2,3}', head) else None


# --- Work


def describe_training(
  records: RunRecords, watts: float | None
) -> dict[str, Any]:
  """Returns time, machines and energy of a run.

  Energy is the sum over the run's processes of their wall time, devices and
  watts a device. `energy` is None where any of them is unknown.
  """
  lines = goodput.read_goodput_lines(records.model_dir)
  machines = {
    line['began']: line['machine'] for line in lines if 'machine' in line
  }
  seconds, energy, used = 0.0, 0.0, []
  for process in goodput.read_goodput(records.model_dir):
    wall = process['now'] - process['began']
    seconds += wall
    machine = machines.get(process['began'])
    if machine is None:
      energy = None
      continue
    if (text := format_machine(machine)) not in used:
      used.append(text)
    power = watts or find_rated_watts(machine['kind'])
    if energy is not None and power is not None:
      energy += machine['devices'] * power * wall / 3.6e6
    else:
      energy = None
  known = {
    machine['kind']: find_rated_watts(machine['kind'])
    for machine in machines.values()
  }
  return {
    'steps': records.count_steps(),
    'batch_size': records.batch_size,
    'lengths': Lengths.of(records.meta['lengths']).both,
    'tokens': records.sum_tokens(),
    'flops': records.compute_flops(),
    'seconds': seconds,
    'goodput': goodput.goodput_share(
      goodput.sum_by_kind(goodput.read_goodput(records.model_dir))
    ),
    'machines': used,
    'watts': watts,
    'rated': {kind: power for kind, power in known.items() if power},
    'energy': energy if seconds else None,
  }


def format_machine(machine: Mapping[str, Any]) -> str:
  """Formats a machine as '8 x NVIDIA H200'."""
  return f'{machine["devices"]:,} x {machine["kind"]}'


# --- Evaluation


def read_evaluations(model_dir: str) -> list[dict]:
  """Reads the results of `atm eval` in a MODEL_DIR, by suite."""
  folder = os.path.join(model_dir, EVALUATIONS)
  if not storage.is_folder(folder):
    return []
  found = []
  for name in sorted(storage.list_names(folder)):
    suite = os.path.join(folder, name)
    if storage.exists(os.path.join(suite, results.RESULTS_FILE)):
      found.append(results.read_results(suite))
  return found


def list_scores(evaluations: Iterable[Mapping]) -> list[dict]:
  """Lists every score of evaluations, with its interval."""
  return [
    {
      'suite': evaluation['suite'],
      'step': evaluation['step'],
      'task': task['name'],
      'set': task['set'],
      'language': task['language'],
      'questions': task['questions'],
      'of': task['of'],
      'shots': task['shots'],
      'chance': task['chance'],
      'metric': name,
      'title': metrics.get_metric(name).title,
      **score,
    }
    for evaluation in evaluations
    for task in evaluation['tasks']
    for name, score in task['scores'].items()
    if score['value'] is not None
  ]


# --- Limitations


def list_limitations(
  records: RunRecords,
  data: Mapping[str, Any],
  languages: Sequence[str],
  scores: Sequence[Mapping],
) -> list[str]:
  """Lists what the records show of a model's limits, a sentence each."""
  found = []
  parameters, tokens = records.count_parameters(), records.sum_tokens()
  last = records.macros.get('TRAIN_STEPS')
  chosen = best_step.read_best(records.model_dir) is not None
  if isinstance(last, int) and records.step < last and not chosen:
    found.append(
      f'The run was to have {last:,} steps, and this is step '
      f'{records.step:,}: its learning rate has not come to its end.'
    )
  if records.macros.get('INIT_FROM'):
    found.append(
      'What the model that it started from has read is not in its records.'
    )
  elif tokens and tokens < TOKENS_A_PARAMETER * parameters:
    found.append(
      f'It read {mixture_stats.format_count(tokens)} tokens in this run, '
      f'{tokens / parameters:.3g} a parameter; compute-optimal training from '
      f'scratch takes about {TOKENS_A_PARAMETER} (Hoffmann et al. 2022).'
    )
  if data['epochs'] is not None and data['epochs'] > MANY_EPOCHS:
    found.append(
      f'Its text of {mixture_stats.format_count(data["tokens"])} tokens was '
      f'read {mixture_stats.format_epochs(data["epochs"])} times: expect it to '
      'repeat that text.'
    )
  if languages:
    names = ', '.join(map(describe_language, languages))
    found.append(f'Languages that its records name, no others: {names}.')
  found += _describe_losses(_leave_out_sets(records, data))
  found.append(
    'An encoder input, and an output, have at most '
    f'{records.config.positions:,} tokens.'
  )
  if not scores:
    found.append('No task was evaluated with `atm eval`.')
  elif any(score['questions'] < score['of'] for score in scores):
    found.append('Some tasks were asked only a part of their questions.')
  return found


def _describe_losses(losses: Mapping[str | None, dict]) -> list[str]:
  """Describes held-out losses that a unigram model has, and the worst ones."""
  found = []
  for objective, loss in losses[None].items():
    unigram = loss['unigram']
    if unigram is not None and loss['last'] >= unigram:
      found.append(
        f'Its held-out loss of {objective}, {loss["last"]:.3f}, is not below '
        f"a unigram model's, {unigram:.3f}."
      )
    by_language = {k: v[objective]['last'] for k, v in losses.items()
                   if k and objective in v}  # fmt: skip
    if len(by_language) > 2:
      worst = max(by_language, key=by_language.get)
      found.append(
        f'Of its languages {describe_language(worst)} has the greatest '
        f'held-out loss of {objective}: {by_language[worst]:.3f} nats a token, '
        f'and {loss["last"]:.3f} of all.'
      )
  return found
