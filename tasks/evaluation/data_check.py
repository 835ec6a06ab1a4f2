"""Reports on the files that evaluation tasks need, for `CHECK_DATA`."""

import dataclasses
from collections.abc import Sequence

from atm import messages
from atm.inference import prompts
from atm_tasks.evaluation import dataset_files
from atm_tasks.evaluation.registry import (
  SOURCE_CHECKS,
  ExampleSource,
  select_sources,
  write_question,
)


@dataclasses.dataclass(frozen=True)
class FileReport:
  """The state of one file of a data set, or of a folder of many.

  Attributes:
    set: the data set.
    file: its path, or what was looked for.
    examples: how many were read for a task, at most; None where none could.
    problem: what is missing or wrong, '' where all is well.
    where: where to get it.
  """

  set: str
  file: str
  examples: int | None
  problem: str = ''
  where: str = ''


def check_files(sources: Sequence[ExampleSource]) -> list[FileReport]:
  """Reads all data that tasks need, whole, and reports on each file once."""
  reports: dict[tuple[str, str], FileReport] = {}
  for source in sources:
    spec = source.spec
    needed = [spec.split, *[spec.shots_from] * bool(spec.shots)]
    for split in dict.fromkeys(needed):
      for report in _check_split(source, split):
        key = report.set, report.file
        other = reports.setdefault(key, report)
        more = (report.examples or 0) > (other.examples or 0)
        if not other.problem and (report.problem or more):
          reports[key] = report
  return list(reports.values())


def _check_split(source: ExampleSource, split: str) -> list[FileReport]:
  data = source.spec.data
  try:
    found = source.find(split)
  except dataset_files.MissingSplit as e:
    return [
      FileReport(data, path, None, 'missing', e.where) for path in e.files
    ]
  whole = lambda text, tokens: text
  count = 0
  try:
    for example in found.examples():
      count += 1
      if split == source.spec.split:  # what a run would ask
        write_question(source, example, (), prompts.MODES[0], whole)
  except (ValueError, OSError) as e:
    return [FileReport(data, ', '.join(found.places), None, str(e))]
  problem = '' if count else 'no examples'
  return [FileReport(data, path, count, problem) for path in found.places]


def format_reports(reports: Sequence[FileReport]) -> str:
  """Formats a table, and where to get what is missing, once each."""
  lines = [('set', 'examples', 'file', '')]
  for row in reports:
    count = '-' if row.examples is None else f'{row.examples:,}'
    lines.append((row.set, count, row.file, row.problem))
  width = [max(len(line[i]) for line in lines) for i in range(2)]
  text = [
    f'{name:<{width[0]}}  {count:>{width[1]}}  {file}  {problem}'.rstrip()
    for name, count, file, problem in lines
  ]
  where = {row.set: row.where for row in reversed(reports) if row.where}
  text += [''] * bool(where)
  return '\n'.join([*text, *(f'{k}: {where[k]}' for k in reversed(where))])


@messages.check_arguments(**SOURCE_CHECKS)
def data_table(
  names: str | Sequence[str],
  data_dir: str = 'data',
  split: str | None = None,
  shots: int | None = None,
  tfds_dir: str | None = None,
) -> tuple[str, int]:
  """Reports on the files that tasks need; see `suite` for the arguments.

  Returns:
    (a table for readers, how many files are missing or broken).
  """
  args = names, data_dir, split, shots, tfds_dir
  reports = check_files(select_sources(*args))
  return format_reports(reports), sum(bool(row.problem) for row in reports)
