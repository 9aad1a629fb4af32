"""The command, alone and under ``accelerate launch``."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cua
from cua import __main__ as command
from cua.__main__ import main
from cua.llm.evaluate import Perplexity
from cua.llm.models import load_model

TINY = ["--window", "16", "--windows", "6", "--steps", "5", "--rate", "0.1", "--batch", "2", "--corpus", "news"]
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
LAUNCH += ["--dynamo_backend", "no", "--num_processes", "2", "--main_process_port", "0"]


@pytest.fixture
def folder(llama, make_tokenizer, tmp_path) -> Path:
    """A tiny Llama on disk; words that it does not know are all one token."""
    llama.save_pretrained(tmp_path / "model")
    make_tokenizer(False).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run(*arguments: str | Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    root = Path(cua.__file__).parents[1]
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True).stdout


def numbers(printed: str) -> list[float]:
    """Losses, perplexities and changes, as printed."""
    return [float(n) for n in re.findall(r"[+-]?\d+\.\d+", printed)]


@pytest.mark.parametrize("chosen", [[], ["--blocks", "9"]], ids=["all blocks", "chosen blocks"])
def test_two_processes_do_what_one_does(folder, chosen, tmp_path):
    """Same losses, same perplexities, same adapter: to 1e-4, the order of sums apart."""
    common = ["-m", "cua", "--model", folder, *TINY, *chosen]
    one = run(*common, "--save", tmp_path / "one")
    two = run(*LAUNCH, *common, "--save", tmp_path / "two")
    assert len(numbers(one)) == 5
    assert numbers(two) == pytest.approx(numbers(one), abs=1e-4)
    assert two.count("adapted: ") == 1, "one process reports"
    model, _ = load_model(str(folder))
    adapters = []
    for name in ("one", "two"):
        adapter = cua.load(model, tmp_path / name)
        adapters.append(adapter)
        adapter.detach()
    for a, b in zip(adapters[0].modules.values(), adapters[1].modules.values(), strict=True):
        assert chosen == [] or torch.equal(a.groups, b.groups)
        torch.testing.assert_close(a.theta, b.theta, rtol=0, atol=1e-4)
        assert a.theta.abs().max() > 0.02


def test_processes_that_cannot_share_a_batch_say_so(folder):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(*LAUNCH, "-m", "cua", "--model", folder, *TINY, "--batch", "3")
    assert "batch=3 cannot be shared equally by 2 processes" in caught.value.stderr


def test_a_mistake_ends_in_one_line(folder, tmp_path):
    (tmp_path / "file").touch()
    for mistake in (["--targets", "value"], ["--block-size", "7"], ["--windows", "0"], ["--save", tmp_path / "file"]):
        with pytest.raises(subprocess.CalledProcessError) as caught:
            run("-m", "cua", "--model", folder, *TINY, *mistake)
        assert caught.value.stderr.splitlines()[-1].startswith("python -m cua: ")
        assert "Traceback" not in caught.value.stderr


@pytest.mark.parametrize(("losses", "gained"), [((2.0, 2.1), False), ((2.1, 2.0), True)])
def test_it_says_what_it_learns_from_and_whether_it_learned_nothing(folder, capsys, monkeypatch, losses, gained):
    measured = iter(losses)
    monkeypatch.setattr(command, "perplexity", lambda *_, **__: Perplexity((15 * next(measured),), 16, False))
    main(["--model", str(folder), *TINY, "--rate", "1000"])
    said = capsys.readouterr().out
    assert "train: 6 windows of news (embedded)\ntest: 6 windows of news (embedded)\n" in said
    assert ("a rate of 1000 is too high" in said) == (not gained)


def test_wrong_options_are_named_before_any_work(folder, capsys):
    with pytest.raises(ValueError, match="block_size=1: expected"):
        main(["--model", "nowhere/no-such-model", "--block-size", "1"])
    with pytest.raises(SystemExit):
        main(["--side", "middle"])
    assert "invalid choice: 'middle'" in capsys.readouterr().err
