"""Recorded results: one JSON file an experiment, written after every run, complete enough to check years later.

A result holds the question, the configuration, seeds, identity and SHA-256 of model and data, package versions, git
commit, device, wall time, the raw metrics of every run, and ``headline``: name -> {value, low, high, unit}, the numbers
that chapters quote.  ``status`` is "partial" until every run is in; an interrupted experiment resumes.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from filelock import FileLock, Timeout

from cua.experiments.schema import LATER_PACKAGES, PACKAGES, check

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDS = Path(os.environ.get("CUA_RECORDS") or REPOSITORY / "book")  # elsewhere to try a run again
RESULTS = RECORDS / "results"
ADAPTERS = RECORDS / "adapters"
_CODE = ("cua", "pyproject.toml", "requirements.txt")  # results that are being written are no change of it


def load_result(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """One recorded result.

    Raises:
        FileNotFoundError: naming the command that records it.
    """
    path = folder / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"no recorded result {name!r}; record it with: python -m cua.experiments {name}")
    return json.loads(path.read_text())


def load_complete(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """One recorded result that has all its runs.

    Raises:
        FileNotFoundError, ValueError: if there is none, or not all of it; naming the command that records it.
    """
    result = load_result(name, folder)
    if result["status"] != "complete":
        raise ValueError(f"{name} is not complete; go on with: python -m cua.experiments {name}")
    return result


def adapter_digests(paths: Iterable[str], folder: Path = ADAPTERS) -> dict[str, str]:
    """SHA-256 of the parameters of trained adapters, by their paths ``EXPERIMENT/NAME``.

    Raises:
        FileNotFoundError: if one is missing, naming the experiments that train what is.
    """
    paths = list(paths)
    if missing := [path for path in paths if not (folder / path).is_dir()]:
        names = sorted({path.partition("/")[0] for path in missing})
        raise FileNotFoundError(
            f"{missing[0]} has no adapter; train it with: python -m cua.experiments {' '.join(names)}"
        )
    weights = {path: next((folder / path).glob("*.safetensors")) for path in paths}
    return {path: hashlib.sha256(file.read_bytes()).hexdigest() for path, file in weights.items()}


def digest(value: Any) -> str:
    """SHA-256 of a value's JSON, for what a config would be too long with."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def point(value: float, unit: str) -> dict[str, Any]:
    """A headline number without an interval."""
    return {"value": value, "low": None, "high": None, "unit": unit}


def quote(number: dict[str, Any], digits: int = 2) -> str:
    """A headline number as text, with unit and interval: 95 % unless its experiment says otherwise.

    >>> quote({"value": -13.41, "low": -14.2, "high": -12.6, "unit": "%"}, 1)
    '-13.4 % [-14.2, -12.6]'
    """
    unit = f" {number['unit']}" if number["unit"] != "1" else ""
    text = f"{number['value']:z,.{digits}f}{unit}"  # z: no minus in front of a zero
    if number["low"] is not None:
        text += f" [{number['low']:z,.{digits}f}, {number['high']:z,.{digits}f}]"
    return text


def cell(number: dict[str, Any], digits: int = 2) -> str:
    """As :func:`quote`, for a table that names the unit itself."""
    return quote(number | {"unit": "1"}, digits)


class Record:
    """An experiment in the making; every :meth:`add` leaves a valid file behind.

    Several processes may record one experiment: :meth:`fill` deals the runs out among them.  Processes of one
    ``accelerate launch`` share every run instead, and the first of them writes.

    Args:
        description: name, question, config, seeds, model and data.
        folder: where NAME.json lies.

    Raises:
        ValueError: if a result with another configuration, model or data is already there.
    """

    def __init__(self, description: dict[str, Any], folder: Path = RESULTS) -> None:
        self.path = folder / f"{description['name']}.json"
        self._commit = git_commit()
        fresh = json.loads(json.dumps(description)) | {
            "status": "partial",
            "versions": _versions(),
            "git_commit": self._commit,
            "device": _device(),
            "wall_time_s": 0.0,
            "runs": {},
            "headline": {},
        }
        self.result = fresh
        self._read()
        for key in ("config", "seeds", "model", "data"):
            there, here = self.result[key], fresh[key]
            if key == "data":  # its SHA-256 says what it is, wherever it came from
                there, here = ({name: of | {"source": ""} for name, of in data.items()} for data in (there, here))
            if there != here:
                raise ValueError(f"{self.path} was recorded with another {key}; move it away to record anew")

    def has(self, *keys: str) -> bool:
        """Whether all of ``keys`` are recorded, by whichever process."""
        self._read()
        return self.result["runs"].keys() >= set(keys)

    def missing(self, keys: Iterable[str]) -> Iterator[str]:
        """Those of ``keys`` that are this process's to run: not recorded, and not in the making in another process."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = PartialState()
        if state.num_processes > 1:
            for key in keys:
                state.wait_for_everyone()  # so that all see the same file
                if not self.has(key):
                    yield key
            state.wait_for_everyone()
            return
        for key in keys:
            claim = FileLock(self.path.with_suffix(f".{key.replace('/', '-')}.lock"), timeout=0)
            try:
                with claim:
                    if not self.has(key):
                        yield key
            except Timeout:
                continue

    def add(self, key: str, run: dict[str, Any], wall_s: float) -> None:
        """Add one run and write the file, which is partial until :meth:`finish` and then has no headline.

        A run made under another commit, device or versions says so itself.
        """
        if not PartialState().is_main_process:
            return
        with self._lock():
            self._read()
            now = {"git_commit": self._commit, "device": _device(), "versions": _versions()}
            self.result["runs"][key] = run | {k: v for k, v in now.items() if v != self.result[k]}
            self.result["wall_time_s"] = round(self.result["wall_time_s"] + wall_s, 3)
            self.result |= {"status": "partial", "headline": {}}
            self._write()

    def fill(self, keys: Iterable[str], make: Callable[[str], dict[str, Any]]) -> bool:
        """Make, time and add those of ``keys`` that are missing; whether all are there then.

        They are not if another process is still making some.
        """
        keys = list(keys)
        for key in self.missing(keys):
            started = time.perf_counter()
            run = make(key)
            took_s = time.perf_counter() - started
            self.add(key, run, took_s)
            found = f"perplexity {run['perplexity']:.3f}, " if "perplexity" in run else ""
            PartialState().print(f"{self.result['name']}, {key}: {found}{took_s:.0f} s", flush=True)
        return self.has(*keys)

    def once(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The run of that name, made first if it is missing.

        Raises:
            RuntimeError: if another process is making it.
        """
        if not self.fill([key], lambda _: make()):
            raise RuntimeError(
                f"another process is at {key}; start again when it is done, or several by accelerate launch"
            )
        return self.result["runs"][key]

    def finish(self, headline: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Mark the result complete."""
        if not PartialState().is_main_process:
            return self.result
        with self._lock():
            self._read()
            self.result |= {"headline": headline, "status": "complete"}
            self._write()
        return self.result

    def _lock(self) -> FileLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_suffix(".lock"))

    def _read(self) -> None:
        if self.path.exists():
            self.result = json.loads(self.path.read_text())

    def _write(self) -> None:
        check(self.result)
        partial = self.path.with_suffix(".json.partial")
        partial.write_text(json.dumps(self.result, indent=1) + "\n")
        os.replace(partial, self.path)


def _device() -> str:
    """Of this process so far: a GPU counts once it has been used."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_initialized() else ""
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads{gpu}"


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES + LATER_PACKAGES}


@cache
def git_commit() -> str:
    """The commit of the code that is loaded, not of what is checked out hours later.

    Raises:
        RuntimeError: outside of a git clone.
    """

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        except (FileNotFoundError, subprocess.CalledProcessError):
            raise RuntimeError(f"a record names the commit of its code: {REPOSITORY} has to be a git clone") from None
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", *_CODE)
    return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
