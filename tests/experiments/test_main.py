import json
import subprocess
import sys
from pathlib import Path

import pytest

from cua.experiments import __main__
from cua.experiments.__main__ import main
from cua.experiments.record import ADAPTERS, RESULTS
from cua.experiments.registry import EXPERIMENTS
from cua.experiments.schema import SCHEMA


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["cua.experiments", *arguments])
    main()


def test_without_a_name_every_experiment_is_listed_with_its_question(monkeypatch, capsys):
    run(monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(EXPERIMENTS)
    assert all(len(line) > SCHEMA["properties"]["question"]["minLength"] + 20 for line in lines)


def test_an_unknown_name_lists_the_known_ones(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "v_proj_two")
    assert "v_proj_one" in capsys.readouterr().err


def test_outside_of_a_clone_nothing_is_begun(monkeypatch, capsys, tmp_path):
    def no_commit() -> None:
        raise RuntimeError("has to be a git clone")

    monkeypatch.setattr(__main__, "git_commit", no_commit)
    monkeypatch.setitem(EXPERIMENTS, "v_proj_one", ("?", lambda: pytest.fail("begun")))
    with pytest.raises(SystemExit):
        run(monkeypatch, "v_proj_one")
    assert "has to be a git clone" in capsys.readouterr().err


def test_experiments_run_in_the_order_of_their_names(monkeypatch, capsys):
    order = []
    for name in ("v_proj_one", "adapter_speed"):
        toy = {"headline": {name: 1}}
        monkeypatch.setitem(EXPERIMENTS, name, ("?", lambda name=name, toy=toy: order.append(name) or toy))
    run(monkeypatch, "v_proj_one", "adapter_speed")
    assert order == ["v_proj_one", "adapter_speed"]
    assert capsys.readouterr().out.split() == ["{", '"v_proj_one":', "1", "}", "{", '"adapter_speed":', "1", "}"]


def test_a_run_is_made_again_in_a_copy(monkeypatch, capsys):
    """What runs is stood in for: it sees everything but the run that is to be repeated."""
    before = {path: path.read_bytes() for path in (RESULTS / "budget_1k.json", *(ADAPTERS / "budget_1k").glob("*/*"))}
    recorded = json.loads(before[RESULTS / "budget_1k.json"])["runs"]

    def record(command: list[str], env: dict[str, str], **_: object) -> None:
        assert command[1:] == ["-m", "cua.experiments", "budget_1k"]
        folder = Path(env["CUA_RECORDS"])
        file = folder / "results" / "budget_1k.json"
        result = json.loads(file.read_text())
        assert recorded.keys() - result["runs"].keys() == {"exact-seed3"}
        assert result["status"] == "partial"
        kept = {path.name for path in (folder / "adapters" / "budget_1k").iterdir()}
        assert "exact-seed2" in kept
        assert "exact-seed3" not in kept
        result["runs"]["exact-seed3"] = {"perplexity": 1.001 * recorded["exact-seed3"]["perplexity"]}
        file.write_text(json.dumps(result))

    monkeypatch.setattr(subprocess, "run", record)
    run(monkeypatch, "budget_1k", "--again", "exact-seed3")
    assert capsys.readouterr().out.strip().endswith("+0.1000 %")
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_run_that_cannot_be_made_again_ends_without_a_traceback(monkeypatch, capsys):
    def fail(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(SystemExit):
        run(monkeypatch, "budget_1k", "--again", "exact-seed3")
    assert capsys.readouterr().err.endswith("error: budget_1k could not be run here; what it said stands above\n")


def test_only_a_recorded_run_of_one_experiment_can_be_made_again(monkeypatch, capsys):
    for arguments, says in (
        (["budget_1k", "budget_6k", "--again", "base"], "of one experiment"),
        (["budget_1k", "--again", "exact-seed9"], "no run 'exact-seed9'"),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, *arguments)
        assert says in capsys.readouterr().err
