"""The settings under which chapters run as other processors would compute them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import elsewhere
import pytest
import torch

CHAPTERS = [Path(f"{n:02}.ipynb") for n in range(14)]


def test_there_are_enough_settings():
    assert len(elsewhere.SETTINGS) >= 5


@pytest.mark.parametrize("turn", [0, 1, 0xFFFFFFF])
def test_every_chapter_is_dealt_to_one_setting(turn):
    dealt = elsewhere.deal(CHAPTERS, turn)
    assert sorted(chapter for chapters in dealt.values() for chapter in chapters) == CHAPTERS
    assert all(dealt.values())


def test_in_as_many_turns_as_settings_each_chapter_meets_all():
    turns = [elsewhere.deal(CHAPTERS, turn) for turn in range(len(elsewhere.SETTINGS))]
    assert all(set().union(*(dealt[name] for dealt in turns)) == set(CHAPTERS) for name in elsewhere.SETTINGS)


def test_a_setting_that_fails_fails_the_run(monkeypatch, capsys):
    monkeypatch.setattr(elsewhere, "check", lambda name, chapters: name != "AVX2")
    assert elsewhere.main([]) == 1
    assert re.search(r"^AVX2 +14 chapters FAILED$", capsys.readouterr().out, re.MULTILINE)
    assert elsewhere.main(["--setting", "no vectors", "--turn", "3"]) == 0


def test_numpy_and_torch_do_as_the_setting_says():
    code = (
        "import torch; from numpy._core._multiarray_umath import __cpu_features__ as f;"
        "print(torch.backends.cpu.get_cpu_capability(), any(f[k] for k in ('X86_V3', 'X86_V4') if k in f))"
    )
    environment = os.environ | elsewhere.SETTINGS["no vectors"]
    said = subprocess.check_output(
        [sys.executable, "-W", "error::ImportWarning", "-c", code], text=True, env=environment
    )
    assert said.split() == ["DEFAULT", "False"]


def test_rounded_otherwise_moves_each_output_by_less_than_a_millionth_and_always_the_same(monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)  # to put it back
    assert "otherwise" not in torch.nn.functional.linear.__name__, "only there, and here"
    x, weight = torch.randn(50, 8), torch.randn(6, 8)
    before = torch.nn.functional.linear(x, weight)
    exec((Path(elsewhere.__file__).parent / "rounded_otherwise.py").read_text(), {})
    after = torch.nn.functional.linear(x, weight)
    relative = ((after - before) / before).abs()
    assert 3e-7 < relative.max() < 1.2e-6
    assert torch.equal(after, torch.nn.functional.linear(x, weight))
    assert torch.equal(torch.nn.functional.linear(x.double(), weight.double()), x.double() @ weight.double().T)
