"""Paired questions, by hand and against scipy."""

import numpy as np
import pytest
from scipy import stats

from cua.experiments import benchmarks
from cua.experiments.benchmarks import STUDIES, headline, unpacked
from cua.experiments.paired import corrected_and_broken, mean_over_questions
from cua.experiments.record import Record, load_result


def test_corrected_and_broken_by_hand():
    before, after = [1, 1, 0, 0, 0, 0, 1], [1, 0, 1, 1, 1, 0, 1]
    assert corrected_and_broken(before, after) == (3, 1, pytest.approx(2 * (1 + 4) / 16))
    assert corrected_and_broken(after, before) == (1, 3, pytest.approx(0.625))
    assert corrected_and_broken(before, before) == (0, 0, 1.0)


def test_all_corrected_is_hardly_chance():
    corrected, broken, p = corrected_and_broken([0] * 12, [1] * 12)
    assert (corrected, broken) == (12, 0)
    assert p == pytest.approx(2 / 2**12)


@pytest.mark.parametrize(("before", "after"), [([0, 1], [0, 1, 1]), ([0, 0.5], [0, 1])])
def test_other_answers_are_refused(before, after):
    with pytest.raises(ValueError, match="answers are 1 or 0"):
        corrected_and_broken(before, after)


def test_the_interval_of_an_accuracy_is_the_binomial_one():
    answers = np.repeat([1, 0], [300, 700])
    number = mean_over_questions(answers)
    exact = stats.binomtest(300, 1000).proportion_ci(method="wilson")
    assert number["value"] == pytest.approx(30)
    assert (number["low"], number["high"]) == (
        pytest.approx(100 * exact.low, abs=0.4),
        pytest.approx(100 * exact.high, abs=0.4),
    )


def test_a_headline_compares_question_by_question():
    base = {"mmlu": {"acc": "0011"}, "wikitext": {"loglikelihood": [-10.0], "words": [5.0]}}
    mine = {"mmlu": {"acc": "1110"}, "wikitext": {"loglikelihood": [-9.0], "words": [5.0]}}
    numbers = headline(mine, base)
    assert numbers["mmlu_acc"]["value"] == 75
    assert numbers["mmlu_acc_difference"]["value"] == 25
    assert [numbers[f"mmlu_acc_{key}"]["value"] for key in ("corrected", "broken", "p")] == [2, 1, 1.0]
    assert numbers["wikitext_word_perplexity"]["value"] == pytest.approx(np.exp(1.8))
    assert set(headline(mine, None)) == {"mmlu_acc", "wikitext_word_perplexity"}
    assert unpacked("0110").tolist() == [0, 1, 1, 0]


def test_every_model_has_a_study_and_a_missing_adapter_is_named(monkeypatch, tmp_path):
    assert len({study.name for study in STUDIES}) == len(STUDIES) == 11
    assert set(benchmarks.EVERY) == set(benchmarks.BENCHMARKS)
    for name, every in benchmarks.ON_CIRCUITS.items():
        assert every % benchmarks.EVERY[name] == 0
    monkeypatch.setattr(benchmarks, "ADAPTERS", tmp_path)
    lora = next(study for study in STUDIES if study.name == "benchmarks_lora_6k")
    with pytest.raises(FileNotFoundError, match=r"train it with: python -m cua\.experiments baselines"):
        lora.run()


@pytest.fixture
def small_benchmarks(monkeypatch, tmp_path):
    """The embedded benchmark only, recorded elsewhere, an exact multiple of its rows."""
    monkeypatch.setattr(benchmarks, "EVERY", {"analogies": 35})
    monkeypatch.setattr(benchmarks, "ON_CIRCUITS", {"analogies": 70})
    monkeypatch.setattr(benchmarks, "Record", lambda description: Record(description, tmp_path))
    monkeypatch.setattr(benchmarks, "load_result", lambda name: load_result(name, tmp_path))


def test_circuits_answer_some_of_the_base_models_questions(small_benchmarks):
    studies = {study.name: study for study in STUDIES}
    base = studies["benchmarks_base"].run()
    circuits = studies["benchmarks_cua_6k_perfect"].run()
    assert len(base["runs"]["analogies"]["acc"]) == 4
    assert len(circuits["runs"]["analogies"]["acc"]) == 2
    assert circuits["config"]["shots"] == 8192
    assert circuits["data"]["analogies"]["questions"] == 2
    before = base["runs"]["analogies"]["acc"][::2]
    after = circuits["runs"]["analogies"]["acc"]
    corrected = sum(b < a for b, a in zip(before, after, strict=True))
    assert circuits["headline"]["analogies_acc_corrected"]["value"] == corrected
