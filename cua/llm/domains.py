"""Text of other domains, and text in other clothes: WikiText's spacing put on plain text, and taken off.

WikiText is tokenised text: spaces around punctuation, " @-@ " for hyphens inside words, " = Title = " for headings, no
blank lines.  An adapter that is trained on it learns that as well.  :func:`to_wikitext` and :func:`to_plain` change how
a text is written, not what it says; the tokens are those of the Moses tokenizer (library sacremoses).
"""

import re
from collections.abc import Callable
from functools import cache

from sacremoses import MosesDetokenizer, MosesTokenizer

from cua.llm.data import EMBEDDED_SPLITS, Corpus, load_corpus, load_rows, share

_HUB: dict[str, tuple[str, str, str, Callable[[dict], str]]] = {
    "biomedicine": ("qiaojin/PubMedQA", "pqa_labeled", "train", lambda row: _abstract(row["context"])),
    "mathematics": ("openai/gsm8k", "main", "test", lambda row: f"{row['question']}\n{_gsm8k(row['answer'])}"),
    "code": ("openai/openai_humaneval", "openai_humaneval", "test", lambda r: r["prompt"] + r["canonical_solution"]),
    "fiction": ("EleutherAI/lambada_openai", "default", "test", lambda row: row["text"]),
    "law": ("cais/mmlu", "all", "test", lambda row: f"{row['question']} {row['choices'][row['answer']]}"),
}
DOMAINS = (*_HUB, "news", "wikipedia")


def load_domain(name: str, split: str = "test") -> Corpus:
    """One split of a domain's text, divided by document, 8:1:1.

    Args:
        name: "biomedicine" (PubMedQA abstracts), "mathematics" (GSM8K, question and worked answer), "code" (HumanEval,
            prompt and solution), "fiction" (LAMBADA passages), "law" (MMLU's professional law, question and right
            answer), all from the copy or the hub; or "news" and "wikipedia", embedded.
        split: "train", "validation" or "test".

    Raises:
        DataUnavailable: if neither the copy nor the hub has it.
        ValueError: for an unknown name or split.
    """
    if name in ("news", "wikipedia"):
        return load_corpus(name, split)
    if name not in _HUB:
        raise ValueError(f"unknown domain {name!r}; known: {', '.join(DOMAINS)}")
    if split not in EMBEDDED_SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(EMBEDDED_SPLITS)}")
    repository, config, rows_split, text = _HUB[name]
    rows, source = load_rows(repository, config, rows_split)
    if name == "law":
        rows = rows.filter(lambda subject: subject == "professional_law", input_columns="subject")
    return Corpus(name, split, source, tuple(text(row).strip() + "\n\n" for row in share(rows, split)))


def to_wikitext(article: str, *, headings: bool = True) -> str:
    """A plain article, such as those of the embedded Wikipedia text, as WikiText would write it.

    Its first line is the title and becomes " = Title = ", a line "==Section==" becomes " = = Section = = ", 1,000.5
    becomes "1 @,@ 000 @.@ 5"; marks of emphasis and blank lines go, and what is left is tokenised.  Without
    ``headings`` every line is text.

    >>> to_wikitext("Zinc\\n==Use==\\nSome 1,000 tons.")
    ' = Zinc = \\n = = Use = = \\n Some 1 @,@ 000 tons . \\n'
    """
    lines = [line for line in re.sub("'{2,}", "", article).split("\n") if line.strip()]
    written = []
    for i, line in enumerate(lines):
        level = 0 if not headings else 1 if i == 0 else len(line) - len(line.lstrip("="))
        bars = " ".join("=" * level)
        title = f"{bars} {_tokenised(line.strip('= '))} {bars}" if level else _tokenised(line)
        written.append(f" {title} \n")
    return "".join(written)


def to_plain(article: str) -> str:
    """An article of WikiText as one would print it: ordinary spacing, "==Section==", a blank line after each line.

    >>> to_plain(" = Zinc = \\n Some 1 @,@ 000 tons . \\n")
    'Zinc\\n\\nSome 1,000 tons.\\n\\n'
    """
    return "\n\n".join(_plain_line(line.split()) for line in article.split("\n") if line.strip()) + "\n\n"


def formatting(text: str) -> list[bool]:
    """Of each character of WikiText, whether its plain clothes do without: bars, "@", spaces; also line breaks.

    What is left of a line is the plain line, character by character.
    """
    marks: list[bool] = []
    for line in text.split("\n"):
        plain = iter(_plain_line(line.split()))
        wanted = next(plain, None)
        for character in line:
            marks.append(character != wanted)
            if character == wanted:
                wanted = next(plain, None)
        marks.append(True)  # the line break
    return marks[:-1]


def _plain_line(words: list[str]) -> str:
    level = next((i for i, word in enumerate(words) if word != "="), 0)
    if level and words[-level:] == ["="] * level:
        bars = "=" * level if level > 1 else ""
        return f"{bars}{_detokenised(words[level:-level])}{bars}"
    return _detokenised(words)


def _tokenised(line: str) -> str:
    tokens = _moses()[0].tokenize(line, aggressive_dash_splits=True, return_str=True, escape=False)
    return re.sub(r"(?<=\d)([.,])(?=\d)", r" @\1@ ", tokens)


def _detokenised(words: list[str]) -> str:
    joined = re.sub(r" @([.,])@ ", r"\1", " ".join(words))
    return _moses()[1].detokenize(joined.split(" "), unescape=False)


@cache
def _moses() -> tuple[MosesTokenizer, MosesDetokenizer]:
    return MosesTokenizer("en"), MosesDetokenizer("en")


def _abstract(context: str | dict[str, list[str]]) -> str:
    """Sections under their labels, as on the hub; or one string, with the question and its options left out."""
    if isinstance(context, str):
        return context.partition("\nQuestion:")[0].replace("\n", " ")
    return " ".join(f"{label}. {text}" for label, text in zip(context["labels"], context["contexts"], strict=True))


def _gsm8k(answer: str) -> str:
    """Without the calculator's annotations <<48/2=24>>."""
    return re.sub(r"<<[^>]*>>", "", answer)
