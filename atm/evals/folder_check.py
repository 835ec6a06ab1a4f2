"""`atm check`: compares a downloaded model here and in transformers.

What shows without transformers is checked in any case. transformers runs first,
in a process of its own, see `peer_outputs`; then the model is read here and
computes the same. The last line printed is a verdict to hand on.
"""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import jax

from atm import fileio, storage
from atm.checkpoint import pretrained
from atm.checkpoint.pretrained import PretrainedModel
from atm.evals import folder_facts, model_comparison, peer_process
from atm.evals.check_prompts import Prompt, list_prompts
from atm.evals.check_report import Report, describe_surroundings
from atm.evals.peer_outputs import ANSWER_FILE, REQUEST_FILE
from atm.inference import api
from atm.messages import check_choice, check_count, check_fields, check_path
from atm.model.config import CONFIG_CHOICES
from atm.parallel import mesh as mesh_lib
from atm.parallel import xla_options
from atm.parallel.sharding import Rules


@dataclasses.dataclass
class FolderCheck:
  """Checks a folder of Hugging Face weights, and compares with transformers.

  Attributes:
    model_dir: the folder, with config.json, weights and a tokenizer.
    weights: 'bfloat16' compares in half the memory, and less exactly; None: in
      float32.
    limit: prompts whose states, logits and outputs are compared; None: all.
    make_mesh: called when the command runs, for it asks for devices.
    rules: logical to mesh axes.
    ask_peer: computes the other side, see `peer_process.ask_peer`.
    say: prints a line.
  """

  model_dir: str
  _: dataclasses.KW_ONLY
  weights: str | None = None
  limit: int | None = None
  make_mesh: Callable[[], jax.sharding.Mesh] = mesh_lib.make_mesh
  rules: Rules = Rules()
  ask_peer: Callable[[str, Callable], str] = peer_process.ask_peer
  say: Callable[[str], None] = print

  checks: ClassVar[dict[str, Callable]] = {
    'model_dir': partial(check_path, 'MODEL_DIR'),
    'weights': partial(
      check_choice, 'WEIGHTS', known=CONFIG_CHOICES['dtype'], optional=True
    ),
    'limit': partial(check_count, 'LIMIT', optional=True),
  }

  def __post_init__(self):
    check_fields(self)

  def run(self) -> bool:
    """Prints a table and a verdict; returns whether all is as it should be.

    Raises:
      FileNotFoundError, ValueError: the folder cannot be read; says why.
    """
    xla_options.set_flags()  # before devices are asked for
    source = pretrained.open_pretrained(self.model_dir)
    if 'hf_config' not in source.meta:
      raise ValueError(
        f'MODEL_DIR = {self.model_dir!r} is a run of atm, which transformers '
        'does not read: `atm export` writes a folder to check'
      )
    report = Report(self.say)
    about = folder_facts.tell_folder(report, source)
    prompts = list_prompts(source.config, source.vocabulary, self.limit)
    with tempfile.TemporaryDirectory(prefix='atm-check-') as folder:
      answer, missing, failure = self._ask(folder, source, prompts)
      if answer:
        model_comparison.compare_ids(report, prompts, answer['ids'])
      model = self._load()
      with self._exactly():
        if 'greedy' in answer:
          model_comparison.compare_model(report, model, prompts, answer, folder)
        else:
          model_comparison.check_alone(report, model, prompts)
    about += f' | {describe_surroundings(peer_process.list_versions())}'
    self.say('')
    self.say(report.verdict(failure or missing, about))
    return not report.problems and not failure

  def _ask(
    self, folder: str, source: PretrainedModel, prompts: list[Prompt]
  ) -> tuple[dict, str, str]:
    """Returns (what transformers computed, what it lacks, how it failed)."""
    missing = peer_process.explain_missing()
    if 'transformers' not in peer_process.list_versions():
      return {}, missing, ''
    fileio.write_json(os.path.join(folder, REQUEST_FILE), {
      # transformers opens its files by path
      'directory': storage.absolute(storage.fetch(self.model_dir)),
      'dtype': self.weights or 'float32',
      'max_tokens': model_comparison.MAX_TOKENS,
      'beams': model_comparison.BEAMS,
      'positions': source.config.positions,
      'prompts': [dataclasses.asdict(prompt) for prompt in prompts],
    })  # fmt: skip
    self.say('transformers computes, in a process of its own')
    if failure := self.ask_peer(folder, self.say):
      return {}, missing, failure
    return fileio.read_json(os.path.join(folder, ANSWER_FILE)), missing, ''

  def _load(self) -> api.Model:
    """Reads the model in the dtype of the comparison."""
    place = self.make_mesh(), self.rules
    weights = 'bfloat16' if self.weights == 'bfloat16' else None
    return api.load(self.model_dir, None, *place, 'float32', weights)

  def _exactly(self):
    """Keeps float32 exact: TPUs and GPUs round products by default."""
    if self.weights == 'bfloat16':
      return contextlib.nullcontext()
    return jax.default_matmul_precision('highest')
