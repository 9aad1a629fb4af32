"""A record of a run on a processor, written before each step, from which the run can go on after any interruption.

A folder with

* ``journal.jsonl``: one JSON object a line, in the order of events, each on disk before the step it announces;
* ``*.npy``: blocks, slices and counts, each complete on disk before the line that names it and its SHA-256.

Events: ``header`` (what runs where, see :class:`cua.quantum.jobs.JobRunner`), ``opened`` (by a process, with its
versions), ``kept`` (mitigation), ``call`` (blocks and slices of a pass), ``submit`` (a job is about to be sent, under
this tag), ``submitted`` (the service gave it this id), ``failed``, ``counts`` (a job's counts are in this file).

No credential is ever passed to this class.
"""

import json
import os
from datetime import UTC, datetime
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray


class JournalError(RuntimeError):
    """A journal cannot be used or written; what it holds is left as it is."""


class Journal:
    """Opens a journal, or begins one.  One process at a time.

    Args:
        folder: of the journal; made if it does not exist.
        header: what the run is, JSON values only.  A journal that exists has to have the same one.

    Attributes:
        events: all lines so far.

    Raises:
        JournalError: if another process uses the folder, its header differs (the entries are named), or a line other
            than the last is damaged.
    """

    def __init__(self, folder: str | Path, header: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / "lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise JournalError(
                f"{self.folder} is in use, here or in another process; close it there, or take another folder"
            ) from None
        try:
            self.events = read_events(self.folder, repair=True)
            if not self.events:
                self.append("header", **header)
            self._check(header)
        except BaseException:
            self._lock.release()
            raise

    @property
    def is_open(self) -> bool:
        """Whether this process has the folder."""
        return self._lock.is_locked

    def close(self) -> None:
        """Let other processes use the folder."""
        self._lock.release()

    def append(self, event: str, **entries: Any) -> dict[str, Any]:
        """Write one line, on disk when this returns.

        Raises:
            JournalError: if it cannot be written; the journal ends with the line before.
        """
        path = self.folder / "journal.jsonl"
        line = {"event": event, "at": datetime.now(UTC).isoformat(timespec="milliseconds"), **entries}
        before = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if path.exists():
                os.truncate(path, before)
            raise _not_written(path, error) from None
        self.events.append(line)
        return line

    def find(self, event: str, **entries: Any) -> list[dict[str, Any]]:
        """Events of one kind with these entries, in order."""
        return [line for line in self.events if line["event"] == event and entries.items() <= line.items()]

    def save(self, name: str, array: NDArray[Any]) -> dict[str, str]:
        """Write an array, on disk under its name only when complete.

        Returns:
            ``{"file": ..., "sha256": ...}`` for the line that names it.

        Raises:
            JournalError: if it cannot be written.
        """
        buffer = BytesIO()
        np.save(buffer, array, allow_pickle=False)
        path, part = self.folder / name, self.folder / f"{name}.part"
        try:
            with part.open("wb") as file:
                file.write(buffer.getvalue())
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            _sync_folder(self.folder)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise _not_written(path, error) from None
        return {"file": name, "sha256": sha256(buffer.getvalue()).hexdigest()}

    def load(self, line: dict[str, Any]) -> NDArray[Any]:
        """The array that a line names.

        Raises:
            JournalError: if it is missing or has changed.
        """
        return read_array(self.folder, line)

    def _check(self, header: dict[str, Any]) -> None:
        recorded = {key: value for key, value in self.events[0].items() if key not in ("event", "at")}
        given = json.loads(json.dumps(header))
        if self.events[0]["event"] != "header":
            raise JournalError(f"{self.folder}/journal.jsonl does not begin with a header; it is no journal of a run")
        differing = sorted(key for key in recorded.keys() | given.keys() if recorded.get(key) != given.get(key))
        if differing:
            key = differing[0]
            raise JournalError(
                f"{self.folder} is the journal of another run: {', '.join(differing)} differ "
                f"({key}: {str(recorded.get(key))[:60]} there, {str(given.get(key))[:60]} here); take another folder"
            )


def read_events(folder: Path, repair: bool = False) -> list[dict[str, Any]]:
    """All lines of a journal.  A last line without an end was never acted upon: it is left out, and with ``repair``
    cut off.

    Raises:
        JournalError: if another line is damaged.
    """
    path = Path(folder) / "journal.jsonl"
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if repair and len(whole) < len(content):
        os.truncate(path, len(whole))
    events = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            events.append(json.loads(line))
        except ValueError:
            raise JournalError(f"{path}, line {number} is damaged; what stands before it can still be read") from None
    return events


def read_array(folder: Path, line: dict[str, Any]) -> NDArray[Any]:
    """The array that a line names, checked against its SHA-256."""
    path = Path(folder) / line["file"]
    content = path.read_bytes() if path.exists() else b""
    if sha256(content).hexdigest() != line["sha256"]:
        raise JournalError(f"{path} is missing or has changed since it was recorded")
    return np.load(BytesIO(content), allow_pickle=False)


def _not_written(path: Path, error: OSError) -> JournalError:
    return JournalError(f"cannot write {path}: {error.strerror}; free some space and run again to resume")


def _sync_folder(folder: Path) -> None:
    """Put a folder's list of names on disk, too, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
