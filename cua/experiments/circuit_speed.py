"""Speed of the quantum wing: preparing circuits, and simulating them with noise; always beside Qiskit, as a ratio."""

import time
from typing import Any

import numpy as np
import torch
from qiskit import QuantumCircuit, transpile
from qiskit.primitives.containers.sampler_pub import SamplerPub
from qiskit.providers import BackendV2
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel
from qiskit_ibm_runtime.fake_provider import FakeMarrakesh
from scipy.stats import special_ortho_group

from cua.experiments.record import Record
from cua.experiments.speed import in_turn, ratio
from cua.quantum.circuits import superdense_angles, superdense_template, textbook_circuit
from cua.quantum.engine import NoisyCircuit
from cua.quantum.layout import disjoint_paths
from cua.quantum.noise import DeviceNoise

NAME = "circuit_speed"
QUESTION = "How fast are circuits prepared and simulated with noise, beside Qiskit's transpiler and Aer?"
BLOCKS = 1024  # of one token of Llama 3.1 8B
REPEATS = 30
AER_CIRCUITS, ENGINE_CIRCUITS = (100, 1_000, 4_000), (1_000, 10_000, 100_000, 1_000_000)


def run() -> dict[str, Any]:
    """Preparation: angles and binding against transpiling one by one.  Simulation: the engine against Aer."""
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "blocks": BLOCKS,
                "repeats": REPEATS,
                "aer_circuits": AER_CIRCUITS,
                "engine_circuits": ENGINE_CIRCUITS,
                "backend": "fake_marrakesh",
            },
            "seeds": [0],
            "model": {"name": "random blocks and slices", "parameters": 6 * BLOCKS, "dtype": "float64"},
            "data": {},
        }
    )
    backend = FakeMarrakesh()
    place = disjoint_paths(backend, 2)[0]
    for key, measure in (("preparation", _preparation), ("simulation", _simulation)):
        started = time.perf_counter()
        record.add(key, measure(backend, place), time.perf_counter() - started)
    runs = record.result["runs"]
    engine, aer = (max(runs["simulation"][name].values()) for name in ("engine_per_s", "aer_per_s"))
    return record.finish(
        {
            "preparation": ratio(runs["preparation"]["seconds"], "transpiling", "cua", "x faster"),
            "simulation": {"value": engine / aer, "low": None, "high": None, "unit": "x Aer"},
        }
    )


def _preparation(backend: BackendV2, place: tuple[int, int]) -> dict[str, Any]:
    """Seconds for the blocks of one token: angles bound to one transpiled circuit, and (from one) transpiling each."""
    x = np.random.default_rng(0).normal(size=(BLOCKS, 4))
    q = special_ortho_group.rvs(4, size=BLOCKS, random_state=0)
    isa = transpile(superdense_template(), backend, initial_layout=list(place))
    textbook = iter(zip(x, q, strict=True))

    def cua() -> None:
        SamplerPub.coerce((isa, superdense_angles(x, q)), shots=8192)

    def transpiling() -> None:
        transpile(textbook_circuit(*next(textbook)), backend, optimization_level=3, seed_transpiler=0)

    seconds = in_turn({"cua": cua, "transpiling": transpiling}, REPEATS)
    return {"seconds": seconds | {"transpiling": [BLOCKS * s for s in seconds["transpiling"]]}}


def _simulation(backend: BackendV2, place: tuple[int, int]) -> dict[str, Any]:
    """Circuits a second on one pair: Aer's density matrices (one job, bound parameters, all cores) and the engine."""
    rng = np.random.default_rng(0)
    local = QuantumCircuit(backend.num_qubits, 2)
    local.compose(superdense_template(), list(place), [0, 1], inplace=True)
    model = NoiseModel.from_backend(backend)
    aer = AerSimulator(method="density_matrix", noise_model=model, max_parallel_experiments=0)
    engine = NoisyCircuit(superdense_template(), DeviceNoise(backend), [place])
    result: dict[str, dict[str, float]] = {"aer_per_s": {}, "engine_per_s": {}}
    for n in AER_CIRCUITS:
        angles = rng.uniform(-np.pi, np.pi, (n, 6))
        binds = {p: angles[:, i].tolist() for i, p in enumerate(local.parameters)}
        started = time.perf_counter()
        outcome = aer.run([local], parameter_binds=[binds], shots=1).result()
        result["aer_per_s"][str(n)] = n / (time.perf_counter() - started)
        if not outcome.success:
            raise RuntimeError(f"Aer: {outcome.status}")
    for n in ENGINE_CIRCUITS:
        angles = torch.from_numpy(rng.uniform(-np.pi, np.pi, (1, n, 6)))
        engine.probabilities(angles[:, :1000])
        started = time.perf_counter()
        engine.probabilities(angles)
        result["engine_per_s"][str(n)] = n / (time.perf_counter() - started)
    return result
