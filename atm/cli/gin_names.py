"""The names that gin may bind, told apart by text: nothing is imported.

The names are those of the first version, so that no gin file breaks.
"""

from collections.abc import Iterable

from atm.cli.gin_text import UserError
from atm.messages import did_you_mean, quote

# gin name -> 'module:attribute'
CONFIGURABLES = {
  'atm.cache.build': 'atm.data.cache:build',
  'atm.card.write': 'atm.pages.card:write_card',
  'atm.check.check_folder': 'atm.evals.folder_check:FolderCheck',
  'atm.chat.chat': 'atm.cli.chat:ChatCommand',
  'atm.compare.compare': 'atm.pages.compare_page:compare_evaluations',
  'atm.convert.export_weights': 'atm.checkpoint.convert:export_weights',
  'atm.convert.import_weights': 'atm.checkpoint.convert:import_weights',
  'atm.data.vocab': 'atm.data.vocabulary_training:train_vocabulary',
  'atm.choosing.Config': 'atm.inference.sampling:Config',
  'atm.files.infer_file': 'atm.inference.file_jobs:InferJob',
  'atm.files.score_file': 'atm.inference.file_jobs:ScoreJob',
  'atm.harness.evaluate': 'atm.cli.lm_eval_command:LmEvalCommand',
  'atm.lora.Config': 'atm.model.lora:make_lora_config',
  'atm.look.inspect': 'atm.pages.inspect_data:inspect',
  'atm.mixture.show': 'atm.data.mixture_stats:show_mixture',
  'atm.model.Config': 'atm.model.config:ModelConfig',
  'atm.optimizer.Config': 'atm.train.optimizer:OptimizerConfig',
  'atm.plan.plan': 'atm.plan.train_plan:plan',
  'atm.plan_decode.plan_rows': 'atm.plan.decode_plan:plan_rows',
  'atm.plan_decode.program': 'atm.plan.decode_plan:program',
  'atm.plan_serve.plan_engine': 'atm.plan.serve_plan:plan_engine',
  'atm.planner.run': 'atm.plan.command:run',
  'atm.run_list.write': 'atm.pages.run_list:write_run_list',
  'atm.run_page.write': 'atm.pages.train_page:write_train_page',
  'atm.serving.EngineSizes': 'atm.serve.engine_sizes:EngineSizes',
  'atm.serving.RequestLimits': 'atm.serve.request_limits:RequestLimits',
  'atm.serving.serve': 'atm.cli.serve_command:ServeCommand',
  'atm.sharding.Rules': 'atm.parallel.sharding:Rules',
  'atm.sharding.mesh': 'atm.parallel.mesh:make_mesh',
  'atm.sharding.start': 'atm.parallel.distributed:start_jax',
  'atm.suite.Asker': 'atm.evals.during_training:FewShotEvaluator',
  'atm.suite.evaluate': 'atm.evals.runner:SuiteEvaluation',
  'atm.trainer.train': 'atm.train.config:TrainConfig',
  'atm.vocabulary.train': 'atm.data.vocabulary_training:train_sentencepiece',
}
# The GIN list of atm_tasks, which takes seconds to import.
TASK_CONFIGURABLES = {
  'atm_tasks.Mixing': 'atm_tasks.pretraining.mixing:Mixing',
  'atm_tasks.configure': 'atm_tasks:configure',
  'atm_tasks.data_table': 'atm_tasks.evaluation.data_check:data_table',
  'atm_tasks.spoken': 'atm_tasks.pretraining.text_forms:spoken',
  'atm_tasks.suite': 'atm_tasks.evaluation.registry:suite',
}
TARGETS = CONFIGURABLES | TASK_CONFIGURABLES


def find_name(selector: str, names: Iterable[str]) -> str | None:
  """Returns the full name that a selector is, or alone ends as, or None."""
  if selector in names:
    return selector
  found = [name for name in names if name.endswith(f'.{selector}')]
  return found[0] if len(found) == 1 else None


def check_name(selector: str, where: str, names: Iterable[str]) -> str:
  """Returns a full name, see `find_name`; raises UserError without one."""
  name = find_name(selector, names)
  if name is None:
    ours = any(f'.{n}'.endswith(f'.{selector}') for n in names)
    what = 'is ambiguous' if ours else 'is nothing gin may bind'
    short = {shorten(n) for n in names}
    raise UserError(
      f'{where}: {quote(selector)} {what}.' + did_you_mean(selector, short)
    )
  return name


def shorten(name: str) -> str:
  """Returns the last two parts of a full name, as documents write it."""
  return '.'.join(name.split('.')[-2:])
