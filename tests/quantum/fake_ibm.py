"""IBM's service on localhost, as far as its client asks for it over HTTP.

The address for IAM tokens, the list of backends, a backend's configuration, properties and status, the usage of the
instance, and jobs: sent, listed by tag, asked for, with results and metrics.  Jobs of the client's "executor" program
are run on perfect qubits, seeded by what they ask for.
"""

import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import jwt
import numpy as np
from ibm_quantum_schemas.common import CompressedTensorModel
from ibm_quantum_schemas.executor.version_2_0 import (
    ItemMetadataModel,
    MetadataModel,
    QuantumProgramResultItemModel,
    QuantumProgramResultModel,
)
from qiskit_ibm_runtime.fake_provider.executor.broadcast_sample import broadcast_sample
from qiskit_ibm_runtime.fake_provider.fake_backend import FakeBackendV2
from qiskit_ibm_runtime.quantum_program import QuantumProgram
from qiskit_ibm_runtime.quantum_program.params_converters import QUANTUM_PROGRAM_PARAMS_CONVERTERS
from samplomatic.quantum_program import CircuitItem, SamplexItem

from cua.quantum.sampler import EngineSampler

API_KEY = "planted-5ecre7-0123456789"  # too short to look like one
CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/0123456789abcdef:01234567-89ab-cdef-0123-456789abcdef::"
DROP, CUT = 0, -1  # in place of an HTTP status: no answer, and half of one
DONE = {"status": "Completed"}


@dataclass
class Job:
    """One job, as it came in."""

    body: dict[str, Any]
    created: str
    id: str = field(default_factory=lambda: uuid4().hex[:20])

    def program(self) -> QuantumProgram:
        """What is to be run, decoded by the client's own schema."""
        converter = QUANTUM_PROGRAM_PARAMS_CONVERTERS[self.body["params"]["schema_version"]]
        return converter.decoder(converter.model.model_validate(self.body["params"]))[0]


class FakeIBM:
    """Serves while it is a context.

    Args:
        device: whose configuration and calibration are told, under the name ``ibm_...`` and as its mock.

    Attributes:
        url: where it is.
        iam_url: where it gives tokens.
        fault: called with a request ("POST /jobs", "GET /jobs/0123456789/results"; without its query) before it is
            served, and, with ``True``, between that and the answer.  Returns an HTTP status to answer with instead,
            ``DROP`` to close the connection, ``CUT`` to close it in mid-answer, or ``None``.
        jobs: in the order in which they came.
        state: called with the number of a job in that order; how it stands.
        calibrations: times of calibration, in order; the newest before the time that is asked about is told, of past
            ones no more than that.
        lifetime_s: of tokens.  IBM's client takes new ones 10 s before.
        locked: whether no credentials are good.  Answers to bad ones repeat them, to see who tells.
        quoted: what an answer says that ``fault`` asked for.
        requests: that were made.
    """

    def __init__(self, device: FakeBackendV2) -> None:
        folder = Path(device.dirname)
        self._configuration = json.loads((folder / device.conf_filename).read_text())
        self._properties = json.loads((folder / device.props_filename).read_text())
        self._name = self._configuration["backend_name"]
        self._tokens: set[str] = set()
        self.fault: Callable[[str, bool], int | None] = lambda request, served: None
        self.state: Callable[[int], dict[str, Any]] = lambda number: DONE
        self.calibrations = [datetime.fromisoformat(self._properties["last_update_date"]).astimezone(UTC)]
        self.jobs: list[Job] = []
        self.lifetime_s, self.locked, self.quoted = 3600, False, "as asked for"
        self.requests: list[str] = []

    def __enter__(self) -> "FakeIBM":
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # headers and body in one packet: the second of two waits 40 ms for the first
            do_GET = do_POST = lambda handler: self._serve(handler)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.iam_url = f"{self.url}/iam"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        address = urlsplit(handler.path)
        request = f"{handler.command} {address.path}"
        self.requests.append(request)
        status = self.fault(request, False)
        content: Any = {"errors": [{"message": self.quoted}]}
        if status is None:
            try:
                status, content = self._answer(request, parse_qs(address.query), body, handler.headers)
            except Exception as error:  # of this file; no client tries again after it
                status, content = 400, {"errors": [{"message": repr(error)}]}
            status = fault if (fault := self.fault(request, True)) is not None else status
        answer = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        answer = b"" if status == 204 else answer
        if status != DROP:
            handler.send_response(200 if status == CUT else status)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(answer)))
            handler.end_headers()
            handler.wfile.write(answer[: len(answer) // 2] if status == CUT else answer)
        if status in (DROP, CUT):
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True

    def _answer(self, request: str, query: dict[str, list[str]], body: bytes, headers: Any) -> tuple[int, Any]:
        match request.replace("/", " ").split():
            case ["POST", "iam", "identity", "token"]:
                return self._new_token(parse_qs(body.decode())["apikey"][0])
            case _ if self.locked or headers["Service-CRN"] != CRN or headers["Authorization"] not in self._tokens:
                quoted = f"{headers['Authorization']}, key {API_KEY}, instance {headers['Service-CRN']}: refused"
                return 401, {"errors": [{"code": 1200, "message": quoted}]}
            case ["GET", "instances", "usage"]:
                return 200, {"usage_consumed_seconds": 1, "usage_limit_seconds": 600, "usage_limit_reached": False}
            case ["GET", "backends"]:
                names = [(self._name, "real"), (self._mock(), "mock")]
                devices = [{"name": n, "class": kind, "status": {"name": "online"}} for n, kind in names]
                return 200, {"devices": devices if "include_mocks" in query else devices[:1]}
            case ["GET", "backends", name, about] if name in (self._name, self._mock()):
                return 200, self._about(name, about, query)
            case ["POST", "jobs"]:
                self.jobs.append(Job(json.loads(body), _now()))
                return 200, {"id": self.jobs[-1].id, "backend": self.jobs[-1].body["backend"]}
            case ["GET", "jobs"]:
                found = [self._told(job) for job in self.jobs if set(query["tags"]) <= set(job.body.get("tags", []))]
                if "include_mocks" not in query:
                    found = [job for job in found if job["backend"] == self._name]
                return 200, {"jobs": found[: int(query["limit"][0])], "count": len(found)}
            case ["GET", "jobs", job_id, *about]:
                for job in self.jobs:
                    if job.id == job_id:
                        return 200, self._result(job) if about == ["results"] else self._told(job)
        return 404, {"errors": [{"message": f"{request}: not found"}]}

    def _new_token(self, api_key: str) -> tuple[int, dict[str, Any]]:
        if self.locked or api_key != API_KEY:
            return 400, {"errorCode": "BXNIM0415E", "errorMessage": f"API key {api_key} could not be found"}
        times = {"iat": int(time.time()), "exp": int(time.time()) + self.lifetime_s}
        token = jwt.encode(times, "of the server, thirty-two bytes long", algorithm="HS256")
        self._tokens.add(f"Bearer {token}")
        return 200, {"access_token": token, "refresh_token": "none", "expires_in": self.lifetime_s}

    def _mock(self) -> str:
        return self._name.replace("ibm_", "mock_")

    def _about(self, name: str, about: str, query: dict[str, list[str]]) -> dict[str, Any]:
        if about == "status":
            return {"state": True, "status": "active", "length_queue": 0, "backend_version": "1.0.0"}
        if about == "configuration":
            return self._configuration | {"backend_name": name}
        asked = datetime.fromisoformat(query.get("updated_before", [_now()])[0])
        newest = [time for time in self.calibrations if time <= asked][-1]
        rest = {"qubits": [], "gates": []} if "updated_before" in query else {}  # which the client takes long to read
        return self._properties | {"last_update_date": newest.isoformat()} | rest

    def _told(self, job: Job) -> dict[str, Any]:
        """What is said of a job, its metrics among it."""
        state = self.state(self.jobs.index(job))
        return {
            "id": job.id,
            "backend": job.body["backend"],
            "program": {"id": job.body["program_id"]},
            "tags": job.body.get("tags", []),
            "created": job.created,
            "state": state,
            "timestamps": {"created": job.created, "running": job.created},
            "usage": {"status": "complete" if state == DONE else "pending", "qpu_charge_time_seconds": 1.5},
        }

    def _result(self, job: Job) -> str:
        if self.state(self.jobs.index(job)) != DONE:
            return ""
        program = job.program()
        items = [
            QuantumProgramResultItemModel(results=_outcomes(item, program.shots), metadata=ItemMetadataModel())
            for item in program.items
        ]
        asked = job.body["params"]["quantum_program"]
        return QuantumProgramResultModel(
            data=items,
            metadata=MetadataModel(chunk_timing=[]),
            passthrough_data=asked["passthrough_data"],
            semantic_role=asked["semantic_role"],
        ).model_dump_json()


def _outcomes(item: CircuitItem | SamplexItem, shots: int) -> dict[str, CompressedTensorModel]:
    """Bits of each register, the lowest first; and which of them were flipped, if the item is twirled."""
    arrays = {}
    if isinstance(item, SamplexItem):
        samplex = item.samplex.finalize()
        arrays = dict(broadcast_sample(samplex, item.samplex_arguments, item.shape, np.random.default_rng(0)))
    values = arrays.pop("parameter_values") if arrays else item.circuit_arguments
    (result,) = EngineSampler(None).run([(item.circuit, values, shots)]).result()
    arrays |= {name: bits.to_bool_array(order="little") for name, bits in result.data.items()}
    return {name: CompressedTensorModel.from_numpy(array) for name, array in arrays.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat()
