"""Write the status page from what is there: ``python book/status.py`` reads notebooks and results, writes status.md."""

import json
import re
from pathlib import Path
from typing import Any

import nbformat

from cua.experiments.record import RESULTS, load_result

BOOK = Path(__file__).resolve().parent
COMMIT = "https://github.com/cua-book/cua/commit/"
LINK = re.compile(r"https?://[^\s<>()\"'`}|]+[^\s<>()\"'`}|.,;:]")


def chapter(script: Path) -> tuple[str, list[str]]:
    """Title of a chapter, and the recorded results that it reads."""
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    title = re.search(r"^# (.+)$", notebook.cells[0].source, re.MULTILINE)[1]
    return title, notebook.metadata.get("cua", {}).get("results", [])


def anchor(name: str) -> str:
    """A target of its own for each result."""
    return f"result-{name.replace('_', '-')}"


def result_entry(name: str, result: dict[str, Any], chapters: list[str]) -> str:
    """One recorded result: what it asked, with what, when and where."""
    data = sorted(
        {
            f"{of.get('name', key)} ({of['split']})" if "split" in of else key
            for key, of in result["data"].items()
        }
    )
    libraries = ", ".join(
        f"{library} {result['versions'][library]}"
        for library in ("torch", "transformers", "qiskit", "peft")
        if library in result["versions"]
    )
    commit = result["git_commit"]
    where = f"in chapter {', '.join(chapters)}" if chapters else "in no chapter"
    return (
        f"({anchor(name)})=\n"
        f"**{name}** ({{download}}`{name}.json <results/{name}.json>`), {result['status']}, {where}. {result['question']}\n"
        f": {len(result['runs'])} runs, {result['wall_time_s'] / 3600:.1f} h on {result['device']}, commit "
        f"[{commit[:7]}]({COMMIT}{commit}); {libraries}; {'; '.join(data) or 'no text'}."
    )


def links_out() -> dict[str, list[str]]:
    """Links that leave the site, each with the sources that have it."""
    links: dict[str, set[str]] = {}
    pages = set(BOOK.glob("*.md")) - {BOOK / "status.md"}
    for source in [*pages, *BOOK.glob("[0-9][0-9]_*.py"), *BOOK.glob("*.bib")]:
        text = re.sub(r"\beprint\s*=\s*{", "{https://arxiv.org/abs/", source.read_text())
        text = re.sub(r"\bdoi\s*=\s*{", "{https://doi.org/", text)
        for link in LINK.findall(text):
            links.setdefault(link, set()).add(source.stem)
    return {link: sorted(links[link]) for link in sorted(links)}


def page() -> str:
    """The page."""
    results = {
        path.stem: load_result(path.stem) for path in sorted(RESULTS.glob("*.json"))
    }
    chapters = {
        script.stem: chapter(script) for script in sorted(BOOK.glob("[0-9][0-9]_*.py"))
    }
    hours = sum(result["wall_time_s"] for result in results.values()) / 3600
    (model,) = {
        result["model"]["sha256"]
        for result in results.values()
        if result["model"].get("sha256")
    }
    rows = []
    times = json.loads((BOOK / "run_times.json").read_text())
    devices = "; ".join(sorted({time["device"] for time in times.values()}))
    for stem, (title, read) in chapters.items():
        took = f"{times[stem]['seconds']} s" if stem in times else "not measured"
        links = (
            ", ".join(f"[{name}](#{anchor(name)})" for name in read) or "none: all live"
        )
        rows.append(f"| [{int(stem[:2])} {title}]({stem}) | {took} | {links} |")
    entries = []
    for name, result in results.items():
        where = [
            f"[{int(stem[:2])}]({stem})"
            for stem, (_, read) in chapters.items()
            if name in read
        ]
        entries.append(result_entry(name, result, where))
    return "\n".join(
        [
            "# Status",
            "",
            "Written by `book/status.py` from the notebooks and the recorded results; nothing on this page is typed.",
            "",
            "## Chapters",
            "",
            f"Run times: recorded ({devices}), to five seconds, model already unpacked.",
            "",
            "| chapter | run time | recorded results it quotes |",
            "|---|---|---|",
            *rows,
            "",
            "## Recorded results",
            "",
            f"{len(results)} results, {hours:,.0f} hours of computing. Unless an entry says otherwise the model is "
            f"SmolLM2-135M-Instruct, file SHA-256 `{model[:16]}…`. Each is recorded anew by "
            "`python -m cua.experiments NAME` once its file is moved away.",
            "",
            "\n\n".join(entries),
            "",
            "## Links that leave the site",
            "",
            "In the text, in code, and in the bibliography (`references`).",
            "",
            *(f"- <{link}>: {', '.join(where)}" for link, where in links_out().items()),
            "",
        ]
    )


if __name__ == "__main__":
    (BOOK / "status.md").write_text(page())
