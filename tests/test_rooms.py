"""The architecture: which room imports which, and that the pages on it are those of this code."""

import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

BOOK = Path(__file__).parents[1] / "book"


@pytest.fixture(scope="module")
def rooms(script):
    return script("rooms")


def test_imports_point_down(rooms):
    floor = {name: i for i, names in enumerate(rooms.FLOORS) for name in names}
    assert {rooms.room(name) for name in rooms.modules()} - {"plotting"} == floor.keys()
    assert [pair for pair in rooms.arrows() if floor[pair[0]] >= floor[pair[1]]] == []


def test_no_circle_of_imports(rooms):
    files = {name: file for name, file in rooms.modules().items() if file.stem != "__init__"}
    graph = {name: rooms.imports(file) & files.keys() for name, file in files.items()}
    assert set(TopologicalSorter(graph).static_order()) == files.keys()


@pytest.mark.parametrize(("room", "never"), [("llm", {"qiskit"}), ("quantum", {"transformers", "peft", "datasets"})])
def test_each_wing_keeps_out_of_the_other(rooms, room, never):
    for name, file in rooms.modules().items():
        if rooms.room(name) == room:
            assert not {found.split(".")[0].partition("_")[0] for found in rooms.imports(file)} & never, name


def test_modules_are_short(rooms):
    assert {name: n for name, file in rooms.modules().items() if (n := len(file.read_text().splitlines())) > 300} == {}


def test_importing_the_library_has_no_side_effects():
    """Neither a random number drawn nor a warning filter set, by any of its modules."""
    code = """
import random, warnings, numpy, torch
import transformers, peft, datasets, lm_eval, gensim, qiskit, qiskit_aer, qiskit_ibm_runtime
before = random.getstate(), torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(), list(warnings.filters)
import cua.hybrid, cua.scaling, cua.experiments
after = random.getstate(), torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(), list(warnings.filters)
assert before == after
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=BOOK.parent)


def test_the_glossary_is_in_order():
    for part in re.findall(r":::\{glossary\}\n(.*?)\n:::", (BOOK / "glossary.md").read_text(), re.DOTALL):
        terms = [re.sub(r"[^a-z0-9 ]", "", term.lower()) for term in re.findall(r"^(\S.*)$", part, re.MULTILINE)]
        assert terms == sorted(terms)


def test_the_drawing_is_of_this_code(rooms):
    assert (BOOK / "figures" / "rooms.svg").read_text() == rooms.svg(), "run: python book/rooms.py"


def test_every_module_is_in_the_reference(rooms):
    pages = "".join(page.read_text() for page in BOOK.glob("api_*.md"))
    written = re.findall(r"^## `(cua[.\w]*)`$", pages, re.MULTILINE)
    assert re.findall(r"^\.\. automodule:: (\S+)$", pages, re.MULTILINE) == written
    packages = {"cua", "cua.llm", "cua.quantum", "cua.experiments"}
    assert sorted(written) == sorted(name for name in rooms.modules().keys() - packages if "__main__" not in name)
