"""`atm eval`: a model answers the questions of a suite, and metrics score them.

Answers are on disk as soon as they are computed, so a run that was killed
continues where it was.
"""

import dataclasses
import functools
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import jax

import atm
from atm import fileio
from atm.checkpoint.pretrained import PretrainedModel
from atm.data.input_format import InputFormat
from atm.data.vocabulary import has_vocabulary, open_vocabulary
from atm.data.vocabulary_base import BaseVocabulary
from atm.evals import metrics, results, scoring, suite_checks
from atm.evals.answers import AnswerFolder, set_truncation
from atm.evals.model_tasks import fit_tasks
from atm.evals.predict import request_of, sample_questions
from atm.evals.task import MissingData, Task
from atm.inference import api, generation_defaults, sampling
from atm.inference.framing import TRUNCATIONS, Framing
from atm.messages import check_choice, check_count, check_path, check_seed
from atm.parallel import distributed


@dataclasses.dataclass
class SuiteEvaluation(api.ModelSource):
  """Evaluates a model on the tasks of a suite.

  Attributes:
    model_dir: None only for a dry run or a check of the data.
    make_tasks: builds the tasks.
    suite: the suite's name, for the report.
    output: a folder; None: MODEL_DIR/eval/SUITE, or in ADAPTER. Answers that
      an earlier run of the same settings left there are read, not computed.
    limit: questions of each task, drawn by `seed`; None: all.
    seed: of that draw and of the bootstraps.
    batch_size: prompts or pairs at a time.
    vocabulary: of a dry run without model_dir: a folder or file; None: long
      texts are not cut.
    dry_run: print every prompt as JSONL, and do nothing else.
    check_data: print the report of `check` on the data, and do nothing else.
    check: reports on the data: (a table, how many files are missing or broken).
    truncate: 'refuse', or where texts without room are cut, 'start' or 'end'.
    config: how tokens of generated answers are chosen; where it was given
      nothing the model's own settings count, and the tasks' max_tokens.
    overwrite: replace results and answers of other settings.
    allow_missing: leave out tasks without data; else they are an error.
    config_text: the gin configuration, for the record.
    say: prints a line.
  """

  model_dir: str | None = None
  _: dataclasses.KW_ONLY
  make_tasks: Callable[[], Sequence[Task]]
  suite: str
  output: str | None = None
  limit: int | None = None
  seed: int = 0
  batch_size: int = 32
  vocabulary: str | None = None
  dry_run: bool = False
  check_data: bool = False
  check: Callable[[], tuple[str, int]] = lambda: ('', 0)
  truncate: str = 'refuse'
  config: sampling.Config = sampling.Config()
  overwrite: bool = False
  allow_missing: bool = False
  config_text: str = ''
  say: Callable[[str], None] = print

  checks = api.ModelSource.checks | {
    'model_dir': partial(check_path, 'MODEL_DIR', optional=True),
    'suite': partial(check_path, 'SUITE'),
    'output': partial(check_path, 'OUTPUT', optional=True),
    'limit': partial(check_count, 'LIMIT', optional=True),
    'seed': partial(check_seed, 'SEED'),
    'batch_size': partial(check_count, 'BATCH_SIZE'),
    'vocabulary': partial(check_path, 'VOCABULARY', optional=True),
    'truncate': partial(check_choice, 'TRUNCATE', known=TRUNCATIONS),
  }

  def run(self) -> str | None:
    """Writes results.json and predictions/, or prints what was asked for.

    Returns:
      The folder with the results; None after a dry run or a check of the data.

    Raises:
      FileNotFoundError: there is no model.
      ValueError: there is nothing to do, a file is broken or missing, a text
        has no room, or results of other settings are there.
    """
    if self.check_data:
      text, problems = self.check()
      self._log(text)
      if problems and not self.allow_missing:
        raise ValueError(
          f'{problems:,} files are missing or broken, see the table above. '
          'ALLOW_MISSING=True takes what is there'
        )
      return None
    tasks = self.make_tasks()
    if self.dry_run:
      self._print_requests(tasks)
      return None
    if self.model_dir is None:
      raise ValueError('MODEL_DIR is required, but for a dry run')
    if distributed.is_main_process():
      fileio.check_output_folder('OUTPUT', self.folder)
    for task in tasks:
      scoring.resolve_metrics(task)  # fails before hours of work, not after
    source = self.open()
    if source.vocabulary is None:
      raise ValueError(f'{self.model_dir} has no tokenizer: suites ask in text')
    tasks, refused = fit_tasks(tasks, source.vocabulary.input_format)
    suite_checks.check_askable(refused, len(tasks), self.allow_missing)
    note = self._take_defaults(source)
    self._check_suite(source, [t for t in tasks if t.name not in refused])
    distributed.wait_for_all()  # all have looked before one writes
    model = self.load(source.step)
    self._log(
      f'step {model.step:,} of {self.title}: {len(tasks) - len(refused)} '
      f'tasks of {self.suite}'
    )
    if note:
      self._log(f'generated answers: {note}')
    start = time.perf_counter()
    found, missing = self.evaluate_tasks(model, tasks)
    results.write_results(self.folder, dict(
      suite=self.suite, model_dir=self.title, step=model.step,
      parameters=sum(x.size for x in jax.tree.leaves(model.params)),
      config=self.config_text, versions=collect_versions(tasks),
      settings=self._settings(),
      seconds=round(time.perf_counter() - start, 1),
      tasks=found, missing=missing,
    ))  # fmt: skip
    for line in format_scores(found):
      self._log(line)
    return self.folder

  @property
  def _answers(self) -> AnswerFolder:
    """The folder of answers."""
    return AnswerFolder(
      os.path.join(self.folder, results.PREDICTIONS), self.model_dir,
      self.weights, self.truncate, self.overwrite, self.batch_size, self._log,
      self.config, self.adapter_mark,
    )  # fmt: skip

  @property
  def folder(self) -> str:
    """The folder that results and answers are written to."""
    owner = self.adapter or self.model_dir
    return self.output or os.path.join(owner, 'eval', self.suite)

  def _settings(self) -> dict:
    """Returns the settings that results.json records."""
    keys = 'limit', 'seed', 'batch_size', 'weights', 'truncate'
    settings = {key: getattr(self, key) for key in keys}
    if self.adapter is not None:
      settings['adapter'] = self.adapter
    if given := self.config.list_given():
      settings['generation'] = given
    return settings

  def _take_defaults(self, source: PretrainedModel) -> str | None:
    """Takes the model's own settings where none were given; describes them."""
    defaults = generation_defaults.read_defaults(source)
    defaults.pop('max_tokens', None)  # a task says how long its answers are
    self.config, _, note = generation_defaults.fill_settings(
      source.generation_path, defaults, self.config
    )
    return note

  def _check_suite(
    self, source: PretrainedModel, tasks: Sequence[Task]
  ) -> None:
    """Raises ValueError for what would end the evaluation, or spoil it."""
    framing = Framing(source.config, source.vocabulary)
    surveys = [
      suite_checks.survey_task(
        set_truncation(task, self.truncate), framing, self.limit, self.seed
      )
      for task in tasks
    ]
    missing = {s.task.name: s.missing for s in surveys if s.missing}
    suite_checks.check_complete(missing, len(tasks), self.allow_missing)
    note = suite_checks.check_room(
      surveys, source.config.positions, self.truncate
    )
    if note:
      self._log(note)
    if not self.overwrite:
      facts = dict(step=source.step, settings=self._settings())
      names = [task.name for task in tasks]
      suite_checks.check_same_results(self.folder, facts, names)
      for task, survey in zip(tasks, surveys):
        if survey.questions:
          self._answers.check(task, survey.questions, source.step)

  def _log(self, line: str) -> None:
    if distributed.is_main_process():
      self.say(line)

  def _print_requests(self, tasks: Sequence[Task]) -> None:
    """Prints what would be asked; raises ValueError where data is missing."""
    missing = {}
    for line in self.format_requests(tasks):
      row = json.loads(line)
      if 'missing' in row:
        missing[row['task']] = row['missing']
      self._log(line)
    refused = fit_tasks(tasks, self._find_format())[1]
    suite_checks.check_askable(refused, len(tasks), self.allow_missing)
    missing = {k: why for k, why in missing.items() if k not in refused}
    count = len(tasks) - len(refused)
    suite_checks.check_complete(missing, count, self.allow_missing)

  def format_requests(self, tasks: Iterable[Task]) -> Iterator[str]:
    """Formats questions as lines of JSON, as the model would read them."""
    vocabulary = self._dry_vocabulary
    tasks, _ = fit_tasks(tasks, self._find_format())
    for task in tasks:
      try:
        questions = task.make_questions(vocabulary)
      except MissingData as e:
        yield json.dumps({'task': task.name, 'missing': str(e)})
        continue
      for question in sample_questions(questions, self.limit, self.seed):
        row = {'task': task.name, 'id': question.id, **request_of(question)}
        if task.languages is not None:
          row |= zip(('source', 'target'), task.languages)
        yield json.dumps(row, ensure_ascii=False)

  def _find_format(self) -> InputFormat | None:
    """Returns the input format of a dry run's model, None without one."""
    vocabulary = self._dry_vocabulary
    return vocabulary and vocabulary.input_format

  @functools.cached_property
  def _dry_vocabulary(self) -> BaseVocabulary | None:
    """The vocabulary of a dry run, None where none is named."""
    if self.vocabulary:
      return open_vocabulary(self.vocabulary)
    if self.model_dir is None:
      return None
    own = os.path.join(self.model_dir, 'vocabulary')
    return open_vocabulary(own if has_vocabulary(own) else self.model_dir)

  def evaluate_tasks(
    self, model: api.Model, tasks: Sequence[Task]
  ) -> tuple[list[dict], list[dict]]:
    """Evaluates tasks; returns `tasks` and `missing` of results.json."""
    found, missing = [], []
    for number, task in enumerate(tasks, 1):
      self._log(f'{task.name} ({number} of {len(tasks)}): {task.asked}')
      try:
        every = task.make_questions(model.vocabulary)
      except MissingData as e:
        why, _, where = str(e).partition('\n')
        missing.append(dict(name=task.name, why=why, where=where))
        self._log(f'  left out: {why}')
        continue
      questions = sample_questions(every, self.limit, self.seed)
      rows = self._answers.answer(model, task, questions)
      task = set_truncation(task, self.truncate)
      if cut := sum(row['cut'] for row in rows):
        self._log(
          f'  {cut:,} of {len(rows):,} texts had no room: cut at the '
          f'{task.truncate} (Config.positions = {model.config.positions})'
        )
      found.append(scoring.score_task(
        task, questions, rows, len(every), model.vocabulary, self.seed
      ))  # fmt: skip
    return found, missing


def collect_versions(tasks: Iterable[Task]) -> dict[str, str]:
  """Returns the versions of what the scores of tasks depend on."""
  names = dict.fromkeys(name for task in tasks for name in task.metrics)
  own = {'atm': atm.__version__, 'jax': importlib.metadata.version('jax')}
  return own | metrics.metric_versions(names)


def format_scores(tasks: Sequence[dict]) -> Iterator[str]:
  """Formats the main score of each task, with its interval, as a line."""
  width = max((len(task['name']) for task in tasks), default=0)
  for task in tasks:
    name, score = next(iter(task['scores'].items()), ('', {'value': None}))
    if score['value'] is None:
      continue
    chance = task['chance']
    yield (
      f'{task["name"]:<{width}}  {score["value"]:6.2f}  '
      f'[{score["low"]:.2f}, {score["high"]:.2f}]  '
      f'{metrics.get_metric(name).title}, {task["questions"]:,} questions'
      + ('' if chance is None else f', chance {chance:.1f}')
    )
