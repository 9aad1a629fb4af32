"""A service on disk, with the interface of IBM's client, that fails in the ways a real one does.

Jobs live in files, so that they outlive the process that sent them.  What a job gives depends on its parameters alone.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import numpy as np
from qiskit.primitives import BaseSamplerV2, BitArray, DataBin, PrimitiveResult, SamplerPubResult
from qiskit.primitives.containers.sampler_pub import SamplerPub
from qiskit_ibm_runtime.exceptions import RuntimeInvalidStateError, RuntimeJobFailureError

from cua.quantum.sampler import EngineSampler

TOKEN = "planted-5ecre7-0123456789abcdefghijklmnopqrstuvwxyz"


class FakeService:
    """Attributes:
    fault: called with the name of an operation ("run", "ran", "job", "jobs", "result", "usage") before it happens
        ("ran": after the job was taken, before the answer); may raise, or return a word that changes a result:
        "error", "cancelled", "partial", "shots".
    """

    def __init__(self, folder: Path, fault: Callable[[str], str | None] = lambda operation: None) -> None:
        self.folder, self.fault = Path(folder), fault
        self.folder.mkdir(parents=True, exist_ok=True)

    def active_account(self) -> dict[str, str]:
        return {"token": TOKEN, "instance": "crn:v1:fake:0123456789012345678901234567"}

    def job(self, job_id: str) -> "FakeJob":
        self.fault("job")
        return FakeJob(self, job_id)

    def jobs(self, job_tags: list[str], limit: int = 10) -> list["FakeJob"]:
        self.fault("jobs")
        known = [json.loads(path.read_text()) for path in self.folder.glob("*.json")]
        return [FakeJob(self, job["id"]) for job in known if set(job_tags) <= set(job["tags"])][:limit]


class FakeJob:
    def __init__(self, service: FakeService, job_id: str) -> None:
        self.service, self._id = service, job_id

    def job_id(self) -> str:
        return self._id

    def usage(self) -> float:
        self.service.fault("usage")
        return 1.5

    def result(self) -> PrimitiveResult:
        how = self.service.fault("result")
        if how == "error":
            raise RuntimeJobFailureError("Unable to retrieve job result. Error code 6000; internal error")
        if how == "cancelled":
            raise RuntimeInvalidStateError(f"Unable to retrieve result for job {self._id}. Job was cancelled.")
        with np.load(self.service.folder / f"{self._id}.npz") as stored:
            bits = {name: stored[name] for name in stored.files}
        if how == "partial":
            bits = {name: array[:-1] for name, array in bits.items()}
        if how == "shots":
            bits = {name: array[:, :-7] for name, array in bits.items()}
        sizes = json.loads((self.service.folder / f"{self._id}.json").read_text())["sizes"]
        data = DataBin(**{name: BitArray(array, sizes[name]) for name, array in bits.items()})
        return PrimitiveResult([SamplerPubResult(data)])


class FakeSampler(BaseSamplerV2):
    """IBM's sampler as far as it is used, on perfect qubits."""

    def __init__(self, service: FakeService) -> None:
        self.service = service
        self.options = SimpleNamespace(environment=SimpleNamespace(job_tags=[]))

    def run(self, pubs, *, shots=None) -> FakeJob:
        self.service.fault("run")
        (pub,) = [SamplerPub.coerce(pub, shots) for pub in pubs]
        (result,) = EngineSampler(None).run([pub]).result()
        job_id, registers = uuid4().hex[:20], {r.name: r.size for r in pub.circuit.cregs}
        path = self.service.folder / f"{job_id}.npz"
        np.savez(path, **{name: result.data[name].array for name in registers})
        job = {"id": job_id, "tags": self.options.environment.job_tags, "sizes": registers}
        part = path.with_suffix(".part")
        part.write_text(json.dumps(job))
        part.rename(path.with_suffix(".json"))  # from here on the service knows the job
        self.service.fault("ran")
        return FakeJob(self.service, job_id)
