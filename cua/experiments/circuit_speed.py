"""Speed of the quantum wing: preparing circuits, and simulating them with noise; always beside Qiskit, as a ratio."""

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from qiskit import generate_preset_pass_manager
from qiskit.primitives.containers.sampler_pub import SamplerPub
from qiskit.providers import BackendV2
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel
from qiskit_aer.noise.device import basic_device_gate_errors, basic_device_readout_errors
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
CIRCUITS = {1_000: 10, 10_000: 10, 100_000: 4, 1_000_000: 2}  # and how often each number is timed


def run() -> dict[str, Any]:
    """Preparation: angles and a PUB against transpiling one by one.  Simulation: the engine against Aer."""
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "blocks": BLOCKS,
                "repeats": REPEATS,
                "circuits": CIRCUITS,
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
        record.add(key, {"seconds": measure(backend, place)}, time.perf_counter() - started)
    runs = {key: run["seconds"] for key, run in record.result["runs"].items()}
    return record.finish(
        {"preparation": ratio(runs["preparation"], "transpiling", "cua", "x faster")}
        | {
            f"{label}_{n}": ratio(seconds, "Aer", engine, "x Aer")
            for n, seconds in runs["simulation"].items()
            for label, engine in (("simulation", "engine"), ("simulation_float32", "engine, float32"))
        }
    )


def _preparation(backend: BackendV2, place: tuple[int, int]) -> dict[str, list[float]]:
    """Seconds for the blocks of one token, one setting, on a given pair.

    Computing the angles and putting them beside one transpiled circuit, in a PUB, which is what a sampler takes; and
    transpiling, with a pass manager made once, one block after another, each time times 1,024.
    """
    x = np.random.default_rng(0).normal(size=(BLOCKS, 4))
    q = special_ortho_group.rvs(4, size=BLOCKS, random_state=0)
    passes = generate_preset_pass_manager(3, backend, initial_layout=list(place), seed_transpiler=0)
    isa = passes.run(superdense_template())
    textbook = iter(zip(x, q, strict=True))

    def cua() -> None:
        SamplerPub.coerce((isa, superdense_angles(x, q)), shots=8192)

    def transpiling() -> None:
        passes.run(textbook_circuit(*next(textbook)))

    seconds = in_turn({"cua": cua, "transpiling": transpiling}, REPEATS)
    return seconds | {"transpiling": [BLOCKS * s for s in seconds["transpiling"]]}


def _simulation(backend: BackendV2, place: tuple[int, int]) -> dict[str, dict[str, list[float]]]:
    """Seconds for growing numbers of circuits on one pair, the engine and Aer's density matrices in turn.

    Aer gets what we found to be fastest: one job, all cores, angles bound at run time, and a circuit of two qubits with
    the pair's noise moved onto them.  (Angles bound before the run, on the device's own qubits, take 20 to 30 times as
    long, and leave the process in a state in which torch's second thread is of no use any more.)
    """
    template = superdense_template()
    pair_noise = NoiseModel(basis_gates=["rz", "sx", "x", "cz"])
    for name, qubits, error in basic_device_gate_errors(target=backend.target):
        if set(qubits) <= set(place):
            pair_noise.add_quantum_error(error, name, [place.index(qubit) for qubit in qubits])
    for (qubit,), error in basic_device_readout_errors(target=backend.target):
        if qubit in place:
            pair_noise.add_readout_error(error, [place.index(qubit)])
    aer = AerSimulator(
        method="density_matrix",
        max_parallel_experiments=0,
        noise_model=pair_noise,
        runtime_parameter_bind_enable=True,
    )
    engine = NoisyCircuit(template, DeviceNoise(backend), [place])

    def run_aer(angles: NDArray[np.float64]) -> None:
        binds = {p: angles[:, i].tolist() for i, p in enumerate(template.parameters)}
        outcome = aer.run([template], parameter_binds=[binds], shots=1).result()
        if not outcome.success or len(outcome.results) != len(angles):
            raise RuntimeError(f"Aer: {outcome.status}")

    seconds = {}
    for n, repeats in CIRCUITS.items():
        angles = np.random.default_rng(0).uniform(-np.pi, np.pi, (n, 6))
        calls = {
            "engine": lambda angles=angles: engine.probabilities(angles[None]),
            "engine, float32": lambda angles=angles: engine.probabilities(angles[None], torch.float32),
            "Aer": lambda angles=angles: run_aer(angles),
        }
        seconds[str(n)] = in_turn(calls, repeats, warm_s=1.0)
    return seconds
