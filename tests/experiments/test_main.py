import sys

import pytest

from cua.experiments import EXPERIMENTS
from cua.experiments.__main__ import main
from cua.experiments.record import SCHEMA


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


def test_experiments_run_in_the_order_of_their_names(monkeypatch, capsys):
    order = []
    for name in ("v_proj_one", "adapter_speed"):
        toy = {"headline": {name: 1}}
        monkeypatch.setitem(EXPERIMENTS, name, ("?", lambda name=name, toy=toy: order.append(name) or toy))
    run(monkeypatch, "v_proj_one", "adapter_speed")
    assert order == ["v_proj_one", "adapter_speed"]
    assert capsys.readouterr().out.split() == ["{", '"v_proj_one":', "1", "}", "{", '"adapter_speed":', "1", "}"]
