"""The blocks of one layer as circuits: prepared, run on perfect or noisy qubits, mitigated, read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from qiskit import QuantumCircuit

from cua.quantum.circuits import (
    SUPERDENSE_OUTCOMES,
    preparation_angles,
    superdense_angles,
    superdense_template,
    textbook_template,
)
from cua.quantum.engine import NoisyCircuit
from cua.quantum.estimate import MANY, QUARTER_TURN, sample, sign_constrained, sign_faithful
from cua.quantum.mitigation import (
    depolarising_response,
    depolarising_strength,
    inverse_response,
    mitigate,
    readout_response,
)
from cua.quantum.noise import DeviceNoise

CIRCUITS = ("superdense", "textbook")
COUNTS_READOUTS = ("sign-faithful", "sign-constrained", "true-signs")  # from counts; cua.readout has those of products
MITIGATIONS = ("none", "readout", "readout+depolarising")


@dataclass(frozen=True)
class Execution:
    """How every block is run.

    Attributes:
        circuit: "superdense" (4x4 blocks only) or "textbook".
        readout: "sign-faithful" (4x4 only; two settings), "sign-constrained" (the paper's), or "true-signs": magnitudes
            from the circuit, signs from the exact product, to separate noise from the question of signs.
        shots: of one block and slice, divided evenly between the settings; ``None`` for infinitely many.
        noise: of the device, or ``None`` for perfect gates and measurements.
        places: chains of coupled physical qubits, in the order of the circuit's; block i runs on chain i modulo their
            number.
        mitigation: "none", "readout" or "readout+depolarising".
        seed: of the shots.  Runs that differ in nothing but mitigation correct the same counts.

    Raises:
        ValueError: for an unknown name, shots below two, a negative seed, noise without places, or mitigation without
            noise.
    """

    circuit: str = "superdense"
    readout: str = "sign-faithful"
    shots: int | None = 8192
    noise: DeviceNoise | None = None
    places: Sequence[tuple[int, ...]] = ()
    mitigation: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for field, known in (("circuit", CIRCUITS), ("readout", COUNTS_READOUTS), ("mitigation", MITIGATIONS)):
            if getattr(self, field) not in known:
                raise ValueError(f"unknown {field} {getattr(self, field)!r}; known: {', '.join(known)}")
        object.__setattr__(self, "places", tuple(tuple(map(int, place)) for place in self.places))
        if self.shots is not None and (type(self.shots) is not int or self.shots < 2):
            raise ValueError(f"shots={self.shots!r}: expected a whole number, at least 2, or None for infinitely many")
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"seed={self.seed!r}: expected a whole number, at least 0")
        if self.noise is not None and not self.places:
            raise ValueError("noise needs places, the physical qubits: see cua.quantum.layout.disjoint_paths")
        if self.noise is None and self.mitigation != "none":
            raise ValueError(f"mitigation={self.mitigation!r} without noise: there is nothing to undo")


class BlockRunner:
    """Runs the blocks of one layer.

    Args:
        q: ``(n_blocks, b, b)`` orthogonal, b a power of two: the circuit has log2(b) qubits.
        execution: how.
        stream: number of this layer and stride, so that each draws shots of its own.

    Raises:
        ValueError: if the superdense circuit or the sign-faithful readout is asked for blocks other than 4x4, one turns
            so far that its global sign cannot be known (``|K|_2 >= 2``), a place does not fit the circuit or the
            device, or nothing is left of a signal that is to be mitigated.
    """

    def __init__(self, q: NDArray[np.float64], execution: Execution, stream: int = 0) -> None:
        self.q, self.execution = np.asarray(q, dtype=float), execution
        n_blocks, b, _ = self.q.shape
        for field, wanted in (("circuit", "superdense"), ("readout", "sign-faithful")):
            if getattr(execution, field) == wanted and b != 4:
                raise ValueError(
                    f"{field}={wanted!r} is for 4x4 blocks; these are {b}x{b}: "
                    "take circuit='textbook' and readout='sign-constrained' or 'true-signs'"
                )
        if execution.readout == "sign-faithful":
            smallest = np.linalg.eigvalsh((self.q + self.q.swapaxes(1, 2)) / 2)[:, 0]
            if (smallest <= 0).any():
                raise ValueError(
                    f"{(smallest <= 0).sum()} of {n_blocks} blocks turn by a right angle or more (|K|_2 >= 2), so "
                    "<x, Qx> > 0 does not hold and the global sign is unknown; train with max_k_norm below 2"
                )
        self.rng = np.random.default_rng((execution.seed, stream))
        self.settings = [self.q] if execution.readout != "sign-faithful" else [self.q, QUARTER_TURN @ self.q]
        places = execution.places or (tuple(range(b.bit_length() - 1)),)
        self.places = [places[i % len(places)] for i in range(n_blocks)]
        if execution.circuit == "superdense":
            everywhere = self.places if execution.noise else self.places[:1]
            self.circuits = [[NoisyCircuit(superdense_template(), execution.noise, everywhere)]] * len(self.settings)
        else:
            self.circuits = [
                [
                    NoisyCircuit(_textbook(block.tobytes(), b), execution.noise, [place] if execution.noise else ())
                    for block, place in zip(blocks, self.places, strict=True)
                ]
                for blocks in self.settings
            ]
        self.inverses = [self._inverse(setting) for setting in range(len(self.settings))]

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the readout makes of the counts for slices ``(tokens, n_blocks, b)``, in the same shape.

        Sign-faithful and with true signs, that is an estimate of Q x; sign-constrained, of its magnitudes with the
        signs of x.

        Raises:
            ValueError: for slices of another shape.
        """
        if x.ndim != 3 or x.shape[1:] != self.q.shape[:2]:
            raise ValueError(f"slices have shape {x.shape}; expected (tokens, {', '.join(map(str, self.q.shape[:2]))})")
        x, seen = self.measure(x)
        counts = [
            c if inverse is None else mitigate(c, inverse) for c, inverse in zip(seen, self.inverses, strict=True)
        ]
        match self.execution.readout:
            case "sign-faithful":
                return sign_faithful(x, *counts, mean_overlap=np.trace(self.q, axis1=1, axis2=2) / 4)
            case "sign-constrained":
                return sign_constrained(x, counts[0])
            case "true-signs":
                return np.copysign(sign_constrained(x, counts[0]), np.einsum("nij,tnj->tni", self.q, x))

    def measure(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[NDArray[Any]]]:
        """The slices that went in, and their counts in every setting, ``(tokens, n_blocks, b)`` each."""
        probabilities = (self.probabilities(x, setting) for setting in range(len(self.settings)))
        if self.execution.shots is None:
            return x, [MANY * p for p in probabilities]
        return x, [sample(p, self.execution.shots // len(self.settings), self.rng) for p in probabilities]

    def probabilities(self, x: NDArray[np.float64], setting: int = 0) -> NDArray[np.float64]:
        """Probabilities of the components, ``(tokens, n_blocks, b)``, noise and readout errors included."""
        slices = np.moveaxis(x, 1, 0)  # (n_blocks, tokens, b)
        if self.execution.circuit == "superdense":
            (circuit,) = self.circuits[setting]
            angles = superdense_angles(slices, self.settings[setting][:, None])
            if len(circuit.places) == 1:
                p = circuit.probabilities(angles.reshape(1, -1, 6)).view(*angles.shape[:2], 4)
            else:
                start = self._start()
                if start is not None:
                    start = torch.from_numpy(start)[:, None].expand(-1, angles.shape[1], -1)
                p = circuit.probabilities(angles, start=start)
            return np.moveaxis(p.numpy()[..., list(SUPERDENSE_OUTCOMES)], 0, 1)
        angles = preparation_angles(slices)
        parts = [c.probabilities(a[None])[0] for c, a in zip(self.circuits[setting], angles, strict=True)]
        return torch.stack(parts, 1).numpy()

    def _start(self) -> NDArray[np.float64] | None:
        """Probabilities of the states that each block starts in, ``(n_blocks, 4)``; ``None``: in ``|00>``."""
        return None

    def _inverse(self, setting: int) -> NDArray[np.float64] | None:
        """Inverse of the response matrix of every block, ``(n_blocks, b, b)`` in the order of components."""
        noise, mitigation = self.execution.noise, self.execution.mitigation
        if mitigation == "none":
            return None
        b = self.q.shape[-1]
        order = list(SUPERDENSE_OUTCOMES) if self.execution.circuit == "superdense" else list(range(b))
        circuits = self.circuits[setting]
        bits = [c.bits for c in circuits] if len(circuits) > 1 else [circuits[0].bits] * len(self.q)
        readout = np.stack([readout_response(noise, p, w) for p, w in zip(self.places, bits, strict=True)])
        readout = readout[:, order][:, :, order]
        inverse = self._invert(readout)
        if mitigation == "readout":
            return inverse
        x = np.random.default_rng(0).normal(size=(64, len(self.q), b))
        noisy = (inverse @ self.probabilities(x, setting)[..., None])[..., 0]
        ideal = np.einsum("nij,tnj->tni", self.settings[setting], x) ** 2 / (x**2).sum(-1, keepdims=True)
        strengths = [depolarising_strength(noisy[:, i], ideal[:, i]) for i in range(len(self.q))]
        return self._invert(readout @ np.stack([depolarising_response(s, b) for s in strengths]))

    def _invert(self, responses: NDArray[np.float64]) -> NDArray[np.float64]:
        try:
            return inverse_response(responses)
        except ValueError as error:
            n = len(self.execution.places)
            raise ValueError(
                f"mitigation={self.execution.mitigation!r}: {error} (matrix i is of block i, on places[i % {n}]); "
                "leave bad places out, as disjoint_paths(..., cutoff=5) does"
            ) from None


@lru_cache(maxsize=2048)  # transpiling a block takes 20 ms for two qubits, ten times that for four
def _textbook(q: bytes, b: int) -> QuantumCircuit:
    return textbook_template(np.frombuffer(q).reshape(b, b))
