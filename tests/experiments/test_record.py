import copy
import json
import math

import jsonschema
import numpy as np
import pytest
from scipy import stats

from cua import CUAConfig
from cua.experiments import record
from cua.experiments.protocol import WikitextStudy, mean_interval, percent_change
from cua.experiments.record import RESULTS, Record, load_result
from cua.experiments.schema import SCHEMA, check
from cua.llm.train import TrainConfig

DESCRIPTION = {
    "name": "toy_study",
    "question": "Does a recorded result hold what it has to?",
    "config": {"steps": 3, "layers": (1, 2)},
    "seeds": (0, 1),
    "model": {"name": "tiny", "parameters": 97, "dtype": "float32"},
    "data": {"test": {"source": "embedded", "sha256": "0" * 64}},
}
HEADLINE = {"perplexity": {"value": 2.0, "low": 1.5, "high": 2.5, "unit": "perplexity"}}


@pytest.fixture
def result(tmp_path) -> dict:
    """A complete result with little in it."""
    made = Record(DESCRIPTION, tmp_path)
    made.add("base", {"perplexity": 2.0}, 1.0)
    return copy.deepcopy(made.finish(HEADLINE))


def test_a_small_complete_result_passes(result):
    check(result)
    check(result | {"status": "partial", "headline": {}})
    check(result | {"headline": {"n": {"value": 3, "low": None, "high": None, "unit": "1"}}})


@pytest.mark.parametrize("field", SCHEMA["required"])
def test_check_misses_no_field(result, field):
    del result[field]
    with pytest.raises(jsonschema.ValidationError, match=f"'{field}' is a required property"):
        check(result)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Toy Study"},
        {"question": "Why?"},
        {"status": "done"},
        {"config": {}},
        {"seeds": []},
        {"seeds": [0.5]},
        {"model": {"name": "tiny"}},
        {"data": {"test": {"source": "embedded"}}},
        {"versions": {"python": "3"}},
        {"git_commit": "main"},
        {"wall_time_s": -1},
        {"runs": {}},
        {"runs": {"base": 2.0}},
        {"headline": {}},
        {"headline": {"n": {"value": 3}}},
        {"headline": {"n": {"value": "3", "low": None, "high": None, "unit": "1"}}},
        {"headline": {"n": {"value": 3, "low": 3.5, "high": 4, "unit": "1"}}},
        {"headline": {"n": {"value": 3, "low": 1, "high": 2, "unit": "1"}}},
        {"headline": {"n": {"value": 3, "low": 1, "high": None, "unit": "1"}}},
        {"headline": {"n": {"value": 3, "low": None, "high": 2, "unit": "1"}}},
        {"headline": {"n": {"value": math.nan, "low": None, "high": None, "unit": "1"}}},
        {"headline": {"n": {"value": 3, "low": math.nan, "high": math.nan, "unit": "1"}}},
        {"runs": {"base": {"perplexity": math.nan}}},
        {"runs": {"base": {"nll": [1.0, math.inf]}}},
        {"comment": "an unknown field"},
    ],
    ids=str,
)
def test_check_refuses(result, change):
    with pytest.raises(jsonschema.ValidationError):
        check(result | change)


def test_the_file_is_valid_after_every_run(tmp_path):
    made = Record(DESCRIPTION, tmp_path)
    assert not made.path.exists()
    for i in range(3):
        made.add(f"seed{i}", {"perplexity": 2.0 + i}, 1.5)
        check(json.loads(made.path.read_text()))
        assert list(load_result("toy_study", tmp_path)["runs"]) == [f"seed{j}" for j in range(i + 1)]
        assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["toy_study.json"]
    assert load_result("toy_study", tmp_path)["status"] == "partial"
    assert load_result("toy_study", tmp_path)["wall_time_s"] == pytest.approx(4.5)
    made.finish(HEADLINE)
    check(load_result("toy_study", tmp_path))
    assert load_result("toy_study", tmp_path)["status"] == "complete"


def test_a_gpu_is_named_once_it_has_been_used(monkeypatch, tmp_path):
    made = Record(DESCRIPTION, tmp_path)
    made.add("base", {"perplexity": 2.0}, 1.0)
    monkeypatch.setattr(record.torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(record.torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    made.add("seed0", {"perplexity": 1.0}, 1.0)
    runs = load_result("toy_study", tmp_path)["runs"]
    assert "device" not in runs["base"]
    assert runs["seed0"]["device"].endswith("threads, NVIDIA H200")


def test_a_run_added_later_makes_a_finished_result_partial_again(tmp_path):
    """Its headline would no longer follow from its runs."""
    made = Record(DESCRIPTION, tmp_path)
    made.add("base", {"perplexity": 2.0}, 1.0)
    made.finish(HEADLINE)
    Record(DESCRIPTION, tmp_path).add("seed0", {"perplexity": 1.0}, 1.0)
    assert (load_result("toy_study", tmp_path)["status"], load_result("toy_study", tmp_path)["headline"]) == (
        "partial",
        {},
    )


def test_a_run_of_another_commit_says_so(tmp_path, monkeypatch):
    Record(DESCRIPTION, tmp_path).add("base", {"perplexity": 2.0}, 1.0)
    monkeypatch.setattr(record, "git_commit", lambda: 40 * "a")
    monkeypatch.setattr(record, "_device", lambda: "abacus")
    Record(DESCRIPTION, tmp_path).add("seed0", {"perplexity": 1.0}, 1.0)
    runs = load_result("toy_study", tmp_path)["runs"]
    assert runs == {"base": {"perplexity": 2.0},
                    "seed0": {"perplexity": 1.0, "git_commit": 40 * "a", "device": "abacus"}}  # fmt: skip


def test_outside_of_a_clone_the_reason_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "REPOSITORY", tmp_path)
    record.git_commit.cache_clear()
    with pytest.raises(RuntimeError, match=f"{tmp_path} has to be a git clone"):
        record.git_commit()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="names the commit of its code"):
        record.git_commit()


def test_a_bad_run_leaves_the_file_as_it_was(tmp_path):
    made = Record(DESCRIPTION, tmp_path)
    made.add("base", {"perplexity": 2.0}, 1.0)
    before = made.path.read_bytes()
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        made.add("seed0", {"perplexity": math.nan}, 1.0)
    assert made.path.read_bytes() == before


def test_a_very_short_run_can_be_recorded(tmp_path):
    Record(DESCRIPTION, tmp_path).add("base", {"perplexity": 2.0}, 0.01)


def test_an_interrupted_experiment_resumes(tmp_path):
    Record(DESCRIPTION, tmp_path).add("base", {"perplexity": 2.0}, 1.0)
    again = Record(copy.deepcopy(DESCRIPTION), tmp_path)
    assert again.has("base")
    assert not again.has("seed0")
    again.add("seed0", {"perplexity": 3.0}, 2.0)
    assert load_result("toy_study", tmp_path)["runs"] == {"base": {"perplexity": 2.0}, "seed0": {"perplexity": 3.0}}
    assert load_result("toy_study", tmp_path)["wall_time_s"] == pytest.approx(3.0)


def test_processes_share_the_runs(tmp_path):
    """Two records of one file, as two processes hold: each run is made once, the one in the making is left alone."""
    ours, theirs = Record(DESCRIPTION, tmp_path), Record(DESCRIPTION, tmp_path)
    ours.add("base", {"perplexity": 2.0}, 1.0)
    keys = ["base", "seed0", "exact/seed1", "seed2"]
    mine = ours.missing(keys)
    assert next(mine) == "seed0"
    for key in theirs.missing(keys):
        theirs.add(key, {"perplexity": 3.0}, 1.0)
        assert not ours.has(*keys)
    assert list(load_result("toy_study", tmp_path)["runs"]) == ["base", "exact/seed1", "seed2"]
    ours.add("seed0", {"perplexity": 4.0}, 1.0)
    assert list(mine) == []
    assert ours.has(*keys)
    assert theirs.has(*keys)


def test_what_is_missing_is_made_timed_and_told(tmp_path, capsys):
    made = Record(DESCRIPTION, tmp_path)
    made.add("base", {"perplexity": 2.0}, 1.0)
    asked = []

    def make(key: str) -> dict:
        asked.append(key)
        return {"perplexity": 3.0} if key == "seed0" else {"nll": [1.0]}

    assert made.fill(iter(["base", "seed0", "other"]), make)
    assert asked == ["seed0", "other"]
    assert load_result("toy_study", tmp_path)["runs"]["other"] == {"nll": [1.0]}
    assert capsys.readouterr().out == "toy_study, seed0: perplexity 3.000, 0 s\ntoy_study, other: 0 s\n"
    assert made.once("seed0", lambda: 1 / 0) == {"perplexity": 3.0}
    assert made.once("seed1", lambda: {"perplexity": 4.0}) == {"perplexity": 4.0}


def test_what_another_process_is_making_is_not_waited_for(tmp_path):
    ours, theirs = Record(DESCRIPTION, tmp_path), Record(DESCRIPTION, tmp_path)
    making = theirs.missing(["seed0"])
    assert next(making) == "seed0"
    assert not ours.fill(["seed0", "seed1"], lambda key: {"perplexity": 2.0})
    assert list(load_result("toy_study", tmp_path)["runs"]) == ["seed1"]
    with pytest.raises(RuntimeError, match="another process is at seed0"):
        ours.once("seed0", lambda: {"perplexity": 2.0})
    making.close()


def test_a_run_that_failed_is_free_again(tmp_path):
    ours = Record(DESCRIPTION, tmp_path)
    made = ours.missing(["seed0"])
    assert next(made) == "seed0"
    assert list(Record(DESCRIPTION, tmp_path).missing(["seed0"])) == []
    made.close()  # as Python does when the loop that asked for it fails
    assert list(Record(DESCRIPTION, tmp_path).missing(["seed0"])) == ["seed0"]


@pytest.mark.parametrize(
    "change",
    [{"config": {"steps": 4}}, {"seeds": (0, 2)}, {"model": {"name": "other"}}, {"data": {}}],
    ids=["config", "seeds", "model", "data"],
)
def test_another_experiment_of_that_name_is_refused(tmp_path, change):
    made = Record(DESCRIPTION, tmp_path)
    made.add("base", {"perplexity": 2.0}, 1.0)
    before = made.path.read_bytes()
    with pytest.raises(ValueError, match=f"recorded with another {next(iter(change))}"):
        Record(DESCRIPTION | change, tmp_path)
    assert made.path.read_bytes() == before


def test_the_same_text_from_elsewhere_is_the_same_data(tmp_path):
    Record(DESCRIPTION, tmp_path).add("base", {"perplexity": 2.0}, 1.0)
    from_hub = {"test": {"source": "hub", "sha256": "0" * 64}}
    assert Record(DESCRIPTION | {"data": from_hub}, tmp_path).has("base")
    other = {"test": {"source": "embedded", "sha256": "1" * 64}}
    with pytest.raises(ValueError, match="recorded with another data"):
        Record(DESCRIPTION | {"data": other}, tmp_path)


def test_a_result_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"record it with: python -m cua\.experiments toy_study"):
        load_result("toy_study", tmp_path)


def test_quote(result):
    assert record.quote(result["headline"]["perplexity"]) == "2.00 perplexity [1.50, 2.50]"
    result["headline"]["change"] = {"value": -1234.567, "low": None, "high": None, "unit": "%"}
    assert record.quote(result["headline"]["change"], digits=1) == "-1,234.6 %"
    assert record.cell(result["headline"]["change"], digits=1) == "-1,234.6"
    result["headline"]["change"] = {"value": -0.004, "low": -0.006, "high": -0.002, "unit": "%"}
    assert record.quote(result["headline"]["change"]) == "0.00 % [-0.01, 0.00]"
    assert record.cell(result["headline"]["change"]) == "0.00 [-0.01, 0.00]"


@pytest.mark.parametrize("values", [[1.0, 2.0], [3.1, 2.9, 3.4, 3.3, 2.7], np.linspace(-5, 9, 240) ** 2], ids=len)
def test_mean_interval_by_hand(values):
    n, mean = len(values), sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = stats.t.ppf(0.975, n - 1) * spread / math.sqrt(n)
    interval = mean_interval(values, "%")
    assert (interval["value"], interval["low"], interval["high"]) == pytest.approx((mean, mean - half, mean + half))
    assert interval["unit"] == "%"
    assert all(type(interval[key]) is float for key in ("value", "low", "high"))


def test_five_values_have_the_tabulated_t_quantile():
    interval = mean_interval([-2.0, -1.0, 0.0, 1.0, 2.0], "1")
    assert interval["high"] == pytest.approx(2.776445 * math.sqrt(2.5 / 5), abs=1e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_equal_values_have_an_interval_of_no_width():
    interval = mean_interval([2.5, 2.5, 2.5], "%")
    assert (interval["low"], interval["high"]) == (2.5, 2.5)


def test_headline_of_a_study_by_hand():
    """Three windows of 10 predictions; the adapter lowers each window's loss by a known amount."""
    base_nll = np.array([20.0, 30.0, 25.0])
    gains = {0: np.array([1.0, 2.0, 0.5]), 1: np.array([1.2, 1.8, 0.9])}

    def run(nll):
        return {"perplexity": math.exp(nll.sum() / 30), "tokens": 30, "nll": list(nll), "parameters": 96}

    runs = {"base": run(base_nll)} | {f"exact-seed{seed}": run(base_nll - gain) for seed, gain in gains.items()}
    study = WikitextStudy("toy", "?", CUAConfig(), TrainConfig(steps=1), readouts=("exact",), seeds=(0, 1))
    numbers = study.headline(runs)
    assert numbers["base_perplexity"]["value"] == pytest.approx(math.exp(2.5))
    assert numbers["parameters"]["value"] == 96
    changes = [100 * math.expm1(-gain.sum() / 30) for gain in gains.values()]
    assert [percent_change(runs[f"exact-seed{s}"], runs["base"]) for s in (0, 1)] == pytest.approx(changes)
    assert numbers["exact_change"]["value"] == pytest.approx(np.mean(changes))
    per_token = -(gains[0] + gains[1]) / 2 / 10
    half = 4.302653 * per_token.std(ddof=1) / math.sqrt(3)
    over_text = numbers["exact_change_over_text"]
    for key, shift in ("value", 0.0), ("low", -half), ("high", half):
        assert over_text[key] == pytest.approx(100 * math.expm1(per_token.mean() + shift), rel=1e-5)


COMMITTED = sorted(RESULTS.glob("*.json")) or [
    pytest.param(None, marks=pytest.mark.skip(reason="no recorded results in book/results yet"))
]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path and path.stem)
def test_committed_results_follow_the_schema(path):
    recorded = json.loads(path.read_text())
    check(recorded)
    assert recorded["name"] == path.stem
