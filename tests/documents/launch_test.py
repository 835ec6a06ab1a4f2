"""Files of deploy/ that train: their commands, hosts, restarts and ends."""

import functools
import math
import os
import re
import shlex
import stat
import subprocess

import pytest
import yaml

import gin
from atm.cli import gin_config, gin_files, main, path_checks, setting_needs
from atm.plan import hardware

from document_blocks import ROOT

DEPLOY = f'{ROOT}/deploy'
JOBSETS = 'jobset.yaml', 'jobset-multislice.yaml'
# GKE's names of the chips that pods files are for.
ACCELERATORS = {'v6e': 'tpu-v6e-slice', 'tpu7x': 'tpu7x'}
# Options of sbatch that our script has, and their values.
SBATCH = {
  'job-name': r'[\w-]+', 'nodes': r'\d+', 'ntasks-per-node': r'\d+',
  'gpus-per-node': r'\d+', 'cpus-per-task': r'\d+', 'mem': r'\d+',
  'time': r'\d+:\d\d:\d\d', 'signal': r'[A-Z]+@\d+', 'requeue': '',
  'open-mode': 'append|truncate', 'output': r'/\S+',
}  # fmt: skip


def read(name: str) -> str:
  """Returns the text of a file."""
  with open(f'{DEPLOY}/{name}', encoding='utf-8') as f:
    return f.read()


@functools.cache
def objects(name: str) -> dict:
  """Returns the objects of Kubernetes in a file, by kind."""
  return {x['kind']: x for x in yaml.safe_load_all(read(name))}


def slice_of(name: str) -> tuple[dict, dict, dict]:
  """Returns the replicated job of a JobSet, its Job's spec and its pod's."""
  (job,) = objects(name)['JobSet']['spec']['replicatedJobs']
  spec = job['template']['spec']
  return job, spec, spec['template']['spec']


@pytest.fixture
def bound(monkeypatch):
  """Applies the settings of a command, as atm does; returns a getter."""
  monkeypatch.setattr(path_checks, 'check_inputs_exist', lambda *_: None)
  # A MODEL_DIR in a bucket would be looked at.
  monkeypatch.setattr(setting_needs, '_has_own_settings', lambda *_: False)

  def call(arguments: list[str]):
    run, *configuration = main.parse_arguments(arguments)
    gin.clear_config()
    gin_config.apply_config(*configuration, run)
    return gin_config.get_setting

  yield call
  gin.clear_config()


def pods_file(arguments: list[str]) -> str:
  """Returns the file of gin/pods/ that a command names."""
  (name,) = re.findall(r'--gin_file=(pods/\w+\.gin)', ' '.join(arguments))
  return name


@pytest.mark.parametrize('name', JOBSETS)
def test_the_settings_of_a_jobset_are_those_of_the_run(name, bound, tmp_path):
  _, _, pod = slice_of(name)
  (container,) = pod['containers']
  mounted = {x['name']: x['mountPath'] for x in container['volumeMounts']}
  settings = objects(name)['ConfigMap']
  (volume,) = [x for x in pod['volumes'] if x['name'] == 'settings']
  assert volume['configMap']['name'] == settings['metadata']['name']
  for file, text in settings['data'].items():
    (tmp_path / file).write_text(text)
  get = bound([
    x.replace(f'{mounted["settings"]}/', f'{tmp_path}/')
    for x in container['args']
  ])  # fmt: skip
  assert get('MODEL_DIR').startswith('gs://')
  assert f'JAX_COMPILATION_CACHE_DIR={mounted["cache"]}' in read('Dockerfile')
  assert '--target tpu' in read('Dockerfile')


@pytest.mark.parametrize('name', JOBSETS)
def test_a_jobset_asks_for_the_hosts_of_its_pods_file(name, bound):
  job, spec, pod = slice_of(name)
  (container,) = pod['containers']
  file = pods_file(container['args'])
  with open(gin_files.find_file(file), encoding='utf-8') as f:
    (topology,) = re.findall(r"^TOPOLOGY = '(.*)'", f.read(), re.M)
  wanted = hardware.parse_pod(topology)
  selected = pod['nodeSelector']
  accelerator = selected['cloud.google.com/gke-tpu-accelerator']
  assert accelerator == ACCELERATORS[wanted.kind]
  shape = selected['cloud.google.com/gke-tpu-topology']
  assert shape == 'x'.join(map(str, wanted.shape))
  assert job['replicas'] == wanted.slices
  chips = container['resources']['limits']['google.com/tpu']
  assert spec['parallelism'] == spec['completions']
  assert spec['parallelism'] * chips == math.prod(wanted.shape)


@pytest.mark.parametrize('name', JOBSETS)
def test_a_jobset_restarts_all_but_mistakes(name):
  """A Job that retries its pods would start hosts alone."""
  _, spec, pod = slice_of(name)
  (container,) = pod['containers']
  assert spec['backoffLimit'] == 0 and pod['restartPolicy'] == 'Never'
  (rule,) = spec['podFailurePolicy']['rules']
  codes = rule['onExitCodes']
  assert codes['values'] == [2] and rule['action'] == 'FailJob'
  assert codes['containerName'] == container['name']
  policy = objects(name)['JobSet']['spec']['failurePolicy']
  (ends,) = policy['rules']
  assert ends['action'] == 'FailJobSet' and policy['maxRestarts'] > 10
  assert not {'livenessProbe', 'command'} & {*container}
  assert pod['terminationGracePeriodSeconds'] > 120  # else SIGKILL in a save


# --- Slurm


def test_the_batch_script_has_options_that_there_are():
  options = re.findall(r'^#SBATCH (.*)$', read('train.sbatch'), re.M)
  named = {}
  for option in options:
    name, _, value = re.fullmatch(r'--([\w-]+)(=(.*))?', option).groups()
    named[name] = value or ''
  for name, value in named.items():
    assert re.fullmatch(SBATCH[name], value), name
  assert len(named) == len(options)


def test_the_batch_script_starts_a_task_a_card_of_its_pods_file(bound):
  text = read('train.sbatch')
  number = lambda name: int(re.search(rf'--{name}=(\d+)', text)[1])
  assert number('ntasks-per-node') == number('gpus-per-node')
  command = re.search(r'\.venv/bin/atm (.*?) \|\|', text, re.S)[1]
  arguments = shlex.split(command.replace('\\\n', ' '))
  with open(gin_files.find_file(pods_file(arguments)), encoding='utf-8') as f:
    chips, hosts = re.search(r': (\d+) chips, (\d+) hosts', f.read()).groups()
  assert number('nodes') == int(hosts)
  assert number('nodes') * number('gpus-per-node') == int(chips)
  mine = [x for x in arguments if not x.startswith('--gin_file=/')]
  get = bound([*mine, "--gin.MODEL_DIR='runs/x'"])
  assert get('MODEL_DIR') == 'runs/x'


@pytest.mark.parametrize(
  'status, restarts, requeued',
  [(0, 0, False), (2, 0, False), (130, 0, True), (134, 5, True),
   (130, 100, False)],
)  # fmt: skip
def test_the_batch_script_runs_again_unless_it_is_done(
  status, restarts, requeued, tmp_path
):
  script = read('train.sbatch').replace('/shared/atm', str(tmp_path))
  write_program(tmp_path / 'srun', f'exit {status}')
  write_program(tmp_path / 'scontrol', 'echo "$@"')
  done = run_script(script, tmp_path, SLURM_JOB_ID='7',
                    SLURM_RESTART_COUNT=str(restarts))  # fmt: skip
  assert done.returncode == status
  assert done.stdout == ('requeue 7\n' if requeued else '')


# --- Compute Engine

# A gcloud with two hosts; `atm pretrain` on one of them ends with the next
# status of a file. By 255, ssh's own, the cloud has taken the host.
GCLOUD = """\
echo "$*" >> {folder}/calls
case "$*" in
  *' describe '*) exit 1 ;;
  *'managed resize'*) printf 'host-a\\nhost-b\\n' > {folder}/hosts ;;
  *list-instances*) cat {folder}/hosts ;;
  *'ssh host-'*'atm pretrain'*)
    (
      flock 9
      status=$(head -n 1 {folder}/statuses)
      sed -i 1d {folder}/statuses
      [ "$status" = 255 ] && sed -i "/$3/d" {folder}/hosts
      exit "$status"
    ) 9> {folder}/lock
    ;;
esac
"""


@pytest.mark.parametrize(
  'statuses, status, slices',
  [
    ([0, 0], 0, 1),
    ([255, 134, 0, 0], 0, 2),  # a host was taken, the other aborted
    ([130, 130, 0, 0], 0, 1),  # the hosts are there: no new ones
    ([134, 2], 2, 1),  # the one with the mistake says what is wrong
    ([255, 255, 134, 255, 0, 0], 0, 3),
  ],
)
def test_a_run_on_spot_hosts_is_kept(statuses, status, slices, tmp_path):
  (tmp_path / 'statuses').write_text(''.join(f'{n}\n' for n in statuses))
  write_program(tmp_path / 'gcloud', GCLOUD.format(folder=tmp_path))
  done = run_script(
    read('compute-engine.sh'), tmp_path, 'keep', HOSTS='2', PAUSE='0'
  )
  assert done.returncode == status, done.stderr
  calls = (tmp_path / 'calls').read_text()
  assert calls.count('managed resize atm-20b') == slices
  assert calls.count('venv --clear') == 2 * slices
  assert calls.count('atm pretrain') == len(statuses)
  assert calls.splitlines()[-1].startswith(
    'compute instance-groups managed delete'
  )


def test_a_slice_that_cannot_be_made_is_tried_again(tmp_path):
  """Fault seen: a run on the hosts of a slice that was not whole."""
  write_program(
    tmp_path / 'gcloud',
    f'echo "$*" >> {tmp_path}/calls\n'
    f'case "$*" in *"managed create"*) echo x >> {tmp_path}/tries\n'
    f'[ $(wc -l < {tmp_path}/tries) = 3 ] || exit 1 ;;\n'
    '*list-instances*) printf "a\\nb\\n" ;; esac',
  )
  done = run_script(
    read('compute-engine.sh'), tmp_path, 'keep', HOSTS='2', PAUSE='0'
  )
  assert done.returncode == 0
  assert (tmp_path / 'calls').read_text().count('atm pretrain') == 2


def test_the_command_of_the_hosts_is_one_of_atm(bound):
  """Its slice is that of its pods file."""
  text = read('compute-engine.sh')
  value = lambda name: re.search(rf"^{name}=\$\{{{name}:-'?([^}}']*)", text,
                                 re.M)[1]  # fmt: skip
  arguments = shlex.split(value('COMMAND'))
  assert arguments.pop(0) == '.venv/bin/atm'
  mine = [x for x in arguments if x != '--gin_file=run.gin']
  topology = bound([*mine, "--gin.MODEL_DIR='x'"])('TOPOLOGY')
  pod = hardware.parse_pod(topology)
  assert value('TOPOLOGY') == 'x'.join(map(str, pod.shape))
  assert int(value('HOSTS')) * 4 == pod.chips
  assert f'-{pod.kind}' in value('IMAGE')


def write_program(path, text: str) -> None:
  """Writes a shell script that may be run."""
  path.write_text(f'#!/bin/bash\n{text}\n')
  path.chmod(path.stat().st_mode | stat.S_IEXEC)


def run_script(text, folder, *arguments, **environment):
  """Runs a bash script, with the programs of a folder before others."""
  path = folder / 'script'
  path.write_text(text)
  search = f'{folder}:{os.environ["PATH"]}'
  return subprocess.run(
    ['bash', path, *arguments],
    env={**os.environ, 'PATH': search, **environment},
    capture_output=True, text=True, timeout=60,
  )  # fmt: skip
