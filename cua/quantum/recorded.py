"""What the journal of a run holds, for another process, years later."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.providers import BackendV2

from cua.quantum.journal import JournalError, read_array, read_events
from cua.quantum.packing import PackedCircuit


def circuit_of(folder: str | Path, backend: BackendV2) -> PackedCircuit | None:
    """The circuit that a journal was begun with, on its pairs; ``None`` if there is no journal yet.

    A device is calibrated anew every day, and the best pairs of tomorrow are others than those of today.  A run goes on
    with its own.

    Raises:
        ValueError: if the journal is of another device, or the device has lost one of the couplings.
    """
    if not (events := read_events(Path(folder))):
        return None
    header = events[0]
    if header["device"] != backend.name:
        raise ValueError(f"{folder} is the journal of a run on {header['device']}, not on {backend.name}")
    return PackedCircuit(backend, [tuple(pair) for pair in header["pairs"]], header["rounds"], header["resets"])


def read_calls(folder: str | Path) -> list[dict[str, NDArray[Any]]]:
    """Slices, blocks and counts of a run.

    Returns:
        One dictionary for each pass whose jobs are all done: ``slices`` ``(tokens, n_blocks, 4)``, ``blocks``
        ``(settings, n_blocks, 4, 4)``, ``counts`` ``(settings, tokens, n_blocks, 4)`` in the order of components.
        Blocks are in the order of their slots; where they were dealt by importance, ``order-LLL.npy`` in the folder
        names the block of the layer at each place.

    Raises:
        JournalError: if there is no journal, or a line or a file is damaged.
    """
    folder, calls = Path(folder), []
    if not (events := read_events(folder)):
        raise JournalError(f"{folder} holds no journal")
    for line in (line for line in events if line["event"] == "call"):
        x, q = (read_array(folder, line[name]) for name in ("slices", "blocks"))
        done = [e["job"] for e in events if e["event"] == "counts" and e["call"] == line["call"]]
        if len(done) == line["jobs"]:
            counts = counts_of_call(folder, events, line["call"], len(q), *x.shape[:2])
            calls.append({"slices": x, "blocks": q, "counts": counts})
    return calls


def counts_of_call(
    folder: Path, events: list[dict[str, Any]], call: int, settings: int, tokens: int, n_blocks: int
) -> NDArray[np.int64]:
    """Counts of a pass, ``(settings, tokens, n_blocks, 4)``, from the files of its jobs."""
    lines = {e["job"]: e for e in events if e["event"] == "counts" and e["call"] == call}
    counts = np.concatenate([read_array(folder, lines[job]) for job in sorted(lines)])
    return counts.reshape(settings, tokens, -1, 4)[:, :, :n_blocks].astype(np.int64)
