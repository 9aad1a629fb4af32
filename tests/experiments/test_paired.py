"""Paired questions, by hand and against scipy."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from cua.experiments import benchmarks, record
from cua.experiments.benchmarks import STUDIES, headline, unpacked
from cua.experiments.paired import corrected_and_broken, mean_over_benchmarks, mean_over_questions
from cua.llm.benchmarks import BENCHMARKS


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


def test_a_mean_over_benchmarks_gives_each_the_same_weight():
    many, few = np.repeat([1, 0], [500, 500]), np.repeat([1, 0], [90, 10])
    number = mean_over_benchmarks([many, few])
    assert number["value"] == pytest.approx(70)
    spread = 100 * np.sqrt(0.25 / 1000 + 0.09 / 100) / 2
    assert (number["high"] - number["low"]) / 2 == pytest.approx(1.96 * spread, rel=0.05)


def test_a_headline_compares_question_by_question():
    base = {"mmlu": {"acc": "0011"}, "wikitext": {"loglikelihood": [-10.0], "words": [5.0]}}
    mine = {"mmlu": {"acc": "1110", "git_commit": "f" * 40}, "wikitext": {"loglikelihood": [-9.0], "words": [5.0]}}
    numbers = headline(mine, base, benchmarks.EVERY)
    assert numbers["mmlu_acc"]["value"] == 75
    assert numbers["mmlu_acc_difference"]["value"] == 25
    assert [numbers[f"mmlu_acc_{key}"]["value"] for key in ("corrected", "broken", "p")] == [2, 1, 1.0]
    assert numbers["wikitext_word_perplexity"]["value"] == pytest.approx(np.exp(1.8))
    assert set(headline(mine, None, {"mmlu": 6, "wikitext": 3})) == {"mmlu_acc", "wikitext_word_perplexity"}
    assert unpacked("0140").tolist() == [0, 1, 4, 0]


def test_a_headline_tells_a_habit_from_knowledge():
    """Eight questions, right "no" (0) five times; the base model always says "no", and so gets those."""
    target = "00000111"
    base = {"boolq": {"acc": "11111000", "target": target, "said": "0" * 8, "logprob": [-0.1] * 5 + [-2.0] * 3}}
    mine = {"boolq": {"acc": "11110110", "target": target, "said": "00001110", "logprob": [-0.3] * 5 + [-1.0] * 3}}
    before, numbers = (headline(runs, base, {"boolq": 6}) for runs in (base, mine))
    assert [before[f"boolq_{key}"]["value"] for key in ("acc", "balanced", "constant", "most")] == [62.5, 50, 62.5, 100]
    assert numbers["boolq_balanced"]["value"] == pytest.approx(100 * (4 / 5 + 2 / 3) / 2)
    assert numbers["boolq_most"]["value"] == 62.5
    change = numbers["boolq_logprob_difference"]
    assert change["value"] == pytest.approx((5 * -0.2 + 3) / 8)
    assert change["low"] < change["value"] < change["high"]
    asked = headline({"triviaqa": {"exact_match": "0010", "silent": "1100"}}, None, {"triviaqa": 8})
    assert asked["triviaqa_silent"]["value"] == 50


def test_the_mean_of_a_headline_is_over_some_rows_of_what_the_model_can_answer():
    base = {name: {metric: "00001111"} for name, metric in benchmarks.METRICS.items()}
    mine = base | {"mmlu_cloze": {"acc_norm": "10001111"}, "boolq": {"acc": "1" * 8}}
    numbers = headline(mine, base, benchmarks.EVERY)
    assert numbers["some_mean"]["value"] == pytest.approx(50 + 25 / 4), "rows 0, 2, 4 and 6; BoolQ does not count"
    assert numbers["some_mean_difference"]["value"] == pytest.approx(25 / 4)
    some = {
        name: {m: packed[::2] for m, packed in run.items()} for name, run in mine.items() if name in benchmarks.SOME
    }
    noted = {name: run | {"versions": {}} for name, run in base.items()}
    same = benchmarks.same_questions({"config": {"every": benchmarks.EVERY}, "runs": noted}, benchmarks.SOME)
    again = headline(some, same, benchmarks.SOME)
    assert again["some_mean_difference"] == numbers["some_mean_difference"]
    there = {name: run for name, run in mine.items() if name != "hellaswag"}
    numbers = headline(there, base, benchmarks.EVERY)
    assert numbers["some_mean_difference"]["value"] == pytest.approx(25 / 3), "HellaSwag could not be had"
    assert "some_mean" not in headline({"mmlu": mine["mmlu"]}, base, {"mmlu": 6})


def test_every_model_has_a_study_and_a_missing_adapter_is_named(monkeypatch, tmp_path):
    assert len({study.name for study in STUDIES}) == len(STUDIES) == 31
    assert set(benchmarks.EVERY) == set(BENCHMARKS)
    for study in STUDIES:
        assert all(every % STUDIES[0].every[name] == 0 for name, every in study.every.items()), "the base was asked"
        if study.every.keys() >= set(benchmarks.MEAN):
            assert all(every % study.every[name] == 0 for name, every in benchmarks.SOME.items() if name in study.every)
    monkeypatch.setattr(benchmarks, "ADAPTERS", tmp_path)
    lora = next(study for study in STUDIES if study.name == "benchmarks_lora_6k")
    with pytest.raises(FileNotFoundError, match=r"train it with: python -m cua\.experiments baselines"):
        lora.run()


def test_rounding_again_moves_weights_by_as_much_as_rounding_once(embedded):
    """On its own grid the embedded model stays as it is; half a group away it moves by some 7 %, as Q4_1 does."""
    model = copy.deepcopy(embedded[0])
    before = {name: p.clone() for name, p in model.named_parameters()}
    benchmarks.round_again(model, 0)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, before[name], rtol=1e-5, atol=1e-6)
    benchmarks.round_again(model, benchmarks.GROUP // 2)
    for name, p in model.named_parameters():
        moved = ((p - before[name]).norm() / before[name].norm()).item()
        assert 0.05 < moved < 0.1 if "_proj" in name else moved == 0


def test_the_base_model_comes_first(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmarks, "load_complete", lambda name: record.load_complete(name, tmp_path))
    study = next(study for study in STUDIES if study.name == "benchmarks_cua_6k")
    with pytest.raises(FileNotFoundError, match=r"python -m cua\.experiments benchmarks_base"):
        study.run()
    (tmp_path / "benchmarks_base.json").write_text('{"status": "partial", "runs": {}}')
    with pytest.raises(ValueError, match=r"not complete; go on with: python -m cua\.experiments benchmarks_base"):
        study.run()


def test_circuits_answer_some_of_the_base_models_questions(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmarks, "Record", lambda description: record.Record(description, tmp_path))
    monkeypatch.setattr(benchmarks, "load_complete", lambda name: record.load_complete(name, tmp_path))
    studies = {study.name: study for study in STUDIES}
    base = replace(studies["benchmarks_base"], every={"analogies": 35}).run()
    circuits = replace(studies["benchmarks_cua_6k_perfect"], every={"analogies": 70}).run()
    assert len(base["runs"]["analogies"]["acc"]) == 4
    assert len(circuits["runs"]["analogies"]["acc"]) == 2
    assert circuits["config"]["shots"] == 8192
    assert circuits["data"]["analogies"]["questions"] == 2
    before = base["runs"]["analogies"]["acc"][::2]
    after = circuits["runs"]["analogies"]["acc"]
    corrected = sum(b < a for b, a in zip(before, after, strict=True))
    assert circuits["headline"]["analogies_acc_corrected"]["value"] == corrected
    random = replace(studies["benchmarks_random_6k_1"], every={"analogies": 35})
    monkeypatch.setattr(benchmarks, "MATCHED_WINDOWS", 1)
    drawn = random.run()
    assert drawn["config"]["draw"] == 1
    assert 0.3 < drawn["config"]["scale"] < 1.5
    more = replace(studies["benchmarks_cua_1k"], every={"analogies": 70, "arc_easy": 1}).run()
    assert list(more["runs"]) == ["analogies"], "the base model was not asked the others"
