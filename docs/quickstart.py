# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart
#
# This notebook trains a small multilingual encoder-decoder from nothing,
# prompts it, tunes it on pairs and evaluates it. It needs two CPU cores, about
# four minutes, and no data: the text is the Universal Declaration of Human
# Rights in 12 languages, which comes with atm.

# %% [markdown]
# ## Install
#
# The cell does nothing where atm is installed. In a checkout it installs that.

# %%
import importlib.util
import os
import subprocess
import sys

os.environ['PATH'] = f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'
if importlib.util.find_spec('atm') is None:
  source = '..' if os.path.exists('../setup.py') else 'atm-jax'
  subprocess.run(
    [sys.executable, '-m', 'pip', 'install', '--quiet', f'{source}[eval]'],
    check=True,
  )

# %% [markdown]
# ## Pre-train
#
# `models/tiny.gin` is a model of 1.4 million parameters. The command trains a
# SentencePiece vocabulary, tokenizes the text, and trains the model to complete
# texts (denoising) and to continue them (causal language modelling). 200 steps
# take about a minute; `make run` takes 1,400.

# %% language="bash"
# atm pretrain --gin_file=models/tiny.gin --gin.MODEL_DIR="'runs/quickstart'" \
#   --gin.TRAIN_STEPS=200 --gin.DECAY_STEPS=200

# %% [markdown]
# Every run writes a page: losses by objective and language, speed, and samples.

# %%
import html

from IPython.display import IFrame


def show_page(path: str, height: int = 600) -> IFrame:
  """Returns a page to be shown inside the notebook."""
  with open(path, encoding='utf-8') as f:
    page = html.escape(f.read())
  return IFrame('', '100%', height, extras=[f'srcdoc="{page}"'])


show_page('runs/quickstart/report.html')

# %% [markdown]
# ## Prompt
#
# In mode `clm` the decoder continues the input. In mode `denoise` it writes the
# input again, with what is missing. So small a model, after so few steps, has
# learned words and no sense.

# %%
import atm

model = atm.load('runs/quickstart')
model.generate(['All human beings are born', 'Everyone has the'], mode='clm')

# %%
model.generate(['All human are born free and'], mode='denoise')

# %% [markdown]
# The log-probability of a target is the sum over its tokens; the second array
# counts them.

# %%
model.score(['All human beings'] * 2, ['are born free', 'sind frei geboren'])

# %% [markdown]
# ## Tune on pairs
#
# A pair is an input and the answer to it. These pairs ask for the language of
# a sentence. The sentences to evaluate on are not among those to train on.

# %%
import json
import random
from importlib import resources

LANGUAGES = {'de': 'German', 'en': 'English', 'fr': 'French', 'hi': 'Hindi'}
pairs = []
for code, name in LANGUAGES.items():
  text = resources.files('atm_tasks') / 'udhr' / f'{code}.tsv'
  for line in text.read_text('utf-8').splitlines():
    sentence = ' '.join(line.split('\t')[1].split()[:8])
    pairs.append({'input': sentence, 'target': name})
random.Random(0).shuffle(pairs)

os.makedirs('runs/data/pairs', exist_ok=True)
for split, rows in (('validation', pairs[:40]), ('train', pairs[40:])):
  with open(f'runs/data/pairs/{split}.jsonl', 'w', encoding='utf-8') as f:
    f.writelines(f'{json.dumps(row)}\n' for row in rows)
pairs[:3]

# %% language="bash"
# atm finetune --gin.INIT_FROM="'runs/quickstart'" \
#   --gin.MODEL_DIR="'runs/tuned'" --gin.PAIRS="'runs/data/pairs'" \
#   --gin.TRAIN_STEPS=100 --gin.LEARNING_RATE=1e-3

# %%
tuned = atm.load('runs/tuned')
tuned.generate([pair['input'] for pair in pairs[:3]], max_tokens=4)

# %% [markdown]
# ## Evaluate
#
# `atm eval` asks the held-out questions and writes a page, with an interval for
# each score. The model before tuning is asked the same.

# %% language="bash"
# for run in quickstart tuned; do
#   atm eval --gin.SUITE="'mine'" --gin.TASKS="('pairs',)" \
#     --gin.DATA_DIR="'runs/data'" --gin.MODEL_DIR="'runs/$run'" \
#     --gin.TRUNCATE="'end'"
# done

# %%
show_page('runs/tuned/eval/mine/report.html')

# %% [markdown]
# `atm compare` sets the two side by side.

# %% language="bash"
# atm compare \
#   --gin.RUNS="('runs/quickstart/eval/mine', 'runs/tuned/eval/mine')"

# %% [markdown]
# ## Next
#
# - [first-steps.md](first-steps.md): the same with text of your own.
# - [pretraining.md](pretraining.md): all settings of a training run.
# - [finetuning.md](finetuning.md), [decoding.md](decoding.md) and
#   [evaluation.md](evaluation.md): each step in full.
