"""Other domains, and other clothes for the same text."""

import re

import datasets
import pytest

from cua.llm.data import DataUnavailable, load_corpus
from cua.llm.domains import DOMAINS, _abstract, formatting, load_domain, to_plain, to_wikitext

PLAIN = (
    "Ise-class battleship\n\nThe '''Ise''' cost 1,000.5 yen (then); it wasn't cheap.\n\n==Fate==\n\n"
    'Both "sank" in mid-1945.\n\n'
)
WIKITEXT = (
    " = Ise @-@ class battleship = \n The Ise cost 1 @,@ 000 @.@ 5 yen ( then ) ; it wasn 't cheap . \n"
    ' = = Fate = = \n Both " sank " in mid @-@ 1945 . \n'
)


def test_an_article_in_the_clothes_of_wikitext():
    assert to_wikitext(PLAIN) == WIKITEXT


def test_text_without_headings_in_the_clothes_of_wikitext():
    assert to_wikitext("It sank, then.\n\n=3\n", headings=False) == " It sank , then . \n = 3 \n"


def test_an_article_of_wikitext_in_plain_clothes():
    assert to_plain(WIKITEXT) == PLAIN.replace("'''", "")


def test_clothes_do_not_change_the_words():
    for article in load_corpus("wikipedia", "test").documents[:3]:
        words = re.findall("[A-Za-z]+", re.sub("'{2,}", "", article))
        assert re.findall("[A-Za-z]+", to_wikitext(article)) == words
        assert re.findall("[A-Za-z]+", to_plain(to_wikitext(article))) == words
        assert to_wikitext(article).count(" , ") > 10 * to_plain(to_wikitext(article)).count(" , ")


def test_what_is_left_without_formatting_are_the_plain_lines():
    assert _without_formatting(WIKITEXT) == PLAIN.replace("'''", "").replace("\n", "")
    for article in load_corpus("wikipedia", "test").documents[:10]:
        dressed = to_wikitext(article)
        assert _without_formatting(dressed) == to_plain(dressed).replace("\n", "")
    marks = formatting(" Both sank , @-@ . \n")
    assert len(marks) == 20
    assert [i for i, mark in enumerate(marks) if not mark][:9] == list(range(1, 10)), '"Both sank" stays'


def _without_formatting(text: str) -> str:
    return "".join(c for c, mark in zip(text, formatting(text), strict=True) if not mark)


@pytest.mark.parametrize("name", ["news", "wikipedia"])
def test_packaged_domains_need_no_hub(name, monkeypatch, tmp_path):
    monkeypatch.setenv("CUA_HUB_COPY", str(tmp_path))
    splits = {split: load_domain(name, split).documents for split in ("train", "validation", "test")}
    assert len(splits["train"]) > 4 * len(splits["test"]) > 0
    assert not set(splits["train"]) & set(splits["test"])


def test_a_domain_of_the_hub_is_divided_by_document(monkeypatch, tmp_path):
    folder = tmp_path / "openai" / "gsm8k"
    (folder / "main").mkdir(parents=True)
    rows = [{"question": f"Question {i}?", "answer": f"6*{i}=<<6*{i}={6 * i}>>{6 * i}"} for i in range(20)]
    datasets.Dataset.from_list(rows).to_parquet(folder / "main" / "test-00000-of-00001.parquet")
    head = "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: test\n    path: main/test-*\n---\n"
    (folder / "README.md").write_text(head)
    monkeypatch.setenv("CUA_HUB_COPY", str(tmp_path))
    test = load_domain("mathematics", "test")
    assert test.source == "copy"
    assert test.documents == ("Question 9?\n6*9=54\n\n", "Question 19?\n6*19=114\n\n")
    assert len(load_domain("mathematics", "train").documents) == 16
    with pytest.raises(DataUnavailable, match="no qiaojin/PubMedQA"):
        load_domain("biomedicine")


@pytest.mark.parametrize(
    "context",
    [
        "AIM. To see.\nRESULTS. Seen.\nQuestion: Is it seen?\nA. yes\nB. no\nC. maybe\nAnswer: ",
        {"labels": ["AIM", "RESULTS"], "contexts": ["To see.", "Seen."]},
    ],
    ids=["with a prompt", "as on the hub"],
)
def test_an_abstract_has_its_sections_and_no_question(context):
    assert _abstract(context) == "AIM. To see. RESULTS. Seen."


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=f"unknown domain 'poetry'; known: {', '.join(DOMAINS)}"):
        load_domain("poetry")
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        load_domain("code", "dev")
