"""Benchmarks of lm-evaluation-harness on a model as it stands, adapter included.

Prompts, answers and metrics are the harness's own task definitions.  The rows come from the hub or from a copy of it
(:func:`cua.llm.data.load_rows`), so that a task runs where its data set is at hand under another name or only in part;
a benchmark whose rows cannot be had is left out by name.  One small set needs neither: cloze questions made of the
analogies that gensim ships.
"""

import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from scipy.special import log_softmax
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cua.llm.data import DataUnavailable, load_corpus, load_rows

if TYPE_CHECKING:  # the harness takes seconds to import, and few who import this module run it
    from lm_eval.tasks import TaskManager

MAX_LENGTH = 2048  # tokens of context
ANSWER_TOKENS = 32  # that may be generated; no right answer is longer, and the harness would go on to 256
SCORES = ("acc", "acc_norm", "exact_match")  # 1 or 0 for each question
CHOICES = ("target", "said", "silent")  # small whole numbers
BATCH = 16


@dataclass(frozen=True)
class Benchmark:
    """Where the rows of a task of the harness come from.

    Attributes:
        rows: gives the rows, and "hub", "copy" or "embedded".
        tasks: of the harness, by the value of ``group_by`` that its rows have; a single one under "".
        group_by: column that tells tasks apart.
        definition: of the task, if it is not one of the harness's own.
    """

    rows: Callable[[], tuple[datasets.Dataset, str]]
    tasks: Callable[["TaskManager"], dict[str, str]]
    group_by: str = ""
    definition: dict[str, Any] | None = None


def _single(task: str) -> Callable[["TaskManager"], dict[str, str]]:
    return lambda _: {"": task}


def _boolq() -> tuple[datasets.Dataset, str]:
    rows, source = load_rows("google/boolq", "default", "validation")
    return rows.add_column("label", [int(answer) for answer in rows["answer"]]), source


def _wikitext() -> tuple[datasets.Dataset, str]:
    corpus = load_corpus("wikitext-2", "test")
    return datasets.Dataset.from_dict({"page": list(corpus.documents)}), corpus.source


def _mmlu(folder: str) -> Callable[["TaskManager"], dict[str, str]]:
    def tasks(manager: "TaskManager") -> dict[str, str]:
        names = (n for n in manager.all_subtasks if n.startswith("mmlu_"))
        own = (n for n in names if manager.task_index[n].yaml_path.parent.name == folder)
        return {name.removeprefix("mmlu_").removesuffix(f"_{folder}"): name for name in own}

    return tasks


def _analogies() -> tuple[datasets.Dataset, str]:
    """Ten of each of the 14 kinds, spread evenly: "a is to b as c is to", and four words to choose from.

    The wrong words are answers of other analogies of the same kind, the next ones in the file that differ from the
    words of the question.
    """
    from gensim.test.utils import datapath  # two seconds to import, seldom needed

    kinds: dict[str, list[list[str]]] = {}
    for line in Path(datapath("questions-words.txt")).read_text().splitlines():
        if line.startswith(":"):
            kinds[line[2:]] = []
        else:
            kinds[list(kinds)[-1]].append(line.split())
    rows = []
    for kind, lines in kinds.items():
        for i in np.linspace(0, len(lines) - 1, 10).astype(int):
            a, b, c, d = lines[i]
            later = (line[3] for line in lines[i:] + lines[:i])
            wrong = [word for word in dict.fromkeys(later) if word not in (a, b, c, d)][:3]
            label = len(rows) % 4
            rows.append({"kind": kind, "query": f"{a} is to {b} as {c} is to", "label": label})
            rows[-1]["words"] = [*wrong[:label], d, *wrong[label:]]
    return datasets.Dataset.from_list(rows), "embedded"


BENCHMARKS = {
    "arc_easy": Benchmark(lambda: load_rows("allenai/ai2_arc", "ARC-Easy", "test"), _single("arc_easy")),
    "hellaswag": Benchmark(lambda: load_rows("Rowan/hellaswag", "default", "validation"), _single("hellaswag")),
    "boolq": Benchmark(_boolq, _single("boolq")),
    "lambada": Benchmark(lambda: load_rows("EleutherAI/lambada_openai", "default", "test"), _single("lambada_openai")),
    "mmlu": Benchmark(lambda: load_rows("cais/mmlu", "all", "test"), _mmlu("default"), "subject"),
    "mmlu_cloze": Benchmark(lambda: load_rows("cais/mmlu", "all", "test"), _mmlu("continuation"), "subject"),
    "triviaqa": Benchmark(
        lambda: load_rows("mandarjoshi/trivia_qa", "rc.nocontext", "validation"), _single("triviaqa")
    ),
    "wikitext": Benchmark(_wikitext, _single("wikitext")),
    "analogies": Benchmark(
        _analogies,
        _single("analogies"),
        definition={
            "task": "analogies",
            "output_type": "multiple_choice",
            "doc_to_text": "{{query}}",
            "doc_to_choice": "words",
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        },
    ),
}


def rows_of(name: str, every: int = 1) -> tuple[datasets.Dataset, str]:
    """Rows of a benchmark, every so many of them, and where they come from.

    Raises:
        DataUnavailable: if they are neither in the copy nor on the hub.
        ValueError: for a name that is not one of :data:`BENCHMARKS`.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    rows, source = BENCHMARKS[name].rows()
    return rows.select(range(0, len(rows), every)), source


def available(names: Iterable[str] = BENCHMARKS) -> dict[str, str]:
    """Benchmarks whose rows can be had here, and from where; the others with the reason why not, after a dash."""
    found = {}
    for name in names:
        try:
            found[name] = rows_of(name)[1]
        except DataUnavailable as error:
            found[name] = f"– {error}"
    return found


def benchmark(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    every: int = 1,
) -> dict[str, list[float]]:
    """Score one benchmark, question by question, without examples in the prompt.

    Args:
        model: as it stands, adapter included.
        tokenizer: its own.
        name: of :data:`BENCHMARKS`.
        every: only every so many of its rows.

    Returns:
        One number a question, in the order of the rows, by metric: "acc" (1 or 0), "acc_norm" where the task has it
        (answers compared by their log-likelihood for each character), "exact_match" of generated answers.  Of a choice
        also "target", the number of the right option, "said", that of the chosen one (by "acc_norm" where there is
        one), and "logprob", of the right option among all, in nats; of "lambada" its word's log-probability; of
        generated answers "silent", 1 where nothing was said.  Of "wikitext" only the log-likelihood in nats and the
        number of words of each page.

    Raises:
        DataUnavailable, ValueError: as :func:`rows_of`.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    rows, _ = rows_of(name, every)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        tasks = _write_tasks(BENCHMARKS[name], rows, Path(folder))
        results = simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, max_length=MAX_LENGTH),
            tasks=list(tasks),
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            gen_kwargs={"max_gen_toks": ANSWER_TOKENS},
            bootstrap_iters=0,
        )
    scores: dict[str, list[float]] = {}
    for task, places in tasks.items():
        samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
        for place, sample in zip(places, samples, strict=True):
            for metric, value in _scores(sample).items():
                scores.setdefault(metric, [float("nan")] * len(rows))[place] = value
    return scores


def _scores(sample: dict[str, Any]) -> dict[str, float]:
    if "word_perplexity" in sample:
        loglikelihood, words = sample["word_perplexity"]
        return {"loglikelihood": float(loglikelihood), "words": float(words)}
    scores = {metric: float(sample[metric]) for metric in SCORES if metric in sample}
    answers = sample["filtered_resps"]
    if "exact_match" in scores:
        return scores | {"silent": float(not answers[0])}
    values = np.array([loglikelihood for loglikelihood, _ in answers])
    if len(values) == 1:
        return scores | {"logprob": float(values[0])}
    characters = [len(answer) - len(" ") if "acc_norm" in scores else 1 for _, answer in sample["arguments"]]
    target = int(sample["target"])
    return scores | {
        "target": float(target),
        "said": float(np.argmax(values / characters)),
        "logprob": float(log_softmax(values)[target]),
    }


def _write_tasks(of: Benchmark, rows: datasets.Dataset, folder: Path) -> dict[str, list[int]]:
    """Task files (JSON is YAML), each including the harness's own, and their rows in ``folder``; places of the rows."""
    manager = _harness()
    groups = rows[of.group_by] if of.group_by else [""] * len(rows)
    tasks = {}
    for value, task in of.tasks(manager).items():
        places = [i for i, group in enumerate(groups) if group == value]
        if not places:
            continue
        file = folder / f"{task}.parquet"
        rows.select(places).to_parquet(file)
        data = {
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
            "fewshot_split": None,
        }
        own = of.definition or {"include": str(manager.task_index[task].yaml_path), "task": task}
        (folder / f"{task}.yaml").write_text(json.dumps(own | data))
        tasks[task] = places
    return tasks


@cache
def _harness() -> "TaskManager":
    """The harness's own tasks: thousands of files, ten seconds to look through."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's log and the progress bars of its data sets, which would be stored in notebooks."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()
