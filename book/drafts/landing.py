"""What changes on other pages when chapters 10 to 12 leave this folder: run once from the root, then delete."""

import json
import re
from pathlib import Path


def edit(page: str, pairs: list[tuple[str, str]]) -> None:
    text = Path(page).read_text()
    for old, new in pairs:
        assert text.count(old) == 1, (page, old)
        text = text.replace(old, new)
    Path(page).write_text(text)


edit(
    "_toc.yml",
    [
        (
            """  - caption: Appendices""",
            """  - caption: IV Does it help?
    numbered: true
    chapters:
      - file: book/10_benchmarks
      - file: book/11_baselines
      - file: book/12_domains
  - caption: Appendices""",
        )
    ],
)
edit(
    "book/07_wikitext.py",
    [
        (
            """its
# spacing, is a question still open here. Perfect circuits""",
            """its
# spacing, is the question of chapter [12](12_domains). Perfect circuits""",
        ),
        (
            """low-rank adapters (LoRA) and their relatives at equal
# parameters are still to be compared. The circuits""",
            """low-rank adapters (LoRA) and their relatives at equal
# parameters come in chapter [11](11_baselines). The circuits""",
        ),
    ],
)
edit(
    "book/intro.md",
    [
        (
            """loss comes back, and how much of that is recovery? | 40 s |
""",
            """loss comes back, and how much of that is recovery? | 40 s |
| [10 Benchmarks](10_benchmarks) | Which answers do adapters correct, which do they break, and is that evidence? | 60 s |
| [11 Baselines](11_baselines) | What do LoRA and its relatives buy for as many parameters? | 20 s |
| [12 Domains](12_domains) | Do adapters help on other text, and what have they learned from theirs? | 40 s |
""",
        ),
        (
            """Much of that is adaptation to WikiText: on Wikipedia articles in ordinary spacing 25,920 parameters, trained on WikiText for
a shorter time, are worth −1.9 % <!-- compression.original_cua_change_elsewhere --> ([chapter 9](09_compression)).
""",
            """Is that better than what the usual adapters give? Compared with the best of PEFT at about as many parameters, perplexity with
blocks is lower at 864 ({VERA} % <!-- baselines.cua_exact_against_vera_1k -->, VeRA), level at 6,138 ({L6} % <!-- baselines.cua_exact_against_lora_6k -->, LoRA)
and higher at 25,920 ({L25} % <!-- baselines.cua_exact_against_lora_25k -->, LoRA). A later idea, blocks on outputs as well, makes
that {B6} % <!-- both_sides.6k_against_lora --> and {B25} % <!-- both_sides.25k_against_lora --> ([chapter 11](11_baselines)).

Does it help? Most of the gain is how WikiText is written, not what it says: with ordinary spacing and headings, perplexity of
the same articles changes by {P1} % <!-- forgetting.cua_1k_on_wikitext_in_plain -->, {P6} % <!-- forgetting.cua_6k_on_wikitext_in_plain --> and {P25} % <!-- forgetting.cua_25k_on_wikitext_in_plain -->
with the three sizes, and that of six other domains rises by {E1} % <!-- forgetting.cua_1k_elsewhere -->, {E6} % <!-- forgetting.cua_6k_elsewhere --> and
{E25} % <!-- forgetting.cua_25k_elsewhere --> ([chapter 12](12_domains)). Of benchmark questions, blocks of 6,138 parameters correct about as many
as they break, but for LAMBADA, where they gain four to six points; and random directions, turned as far, correct the
paper's two questions, too, if not both at once ([chapter 10](10_benchmarks)).
""",
        ),
    ],
)
edit(
    "README.md",
    [
        (
            """Much of that is adaptation to WikiText: on Wikipedia articles in ordinary spacing 25,920 parameters, trained on WikiText for
a shorter time, are worth −1.9 % <!-- compression.original_cua_change_elsewhere --> (chapter 9). As circuits""",
            """Compared with the best adapter of PEFT at about as many parameters, perplexity is lower at 864 ({VERA} % <!-- baselines.cua_exact_against_vera_1k -->,
VeRA), level at 6,138 ({L6} % <!-- baselines.cua_exact_against_lora_6k -->, LoRA) and higher at 25,920 ({L25} % <!-- baselines.cua_exact_against_lora_25k -->,
LoRA; chapter 11). Most of it is how WikiText is written, not what it says: the same articles in ordinary spacing change by
{P1} % <!-- forgetting.cua_1k_on_wikitext_in_plain -->, {P6} % <!-- forgetting.cua_6k_on_wikitext_in_plain --> and {P25} % <!-- forgetting.cua_25k_on_wikitext_in_plain --> (chapter 12).
Few benchmarks change by more than chance (chapter 10). As circuits""",
        )
    ],
)


def fill(match: re.Match) -> str:
    """A recorded number in front of its own name."""
    result, name = match.group(2), match.group(3)
    value = json.loads(Path(f"book/results/{result}.json").read_text())["headline"][name]["value"]
    return f"{value:.1f}".replace("-", "−") + match.group(1)


for page in ("README.md", "book/intro.md"):
    text = Path(page).read_text()
    Path(page).write_text(re.sub(r"\{\w+\}( % <!-- (\w+)\.(\w+) -->)", fill, text))
