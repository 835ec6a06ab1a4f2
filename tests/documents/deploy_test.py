"""Files of deploy/ that serve fit one another, and `atm serve`."""

import os
import re

import pytest
import yaml

import gin
from atm.cli import gin_config, gin_files, gin_reader, main, path_checks

from document_blocks import ROOT

DEPLOY = f'{ROOT}/deploy'


def read(name: str) -> str:
  """Returns the text of a file."""
  with open(f'{DEPLOY}/{name}', encoding='utf-8') as f:
    return f.read()


@pytest.fixture(scope='module')
def kinds() -> dict:
  """Objects of Kubernetes, by kind."""
  texts = read('kubernetes.yaml'), read('autoscaling.yaml')
  found = [x for text in texts for x in yaml.safe_load_all(text)]
  return {x['kind'] + ' ' + x['metadata']['name']: x for x in found}


@pytest.fixture
def settings(kinds, tmp_path, monkeypatch) -> dict:
  """The settings of the Deployment, as the command reads them."""
  monkeypatch.setattr(path_checks, 'check_inputs_exist', lambda *_: None)
  path = tmp_path / 'serve.gin'
  path.write_text(kinds['ConfigMap atm-serve']['data']['serve.gin'])
  run, *configuration = main.parse_arguments(['serve', f'--gin_file={path}'])
  gin.clear_config()
  gin_config.apply_config(*configuration, run)
  names = ('MODEL_DIR', 'HOST', 'DRAIN_SECONDS', 'PORT', 'REQUEST_SECONDS',
           'BODY_BYTES')  # fmt: skip
  return {name: gin_config.get_setting(name) for name in names}


def pod_of(kinds) -> tuple[dict, dict]:
  """Returns the pod of the Deployment, and its container."""
  spec = kinds['Deployment atm-serve']['spec']['template']['spec']
  (container,) = spec['containers']
  return spec, container


def test_a_pod_drains_before_it_is_killed(kinds, settings):
  spec, container = pod_of(kinds)
  _, seconds = container['lifecycle']['preStop']['exec']['command']
  needed = int(seconds) + settings['DRAIN_SECONDS']
  assert needed < spec['terminationGracePeriodSeconds']


def test_a_pod_reads_what_is_mounted(kinds, settings):
  spec, container = pod_of(kinds)
  mounted = {x['name']: x['mountPath'] for x in container['volumeMounts']}
  assert {*mounted} == {x['name'] for x in spec['volumes']}
  assert settings['MODEL_DIR'] == mounted['model']
  file = f'--gin_file={mounted["settings"]}/serve.gin'
  assert container['args'] == ['serve', file]
  assert f'JAX_COMPILATION_CACHE_DIR={mounted["cache"]}' in read('Dockerfile')
  (variable,) = container['env']
  with open(f'{ROOT}/atm/cli/serve_command.py', encoding='utf-8') as f:
    assert f"'{variable['name']}'" in f.read()
  key = variable['valueFrom']['secretKeyRef']
  assert key['key'] in kinds[f'Secret {key["name"]}']['stringData']


def test_probes_ask_paths_that_there_are(kinds, settings):
  _, container = pod_of(kinds)
  (port,) = container['ports']
  assert port['containerPort'] == settings['PORT']
  with open(f'{ROOT}/atm/serve/app.py', encoding='utf-8') as f:
    routes = re.findall(r"@app\.get\('(/\w*)'", f.read())
  paths = {}
  for name in ('startup', 'readiness', 'liveness'):
    probe = container[f'{name}Probe']['httpGet']
    paths[name] = probe['path']
    assert probe['path'] in routes and probe['port'] == port['name']
  assert paths['liveness'] == '/live' != paths['readiness']


def test_replicas_follow_a_metric_that_there_is(kinds):
  rule = yaml.safe_load(
    kinds['ConfigMap prometheus-adapter']['data']['config.yaml']
  )['rules'][0]
  (metric,) = re.findall(r'"atm:(\w+)"', rule['seriesQuery'])
  with open(f'{ROOT}/atm/serve/metrics.py', encoding='utf-8') as f:
    assert f"'{metric}'" in f.read()
  scaler = kinds['HorizontalPodAutoscaler atm-serve']['spec']
  (followed,) = scaler['metrics']
  assert followed['pods']['metric']['name'] == rule['name']['as']
  assert scaler['scaleTargetRef']['name'] == 'atm-serve'


def test_the_unit_lets_requests_end(settings):
  unit = read('atm-serve.service')
  (seconds,) = re.findall(r'^TimeoutStopSec=(\d+)$', unit, re.M)
  assert float(seconds) > settings['DRAIN_SECONDS']
  (command,) = re.findall(r'^ExecStart=(.*)$', unit, re.M)
  assert command.split()[:2] == ['/opt/atm/bin/atm', 'serve']


def test_the_images_have_what_an_installation_reads():
  image = read('Dockerfile')
  copied = ' '.join(re.findall(r'^COPY (.*) \S+$', image, re.M)).split()
  assert {'setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'atm', 'gin',
          'tasks', 'requirements'} == {*copied}  # fmt: skip
  (version,) = re.findall(r'^FROM python:([\d.]+)-', image, re.M)
  assert os.path.exists(f'{ROOT}/requirements/lock-{version}.txt')
  stages = re.findall(r'^FROM source AS (\w+)$', image, re.M)
  assert image.count(f'requirements/lock-{version}.txt ') == len(stages)
  with open(f'{ROOT}/setup.py', encoding='utf-8') as f:
    known = re.findall(r"^  '(\w+)': ", f.read(), re.M)
  extras = re.findall(r"'\.\[(.*)\]'", image)
  assert len(extras) == len(stages)
  assert {*','.join(extras).split(',')} <= {*known}
  assert 'ENTRYPOINT ["atm"]' in image  # no shell takes its signals


def test_proxies_wait_as_long_as_requests_take(settings):
  (seconds,) = re.findall(r'proxy_read_timeout (\d+)s;', read('nginx.conf'))
  assert int(seconds) > settings['REQUEST_SECONDS']
  (size,) = re.findall(r'client_max_body_size (\d+)m;', read('nginx.conf'))
  assert int(size) * 2**20 >= settings['BODY_BYTES']
  assert 'proxy_buffering off;' in read('nginx.conf')
  assert 'flush_interval -1' in read('Caddyfile')


def test_settings_of_serve_are_those_named():
  """Each macro that a comment of these files names is one of the run."""
  known = gin_reader.read_configuration([gin_files.run_file('serve')], [])
  for name in ('kubernetes.yaml', 'autoscaling.yaml', 'atm-serve.service',
               'nginx.conf'):  # fmt: skip
    named = re.findall(r'\b([A-Z]+_[A-Z]+|SLOTS)\b', read(name))
    others = {
      'AF_INET', 'AF_UNIX', 'ATM_API', 'GLIBC_TUNABLES', 'JAX_COMPILATION'
    }  # fmt: skip
    assert {*named} - others <= {*known.macros}, name
