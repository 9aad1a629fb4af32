"""Benchmarks: the harness's definitions over rows of ours, question by question."""

import datasets
import pytest
import torch

from cua.llm.benchmarks import BENCHMARKS, _scores, available, benchmark, rows_of
from cua.llm.data import DataUnavailable


def loglikelihood(model, tokenizer, context: str, answer: str) -> float:
    """Sum over the answer's tokens, by hand."""
    start = len(tokenizer(context).input_ids)
    ids = torch.tensor([tokenizer(context + answer).input_ids])
    with torch.no_grad():
        logits = model(ids).logits[0].log_softmax(-1)
    return sum(logits[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1]))


def test_analogies_are_140_questions_with_one_right_answer_each():
    rows, source = rows_of("analogies")
    assert (len(rows), source) == (140, "embedded")
    assert len(set(rows["kind"])) == 14
    assert [rows["label"].count(i) for i in range(4)] == [35] * 4, "no place is right more often than another"
    for row in rows:
        assert len(set(row["words"])) == 4
        assert row["words"][row["label"]] not in row["query"].split()
    assert rows[0]["query"].startswith("Athens is to Greece as")


def test_a_choice_is_scored_by_its_log_likelihood(embedded):
    model, tokenizer = embedded
    scores = benchmark(model, tokenizer, "analogies", every=35)
    rows, _ = rows_of("analogies", 35)
    for i, row in enumerate(rows):
        values = [loglikelihood(model, tokenizer, row["query"], f" {word}") for word in row["words"]]
        said = max(range(4), key=values.__getitem__)
        assert (scores["said"][i], scores["target"][i]) == (said, row["label"])
        assert scores["acc"][i] == (said == row["label"])
        share = torch.tensor(values).log_softmax(0)[row["label"]].item()
        assert scores["logprob"][i] == pytest.approx(share, abs=1e-3)
    assert {len(values) for values in scores.values()} == {4}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy with four questions of MMLU, of two subjects in turn, and a page of WikiText."""

    def write(repository: str, config: str, split: str, rows: list[dict]) -> None:
        folder = tmp_path / repository
        (folder / config).mkdir(parents=True)
        datasets.Dataset.from_list(rows).to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
        head = (
            f"---\nconfigs:\n- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {config}/{split}-*\n"
        )
        (folder / "README.md").write_text(head + "---\n")

    questions = [
        ("What is 2 + 2?", "4"),
        ("What colour is grass?", "green"),
        ("What is 1 + 1?", "2"),
        ("Fire is", "hot"),
    ]
    rows = [
        {
            "question": question,
            "subject": ("astronomy", "virology")[i % 2],
            "choices": [right, "x", "y", "z"],
            "answer": 0,
        }
        for i, (question, right) in enumerate(questions)
    ]
    write("cais/mmlu", "all", "test", rows)
    lines = ["", " = Grass = \n", "", " Grass is green , and it grows . \n"]
    write("Salesforce/wikitext", "wikitext-2-raw-v1", "test", [{"text": line} for line in lines])
    monkeypatch.setenv("CUA_HUB_COPY", str(tmp_path))


def test_subjects_keep_the_order_of_the_rows(copy, embedded):
    model, tokenizer = embedded
    scores = benchmark(model, tokenizer, "mmlu")["acc"]
    by_hand = []
    for row in rows_of("mmlu")[0]:
        letters = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
        prompt = f"The following are multiple choice questions (with answers) about {row['subject']}.\n\n"
        prompt += f"{row['question']}\n{letters}\nAnswer:"
        values = [loglikelihood(model, tokenizer, prompt, f" {letter}") for letter in "ABCD"]
        by_hand.append(float(max(range(4), key=values.__getitem__) == 0))
    assert scores == by_hand


def test_answers_are_compared_by_the_character(copy, embedded):
    """MMLU asked for the answer itself: the harness's acc_norm divides by the length of each option."""
    model, tokenizer = embedded
    scores = benchmark(model, tokenizer, "mmlu_cloze")
    for i, row in enumerate(rows_of("mmlu_cloze")[0]):
        prompt = f"The following are questions (with answers) about {row['subject']}.\n\n"
        prompt += f"Question: {row['question']}\nAnswer:"
        values = [loglikelihood(model, tokenizer, prompt, f" {c}") / len(c) for c in row["choices"]]
        assert scores["said"][i] == max(range(4), key=values.__getitem__)
        assert scores["acc_norm"][i] == (scores["said"][i] == 0)


def test_pages_are_scored_without_wikitexts_spacing(copy, embedded):
    model, tokenizer = embedded
    scores = benchmark(model, tokenizer, "wikitext")
    ((value,), (words,)) = scores["loglikelihood"], scores["words"]
    bos, (page,) = tokenizer.bos_token, rows_of("wikitext")[0]["page"]
    assert page == " = Grass = \n Grass is green , and it grows . \n"
    text = " = Grass =\nGrass is green, and it grows.\n"
    assert value == pytest.approx(loglikelihood(model, tokenizer, bos, text), abs=1e-3)
    assert value > loglikelihood(model, tokenizer, bos, page) + 3, "harder with the spaces left in"
    assert words == 13, "the empty ones at both ends count as well"


def test_what_is_missing_is_named(copy):
    found = available()
    assert found["mmlu"] == found["wikitext"] == "copy"
    assert found["analogies"] == "embedded"
    assert "has no Rowan/hellaswag" in found["hellaswag"]
    with pytest.raises(DataUnavailable, match="google/boolq"):
        rows_of("boolq")


def test_a_word_has_its_log_probability_and_no_answer_is_noted():
    word = {"acc": 1, "perplexity": -0.5, "filtered_resps": [(-0.5, True)], "target": " signs"}
    assert _scores(word) == {"acc": 1, "logprob": -0.5}
    for answer, silent in (("", 1), ("Onion", 0)):
        assert _scores({"exact_match": 0.0, "filtered_resps": [answer]}) == {"exact_match": 0, "silent": silent}


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(ValueError, match=f"unknown benchmark 'squad'; known: {', '.join(BENCHMARKS)}"):
        rows_of("squad")
