"""The journal alone: what is on disk after each step, and what is refused."""

import errno
import json
import os
import pickle
from datetime import UTC, datetime
from hashlib import sha256
from io import BytesIO
from re import escape

import numpy as np
import pytest

from cua.quantum.journal import Journal, JournalError, read_array, read_events

HEADER = {"backend": "marrakesh", "pairs": [[0, 1], [2, 3]]}


@pytest.fixture
def journal(tmp_path):
    with_header = Journal(tmp_path / "run", HEADER)
    yield with_header
    with_header.close()


@pytest.fixture
def full_disk(monkeypatch):
    """From now on nothing reaches the disk."""

    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    return lambda: monkeypatch.setattr(os, "fsync", fsync)


def lines(journal: Journal) -> list[bytes]:
    return (journal.folder / "journal.jsonl").read_bytes().splitlines(keepends=True)


def test_every_line_is_an_event_with_its_time(journal):
    before = datetime.now(UTC)
    line = journal.append("submit", tag="a", rows=3)
    assert line == {"event": "submit", "at": line["at"], "tag": "a", "rows": 3}
    assert abs((datetime.fromisoformat(line["at"]) - before).total_seconds()) < 10
    assert [json.loads(one) for one in lines(journal)] == journal.events == read_events(journal.folder)
    assert journal.events[0] == {"event": "header", "at": journal.events[0]["at"], **HEADER}


def test_events_are_found_by_all_their_entries(journal):
    for tag, rows in (("a", 1), ("b", 1), ("a", 2)):
        journal.append("submit", tag=tag, rows=rows)
    journal.append("submitted", tag="a", rows=1)
    assert [line["rows"] for line in journal.find("submit", tag="a")] == [1, 2]
    (line,) = journal.find("submit", tag="a", rows=2)
    assert journal.find(**line) == [line], "by everything that it says"
    assert journal.find("submit", tag="c") == []
    assert len(journal.find("submit")) == 3


def test_who_opens_it_again_goes_on(journal):
    journal.append("submit", tag="a")
    before = journal.events
    journal.close()
    again = Journal(journal.folder, json.loads(json.dumps(HEADER)))
    assert again.is_open
    assert again.events == before
    again.close()
    assert not again.is_open


def test_one_process_at_a_time(journal):
    with pytest.raises(
        JournalError, match=f"^{escape(str(journal.folder))} is in use, here or in another process; close"
    ):
        Journal(journal.folder, HEADER)
    assert {path.name for path in journal.folder.iterdir()} == {"journal.jsonl", "lock"}


@pytest.mark.parametrize("torn", [b'{"event": "sub', b"{", b'{"event": "submit"}'])
def test_a_torn_last_line_is_left_out_and_cut_off_by_who_goes_on(journal, torn):
    journal.append("submit", tag="a")
    whole, path = b"".join(lines(journal)), journal.folder / "journal.jsonl"
    journal.close()
    path.write_bytes(whole + torn)
    assert read_events(journal.folder) == journal.events
    assert path.read_bytes() == whole + torn, "reading changes nothing"
    again = Journal(journal.folder, HEADER)
    assert again.events == journal.events
    assert path.read_bytes() == whole
    again.append("counts")
    again.close()
    assert [line["event"] for line in read_events(journal.folder)] == ["header", "submit", "counts"]


def test_who_goes_on_leaves_a_whole_journal_alone(journal, monkeypatch):
    journal.close()
    monkeypatch.setattr(os, "truncate", lambda *_: pytest.fail("cut"))
    Journal(journal.folder, HEADER).close()


def test_a_torn_first_line_is_no_header(tmp_path):
    (tmp_path / "journal.jsonl").write_bytes(b'{"event": "hea')
    journal = Journal(tmp_path, HEADER)
    assert [line["event"] for line in read_events(tmp_path)] == ["header"]
    journal.close()


def test_a_damaged_line_is_named(journal):
    journal.append("submit")
    path = journal.folder / "journal.jsonl"
    first, second = lines(journal)
    path.write_bytes(first + b"?" + second + first)
    says = f"^{escape(str(path))}, line 2 is damaged; what stands before it can still be read$"
    with pytest.raises(JournalError, match=says):
        read_events(journal.folder)


def test_no_journal_has_no_events(tmp_path):
    assert read_events(tmp_path) == []


def test_another_runs_journal_is_refused_with_what_differs(journal):
    journal.close()
    longest = "x" * 100
    says = (
        f"^{escape(str(journal.folder))} is the journal of another run: backend, pairs, shots differ "
        rf"\(backend: marrakesh there, {'x' * 60} here\); take another folder$"
    )
    with pytest.raises(JournalError, match=says):
        Journal(journal.folder, {"backend": longest, "shots": 5})
    says = r"journal of another run: pairs differ \(pairs: \[\[0, 1\], \[2, 3\]\] there, None here\); take"
    with pytest.raises(JournalError, match=says):
        Journal(journal.folder, {"backend": "marrakesh"})
    (journal.folder / "journal.jsonl").write_text(json.dumps({"event": "header", "backend": longest}) + "\n")
    with pytest.raises(JournalError, match=rf"\(backend: {'x' * 60} there, heron here\)"):
        Journal(journal.folder, {"backend": "heron"})
    Journal(journal.folder, {"backend": longest}).close()


def test_what_does_not_begin_with_a_header_is_no_journal(tmp_path):
    (tmp_path / "journal.jsonl").write_text('{"event": "submit"}\n')
    says = f"^{escape(str(tmp_path))}/journal.jsonl does not begin with a header; it is no journal of a run$"
    for _ in range(2):  # and the folder is free again
        with pytest.raises(JournalError, match=says):
            Journal(tmp_path, HEADER)


def test_a_line_that_cannot_be_written_is_not_there(journal, full_disk):
    journal.append("submit", tag="a")
    before, path = lines(journal), journal.folder / "journal.jsonl"
    full_disk()
    says = f"^cannot write {escape(str(path))}: No space left on device; free some space and run again to resume$"
    with pytest.raises(JournalError, match=says):
        journal.append("submit", tag="b")
    assert lines(journal) == before
    assert journal.events == read_events(journal.folder)


def test_a_first_line_that_cannot_be_written_leaves_nothing(tmp_path, full_disk):
    full_disk()
    with pytest.raises(JournalError, match="No space left on device"):
        Journal(tmp_path / "run", HEADER)
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == b""


def test_arrays_come_back(journal):
    array = np.arange(6.0).reshape(2, 3)
    line = journal.save("blocks.npy", array)
    assert line == {"file": "blocks.npy", "sha256": sha256((journal.folder / "blocks.npy").read_bytes()).hexdigest()}
    assert np.array_equal(journal.load(line), array)
    assert np.array_equal(read_array(str(journal.folder), line), array)
    assert {path.name for path in journal.folder.iterdir()} == {"journal.jsonl", "lock", "blocks.npy"}


def test_an_array_that_cannot_be_written_is_not_there(journal, full_disk):
    full_disk()
    path = journal.folder / "blocks.npy"
    with pytest.raises(JournalError, match=f"^cannot write {escape(str(path))}: No space left on device; free"):
        journal.save("blocks.npy", np.zeros(3))
    assert {path.name for path in journal.folder.iterdir()} == {"journal.jsonl", "lock"}


@pytest.mark.parametrize("content", [None, b"", b"XXXX"])
def test_an_array_that_is_missing_or_has_changed_is_refused(journal, content):
    line, path = journal.save("blocks.npy", np.zeros(3)), journal.folder / "blocks.npy"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JournalError, match=f"^{escape(str(path))} is missing or has changed since it was recorded$"):
        journal.load(line)


def test_nothing_is_pickled(journal):
    objects = np.array([{"a": 1}], dtype=object)
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        journal.save("objects.npy", objects)
    buffer = BytesIO()
    np.save(buffer, objects, allow_pickle=True)
    for content in (buffer.getvalue(), pickle.dumps([1])):
        (journal.folder / "objects.npy").write_bytes(content)
        with pytest.raises(ValueError, match="allow_pickle"):
            journal.load({"file": "objects.npy", "sha256": sha256(content).hexdigest()})
