import hashlib
import os
from pathlib import Path

import datasets
import pytest
import torch
from gensim.test.utils import datapath

from cua.llm.data import DataUnavailable, evenly, load_corpus, load_rows, windows

SPLITS = ("train", "validation", "test")
# An article as WikiText-2 has it; its formula takes three rows, the second of which looks like a title.
ARTICLE = [
    " \n",
    " = Constant k filter = \n",
    " \n",
    " The cut @-@ off frequency is ωc \n",
    " = 1 rad / s and k = \n",
    " 1 Ω . \n",
    " \n",
    " = = History = = \n",
    " \n",
    " = = = Image impedance = = = \n",
    " Campbell . \n",
]
OTHER_ARTICLE = [" \n", " = Kiss You = \n", " \n", " A song . \n"]


@pytest.fixture
def small_copy(tmp_path, monkeypatch) -> Path:
    """A folder in the hub's layout with the two articles as the test split, and no other split."""
    folder = tmp_path / "hub" / "Salesforce" / "wikitext"
    (folder / "wikitext-2-raw-v1").mkdir(parents=True)
    rows = datasets.Dataset.from_dict({"text": ARTICLE + OTHER_ARTICLE})
    rows.to_parquet(folder / "wikitext-2-raw-v1" / "test-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n"
        "  - split: test\n    path: wikitext-2-raw-v1/test-*\n---\n"
    )
    monkeypatch.setenv("CUA_HUB_COPY", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "hub"


@pytest.fixture
def real_copy() -> Path:
    folder = os.environ.get("CUA_HUB_COPY")
    if not folder or not (Path(folder) / "Salesforce" / "wikitext").is_dir():
        pytest.skip("CUA_HUB_COPY names no folder with Salesforce/wikitext")
    return Path(folder)


def words(n: int) -> str:
    return " ".join(f"w{1 + i % 96}" for i in range(n))


def number(n: int) -> torch.Tensor:
    return 1 + torch.arange(n) % 96


@pytest.mark.parametrize(("n", "length"), [(100, 10), (109, 10), (10, 10), (11, 10), (300, 64), (2, 2)])
@pytest.mark.parametrize("automatic", [True, False])
def test_windows_without_bos_are_the_text_cut_to_pieces(make_tokenizer, n, length, automatic):
    cut = windows(make_tokenizer(not automatic), words(n), length, bos=None if automatic else False)
    assert cut.dtype == torch.int64
    assert cut.shape == (n // length, length)
    assert torch.equal(cut.flatten(), number(cut.numel()))


@pytest.mark.parametrize(("n", "length"), [(100, 10), (107, 10), (9, 10), (300, 64), (2, 3)])
@pytest.mark.parametrize("automatic", [True, False])
def test_windows_with_bos_hold_one_token_less_each(make_tokenizer, n, length, automatic):
    cut = windows(make_tokenizer(automatic), words(n), length, bos=None if automatic else True)
    assert cut.dtype == torch.int64
    assert cut.shape == (n // (length - 1), length)
    assert (cut[:, 0] == 0).all()
    assert torch.equal(cut[:, 1:].flatten(), number(cut[:, 1:].numel()))


@pytest.mark.parametrize(("n", "length", "bos"), [(9, 10, False), (8, 10, True), (0, 10, False)])
def test_text_shorter_than_a_window(make_tokenizer, n, length, bos):
    with pytest.raises(ValueError, match=f"the text has {n} tokens"):
        windows(make_tokenizer(bos), words(n), length, bos=bos)


@pytest.mark.parametrize(("length", "bos"), [(1, False), (2, True)])
def test_a_window_predicts_something(make_tokenizer, length, bos):
    with pytest.raises(ValueError, match=f"length={length}: a window needs at least two tokens"):
        windows(make_tokenizer(bos), words(5), length, bos=bos)


def test_windows_of_the_embedded_model(embedded):
    _, tokenizer = embedded
    text = load_corpus("news", "test").text
    cut = windows(tokenizer, text, 128)
    ids = tokenizer(text).input_ids
    assert cut.shape == (len(ids) // 128, 128)
    assert cut.flatten().tolist() == ids[: cut.numel()]
    assert text.startswith(tokenizer.decode(cut[0]))


def news_lines() -> list[str]:
    return Path(datapath("lee_background.cor")).read_text(encoding="latin-1").splitlines(keepends=True)


# The published SHA-256 of each split: recorded results refer to these texts.
EMBEDDED = {
    ("wikipedia", "train"): (84, "439e1f4b5da414c3629174717bf43d0cb7411429e407fc5f77a134bccd6b9dcb"),
    ("wikipedia", "validation"): (10, "bb9891f21aae6763941f8eed8ac173ea20be38b4e10e9a176a81f2b65edbd4dc"),
    ("wikipedia", "test"): (10, "6bc42c4a0e3b88758a72fbaa2fc8192904fa4a74a7c1bc38298536fdfc1d2aab"),
    ("news", "train"): (235, "6990353662d118306c59b9e25eadc035ea00e3ba2321937aa9352dda4035b507"),
    ("news", "validation"): (29, "80ac4603a8db9e361b7f37b2d6c0fd4deb982375c294338e7cebadac08bd76ee"),
    ("news", "test"): (29, "26bfd869c5bf7a23bdc3c4e5406837d25d4b5b318a068dbd37524229d873cd3a"),
}


@pytest.mark.parametrize(("name", "split"), EMBEDDED, ids=str)
def test_provenance_of_the_embedded_corpora(name, split):
    corpus = load_corpus(name, split)
    documents, sha256 = EMBEDDED[name, split]
    assert corpus.provenance() == {
        "name": name,
        "split": split,
        "source": "embedded",
        "documents": documents,
        "characters": len(corpus.text),
        "sha256": hashlib.sha256(corpus.text.encode()).hexdigest(),
    }
    assert corpus.provenance()["sha256"] == sha256


@pytest.mark.parametrize(("name", "total"), [("wikipedia", 104), ("news", len(set(news_lines())))])
def test_embedded_splits_cover_the_collection(name, total):
    assert sum(len(load_corpus(name, split).documents) for split in SPLITS) == total


@pytest.mark.parametrize("name", ["wikipedia", "news"])
def test_no_document_stands_in_two_splits(name):
    train, validation, test = (set(load_corpus(name, split).documents) for split in SPLITS)
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_news_is_the_packaged_file():
    lines = news_lines()
    train, validation, test = (load_corpus("news", split).documents for split in SPLITS)
    assert [*list(train[:8]), validation[0], test[0]] == lines[:10]
    assert sorted(train + validation + test) == sorted(set(lines))


def test_wikipedia_is_running_text():
    first = load_corpus("wikipedia", "train").documents[0]
    assert first.startswith("Anarchism\n\n")
    assert "political philosophy" in first[:300]
    assert "{{" not in first
    assert "\n\n\n" not in first


@pytest.mark.parametrize("share", [0.0, 0.3, 0.85, 1.0])
def test_divide_keeps_documents_whole_and_apart(share):
    corpus = load_corpus("news", "test")
    first, last = corpus.divide(share)
    assert first.documents + last.documents == corpus.documents
    assert len(first.documents) == round(len(corpus.documents) * share)
    assert first.split != last.split


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("ptb", "test", "unknown corpus 'ptb'; known: auto, wikitext-2, wikipedia, news"),
        ("news", "dev", "unknown split 'dev'"),
    ],
)
def test_unknown_names(name, split, message):
    with pytest.raises(ValueError, match=message):
        load_corpus(name, split)


def test_articles_of_a_copy(small_copy):
    corpus = load_corpus("wikitext-2", "test")
    assert corpus.source == "copy"
    assert corpus.text == "".join(ARTICLE + OTHER_ARTICLE)
    assert corpus.documents[-1].splitlines()[0] == " = Kiss You = "


def test_a_formula_does_not_start_an_article(small_copy):
    first, _ = load_corpus("wikitext-2", "test").documents
    assert first.startswith("".join(ARTICLE))


@pytest.mark.parametrize(("n", "most", "expected"), [(3, None, [0, 1, 2]), (3, 5, [0, 1, 2]), (9, 3, [0, 4, 8])])
def test_evenly(n, most, expected):
    assert evenly(n, most).tolist() == expected


def test_auto_takes_wikitext_where_it_has_text_to_train_on(small_copy):
    assert load_corpus("auto", "test") == load_corpus("wikipedia", "test")
    folder = small_copy / "Salesforce" / "wikitext"
    readme = (folder / "README.md").read_text()
    (folder / "README.md").write_text(
        readme.replace("test\n", "train\n    path: wikitext-2-raw-v1/test-*\n  - split: test\n", 1)
    )
    for split in ("train", "test"):
        assert load_corpus("auto", split) == load_corpus("wikitext-2", split)


def test_a_split_that_the_copy_lacks(small_copy):
    with pytest.raises(DataUnavailable, match="the copy of Salesforce/wikitext has no train split"):
        load_corpus("wikitext-2", "train")


def test_a_copy_without_the_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("CUA_HUB_COPY", str(tmp_path))
    with pytest.raises(DataUnavailable, match="its folder has no Salesforce/wikitext"):
        load_corpus("wikitext-2", "test")
    assert load_corpus("auto", "test") == load_corpus("wikipedia", "test")


def test_a_copy_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("CUA_HUB_COPY", str(tmp_path / "nowhere"))
    with pytest.raises(DataUnavailable, match="has no Salesforce/wikitext"):
        load_rows("Salesforce/wikitext", "wikitext-2-raw-v1", "test")


def test_hub_out_of_reach(monkeypatch):
    monkeypatch.delenv("CUA_HUB_COPY", raising=False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataUnavailable, match="set CUA_HUB_COPY to a folder in the hub's layout, or use the embedded"):
        load_rows("nobody/nothing", "default", "test")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_wikitext_has_its_sixty_articles_and_they_are_the_raw_rows(real_copy, split):
    """60 articles in each: Merity et al. (2017), table 1."""
    corpus = load_corpus("wikitext-2", split)
    rows, _ = load_rows("Salesforce/wikitext", "wikitext-2-raw-v1", split)
    assert corpus.text == "".join(rows["text"])
    assert len(corpus.documents) == 60


def test_wikitext_train_split_of_the_real_copy(real_copy):
    if list((real_copy / "Salesforce" / "wikitext").glob("wikitext-2-raw-v1/train-*")):
        assert len(load_corpus("wikitext-2", "train").documents) == 600
    else:
        with pytest.raises(DataUnavailable, match="no train split"):
            load_corpus("wikitext-2", "train")
