"""What it costs to read blocks of 2 to 64 components from counts, signs and all, on perfect qubits.

Adapters trained on the exact readout, on one v_proj.  Blocks that turn too far for their global sign to be known are
turned back first, which changes them: what that costs is recorded by itself.
"""

from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cua.experiments.bench import Bench, run_of
from cua.experiments.protocol import change_over_text, mean_interval, percent_change
from cua.experiments.record import ADAPTERS, Record, adapter_digests
from cua.experiments.trained import attached
from cua.experiments.v_proj import BOUNDED, ONE_LAYER
from cua.hybrid import run_blocks
from cua.llm.data import evenly
from cua.llm.evaluate import perplexity
from cua.llm.models import identity
from cua.llm.prefix import SplitModel
from cua.llm.train import bound_k
from cua.quantum.estimate import hadamard, sample, sign_faithful_by_qubit

NAME = "block_readout"
QUESTION = "What do 8,192 shots a block cost, signs read faithfully, for blocks of 2 to 64 components?"
SEEDS, WINDOWS, SHOTS = (0, 1, 2), 16, 8192
(LAYER,), BOUND = ONE_LAYER.adapter.layers, BOUNDED.training.max_k_norm
TRAINED = {4: ONE_LAYER.name} | {b: f"v_proj_{b}x{b}" for b in (2, 8, 16, 32, 64)}
READINGS = ("as trained", "bounded", "sign-faithful")


def counted(
    q: NDArray[np.float64], rng: np.random.Generator, shots: int, x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Outputs of blocks ``(n_blocks, b, b)`` for slices ``(tokens, n_blocks, b)``, each from ``shots`` shots."""
    b = q.shape[-1]
    settings = [np.eye(b), *(hadamard(b, qubit) for qubit in range(b.bit_length() - 1))]
    y = np.einsum("nij,tnj->tni", q, x)
    y[~x.any(-1)] = 1.0  # a slice of zeros prepares no state; its output is zero whatever is counted
    return sign_faithful_by_qubit(
        x, np.stack([sample((y @ turn) ** 2, shots // len(settings), rng) for turn in settings])
    )


def run() -> dict[str, Any]:
    """Every block size, seed and reading on the same windows, spread evenly over the test split.

    Raises:
        FileNotFoundError: if an adapter is missing, naming the experiment that trains it.
    """
    paths = {(b, seed): f"{name}/exact-seed{seed}" for b, name in sorted(TRAINED.items()) for seed in SEEDS}
    adapters = adapter_digests(paths.values())
    bench = Bench.prepare(test=True)
    pick = evenly(len(bench.tokens["test"]), WINDOWS)
    ids = bench.tokens["test"][pick]
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "layer": LAYER,
                "windows": pick.tolist(),
                "shots": SHOTS,
                "bound": BOUND,
                "adapters_sha256": adapters,
            },
            "seeds": SEEDS,
            "model": identity(bench.model),
            "data": {"test": bench.data["test"]},
        }
    )
    split = SplitModel(bench.model, LAYER)
    prefix = split.prefix(ids, progress=True)
    work = {f"{b}/{reading}/{seed}": (b, reading, seed) for b, seed in paths for reading in READINGS}

    def make(key: str) -> dict[str, Any]:
        b, reading, seed = work[key]
        rng = np.random.default_rng(seed)
        with ExitStack() as stack:
            adapter = stack.enter_context(attached(bench.model, ADAPTERS / paths[b, seed]))
            if reading != "as trained":
                bound_k(adapter, BOUND)
            if reading == "sign-faithful":
                stack.enter_context(run_blocks(adapter, lambda q: partial(counted, q, rng, SHOTS)))
            return run_of(perplexity(bench.model, ids, split=split, prefix=prefix))

    if not record.fill(work, make):
        return record.result
    return record.finish(headline(record.result["runs"]))


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Change against the adapter as it was trained: of turning back, and of that and counting; over seeds and text."""
    numbers = {}
    for b in sorted(TRAINED):
        for reading in READINGS[1:]:
            pairs = [(runs[f"{b}/{reading}/{seed}"], runs[f"{b}/as trained/{seed}"]) for seed in SEEDS]
            label = f"{b}x{b}_{reading.replace('-', '_')}"
            numbers[f"penalty_{label}"] = mean_interval([percent_change(*pair) for pair in pairs], "%")
            numbers[f"penalty_over_text_{label}"] = change_over_text(pairs)
    return numbers
