"""Text to train and to measure on: WikiText from the hub or a local copy, or real text that a package ships.

Three sources, and a result always says which one it used:

* ``hub``       the Hugging Face hub, through ``datasets``;
* ``copy``      a folder in the hub's layout (``OWNER/NAME/README.md`` + parquet), named by ``CUA_HUB_COPY``;
* ``embedded``  gensim's packaged samples: 104 full English Wikipedia articles (CC BY-SA) and some 300 news
  articles of the Australian Broadcasting Corporation (Lee, Pincombe & Welsh 2005).
"""

import bz2
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1")
EMBEDDED_SPLITS = ("train", "validation", "test")


class DataUnavailable(OSError):
    """A data set cannot be had here; the message says what would help."""


@dataclass(frozen=True)
class Corpus:
    """Documents of one split, and where they came from.

    Attributes:
        name: "wikitext-2", "wikipedia" or "news".
        split: "train", "validation" or "test".
        source: "hub", "copy" or "embedded".
        documents: one string a document, in the original order.
    """

    name: str
    split: str
    source: str
    documents: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(self.documents)

    def provenance(self) -> dict[str, str | int]:
        """What a recorded result says of its data, with the SHA-256 of the UTF-8 text."""
        return {
            "name": self.name,
            "split": self.split,
            "source": self.source,
            "documents": len(self.documents),
            "characters": len(self.text),
            "sha256": hashlib.sha256(self.text.encode()).hexdigest(),
        }

    def divide(self, share: float) -> tuple["Corpus", "Corpus"]:
        """The first ``share`` of the documents, and the rest: no document stands on both sides."""
        n = round(share * len(self.documents))
        parts = ("first", self.documents[:n]), ("last", self.documents[n:])
        return tuple(
            Corpus(self.name, f"{self.split}, {which} {len(docs)} documents", self.source, docs)
            for which, docs in parts
        )


def load_corpus(name: str = "auto", split: str = "test") -> Corpus:
    """Load one split of a corpus.

    Args:
        name: "wikitext-2" (raw, from the copy in ``CUA_HUB_COPY`` or else from the hub), "wikipedia" or "news"
            (embedded; divided by document, 8:1:1), or "auto": WikiText-2 where text to train on and to test on can be
            had, else "wikipedia".
        split: "train", "validation" or "test".

    Returns:
        A :class:`Corpus`.

    Raises:
        DataUnavailable: if neither the copy nor the hub has it.
        ValueError: for an unknown name or split.
    """
    if split not in EMBEDDED_SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(EMBEDDED_SPLITS)}")
    if name == "auto":  # decided once for all splits: training and test text never come from two corpora
        try:
            for needed in ("train", "test"):
                load_rows(*WIKITEXT, needed)
            name = "wikitext-2"
        except DataUnavailable:
            name = "wikipedia"
    if name == "wikitext-2":
        rows, source = load_rows(*WIKITEXT, split)
        return Corpus(name, split, source, _wikitext_articles(rows["text"]))
    if name not in _EMBEDDED:
        raise ValueError(f"unknown corpus {name!r}; known: auto, wikitext-2, {', '.join(_EMBEDDED)}")
    return Corpus(name, split, "embedded", tuple(share(_EMBEDDED[name](), split)))


def share(documents: Iterable[Any], split: str) -> list[Any]:
    """8:1:1: of every ten documents the tenth is test and the ninth validation, so all splits span the whole."""
    wanted = {"train": range(8), "validation": (8,), "test": (9,)}[split]
    return [document for i, document in enumerate(documents) if i % 10 in wanted]


def load_rows(repository: str, config: str, split: str) -> tuple[datasets.Dataset, str]:
    """A data set of the hub, from the folder in ``CUA_HUB_COPY`` if that is set, else from the hub.

    Args:
        repository: hub id, for example "Salesforce/wikitext".
        config: configuration, for example "wikitext-2-raw-v1".
        split: for example "test".

    Returns:
        ``(rows, source)`` with source "copy" or "hub".

    Raises:
        DataUnavailable: naming what is missing and where it was looked for.
    """
    copy = os.environ.get("CUA_HUB_COPY")
    if copy:
        folder = Path(copy) / repository
        if not folder.is_dir():
            raise DataUnavailable(f"CUA_HUB_COPY is set, but its folder has no {repository}")
        path, source = str(folder), "copy"
    else:
        path, source = repository, "hub"
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(path, config, split=split), source
    except (ValueError, OSError) as error:
        if copy:
            raise DataUnavailable(f"the copy of {repository} has no {split} split of {config}") from error
        raise DataUnavailable(
            f"cannot get {repository} ({config}, {split}) from the hub: {type(error).__name__}; set CUA_HUB_COPY to a "
            "folder in the hub's layout, or use the embedded corpora 'wikipedia' and 'news'"
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def evenly(n: int, most: int | None) -> Tensor:
    """Indices of ``n`` things, at most ``most`` of them, evenly from the first to the last."""
    return torch.arange(n) if most is None or n <= most else torch.linspace(0, n - 1, most).long()


def windows(tokenizer: PreTrainedTokenizerBase, text: str, length: int, *, bos: bool | None = None) -> Tensor:
    """Cut a text into non-overlapping windows of tokens; the incomplete last one is left out.

    Args:
        tokenizer: of the model.
        text: the whole text, tokenised in one piece.
        length: tokens a window, the BOS token included where there is one.
        bos: start every window with the BOS token; ``None``: if the tokenizer does so by itself (Llama 3.1 does,
            SmolLM2 does not).

    Returns:
        int64 ``(n_windows, length)``.

    Raises:
        ValueError: if the text is shorter than one window.
    """
    if bos is None:
        bos = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    body = length - bos
    if body < 2:
        raise ValueError(f"length={length}: a window needs at least two tokens of text")
    if len(ids) < body:
        raise ValueError(f"the text has {len(ids)} tokens, fewer than one window of {length}")
    cut = torch.tensor(ids[: len(ids) // body * body]).view(-1, body)
    return torch.nn.functional.pad(cut, (1, 0), value=tokenizer.bos_token_id) if bos else cut


def _wikitext_articles(rows: list[str]) -> tuple[str, ...]:
    """Rows joined to articles, each from its " = Title = " row; together they are the raw file, unchanged."""
    articles: list[list[str]] = [[]]
    for before, row, after in zip(["", *rows], rows, [*rows[1:], ""], strict=False):
        # A formula can look like a title, but only a title stands between blank rows.
        is_title = re.fullmatch(r" = [^=]+ = \n", row) and not before.strip() and not after.strip()
        if is_title and any(r.strip() for r in articles[-1]):
            articles.append([])
        articles[-1].append(row)
    return tuple("".join(article) for article in articles)


@cache
def _wikipedia() -> list[str]:
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki  # two seconds to import, seldom needed
    from gensim.test.utils import datapath

    with bz2.open(datapath("enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2")) as dump:
        pages = [(title, filter_wiki(text)) for title, text, _ in extract_pages(dump, filter_namespaces=("0",))]
    # Redirects and stubs have next to no text; the blank lines are what removed tables and boxes leave behind.
    articles = [(title, re.sub(r"\n{3,}", "\n\n", text).strip()) for title, text in pages]
    return [f"{title}\n\n{text}\n\n" for title, text in articles if len(text) > 1000]


@cache
def _news() -> list[str]:
    from gensim.test.utils import datapath

    articles = Path(datapath("lee_background.cor")).read_text(encoding="latin-1").splitlines(keepends=True)
    return list(dict.fromkeys(articles))  # some stand in the file twice, and would fall into two splits


_EMBEDDED = {"wikipedia": _wikipedia, "news": _news}
