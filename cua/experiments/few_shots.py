"""How few shots are enough to read blocks in one layer?

The penalty in perplexity of reading amplitudes, signs and all, from a few shots of each block and slice: on perfect
qubits and with a device's noise, against the same adapter computed exactly; on the text that chooses.
"""

from contextlib import ExitStack
from typing import Any

from qiskit_ibm_runtime.fake_provider import FakeMarrakesh

from cua.experiments.bench import Bench, run_of
from cua.experiments.noise_frontier import CUTOFF, WINDOWS, deal
from cua.experiments.protocol import change_over_seeds_and_text, mean_interval, percent_change
from cua.experiments.record import ADAPTERS, Record, adapter_digests
from cua.experiments.trained import attached
from cua.experiments.v_proj import BOUNDED
from cua.hybrid import run_on_circuits
from cua.llm.data import evenly
from cua.llm.evaluate import perplexity
from cua.llm.models import identity
from cua.llm.prefix import SplitModel
from cua.quantum.blocks import Execution
from cua.quantum.layout import disjoint_paths
from cua.quantum.noise import DeviceNoise

NAME = "few_shots"
QUESTION = "How few shots are enough to read blocks in one layer, on perfect qubits and on noisy ones?"
SHOTS = (4, 16, 64, 512)  # of each block and slice, half of them in each of two settings
QUBITS = ("perfect", "fake_marrakesh")
SEEDS = (0, 1, 2)


def run() -> dict[str, Any]:
    """Every number of shots on the same windows, spread evenly over the text.

    Raises:
        FileNotFoundError: if an adapter is missing, naming the experiment that trains it.
    """
    folders = {seed: f"{BOUNDED.name}/exact-seed{seed}" for seed in SEEDS}
    adapters = adapter_digests(folders.values(), ADAPTERS)
    backend = FakeMarrakesh()
    noise, chains = DeviceNoise(backend), disjoint_paths(backend, 2, cutoff=CUTOFF)
    bench = Bench.prepare(test=False)
    pick = evenly(len(bench.tokens["selection"]), WINDOWS)
    ids = bench.tokens["selection"][pick]
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "windows": pick.tolist(),
                "shots": SHOTS,
                "qubits": QUBITS,
                "cutoff": CUTOFF,
                "adapters_sha256": adapters,
            },
            "seeds": SEEDS,
            "model": identity(bench.model),
            "data": {"selection": bench.data["selection"]},
        }
    )
    split = SplitModel(bench.model, min(BOUNDED.adapter.layers))
    prefix = split.prefix(ids, progress=True)

    def measure(seed: int | None = None, qubits: str | None = None, shots: int | None = None) -> dict[str, Any]:
        with ExitStack() as stack:
            if seed is not None:
                adapter = stack.enter_context(attached(bench.model, ADAPTERS / folders[seed]))
            if qubits is not None:
                on_device = {"noise": noise, "places": deal(chains, seed)} if qubits != "perfect" else {}
                stack.enter_context(run_on_circuits(adapter, Execution(shots=shots, seed=seed, **on_device)))
            return run_of(perplexity(bench.model, ids, split=split, prefix=prefix))

    work: dict[str, tuple[Any, ...]] = {"base": ()}
    for seed in SEEDS:
        work[f"exact/{seed}"] = (seed,)
        work |= {f"{qubits}/{shots}/{seed}": (seed, qubits, shots) for qubits in QUBITS for shots in SHOTS}
    if not record.fill(work, lambda key: measure(*work[key])):
        return record.result
    return record.finish(headline(record.result["runs"]))


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What exact blocks change, and the penalty of reading them from so many shots."""
    exact = [runs[f"exact/{seed}"] for seed in SEEDS]
    numbers = {"change_exact": mean_interval([percent_change(run, runs["base"]) for run in exact], "%")}
    for qubits in QUBITS:
        for shots in SHOTS:
            read = [runs[f"{qubits}/{shots}/{seed}"] for seed in SEEDS]
            pairs = list(zip(read, exact, strict=True))
            numbers[f"penalty_{qubits}_{shots}"] = change_over_seeds_and_text([pairs])
    return numbers
