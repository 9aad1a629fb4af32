"""The status page names every chapter and every recorded result, with what is in their files."""

import json
import re

import pytest

from cua.experiments.record import RESULTS, load_result


@pytest.fixture(scope="module")
def status(script):
    return script("status")


def test_every_chapter_with_its_run_time_and_results(status):
    rows = {row.split("](")[1].split(")")[0]: row for row in status.page().splitlines() if row.startswith("| [")}
    times = json.loads((status.BOOK / "run_times.json").read_text())
    assert rows.keys() == {path.stem for path in status.BOOK.glob("[0-9][0-9]_*.py")}
    for stem, row in rows.items():
        _, read = status.chapter(status.BOOK / f"{stem}.py")
        assert f"| {times[stem]['seconds']} s |" in row
        assert re.findall(r"\[(\w+)\]\(#", row) == read
        quoted = re.findall(r"load_result\(\"(\w+)\"\)", (status.BOOK / f"{stem}.py").read_text())
        assert set(quoted) - set(read) <= {"paper_8b"}, "which is read once somebody has recorded it"


def test_every_result_with_its_provenance(status):
    page = status.page()
    for path in RESULTS.glob("*.json"):
        result = load_result(path.stem)
        (entry,) = re.findall(rf"^\*\*{path.stem}\*\* .*\n.*$", page, re.MULTILINE)
        for fact in (result["status"], result["question"], f"{len(result['runs'])} runs", result["git_commit"]):
            assert fact in entry
        assert page.count(f"({status.anchor(path.stem)})=") == 1


def test_links_that_leave_the_site(status):
    links = status.links_out()
    assert links["https://arxiv.org/abs/2605.05914"] == ["references"]
    assert "intro" in links["https://github.com/cua-book/cua"]
    for source in [*status.BOOK.glob("*.py"), *status.BOOK.glob("*.md")]:
        if source.stem != "status":
            assert set(re.findall(r"\]\((https?://[^)\s]+)\)", source.read_text())) <= links.keys()
    page = status.page()
    assert all(f"- <{link}>: " in page for link in links)
