"""When a teacher helps: its whole distribution as the target, beside or instead of the next token.

Two students with the same 6,144 parameters: the model as it is, taught by one that 25,920 parameters adapted, and a
compressed model, taught by the original.  Measured on held-out validation text, three seeds each.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from cua import CUAConfig
from cua.experiments.bench import Bench
from cua.experiments.compression import COMPRESSIONS, compressed
from cua.experiments.protocol import mean_interval, percent_change, used
from cua.experiments.record import ADAPTERS, Record, adapter_digests, point
from cua.experiments.trained import attached
from cua.llm.data import evenly
from cua.llm.loss import distillation_kl
from cua.llm.models import identity
from cua.llm.placement import choose_groups
from cua.llm.train import TrainConfig, teacher_states

NAME = "distillation"
QUESTION = "When does a teacher's distribution lower held-out perplexity more than the next token alone?"
SEEDS, EVERY = (0, 1, 2), 3  # every third window of the selection split
WINDOWS = 128  # of the train split, spread evenly: what the teachers are asked about
CACHED = 8  # of these, to see what the cache loses
STUDENT, N_BLOCKS = CUAConfig(side="output"), 1024
TRAINING = TrainConfig(steps=60, learning_rate=0.02, warmup=10)
ADAPTED_TEACHER = "v_proj_all/exact-seed0"
COMPRESSION = "svd_mild"


@dataclass(frozen=True)
class Lesson:
    """What a student learns from.

    Attributes:
        student: "original" or "compressed".
        teacher: "none", "itself" (as it is before training), "adapted" or "original".
        weight: of the teacher in the loss.
        temperature: of both distributions.
    """

    student: str
    teacher: str
    weight: float = 0.0
    temperature: float = 1.0

    @property
    def key(self) -> str:
        taught = "" if self.teacher == "none" else f"/{self.weight}/{self.temperature}"
        return f"{self.student}/{self.teacher}{taught}"


LESSONS = [
    Lesson("original", "none"),
    Lesson("original", "itself", 0.5),
    *(Lesson("original", "adapted", weight, t) for weight, t in ((0.5, 1.0), (0.5, 2.0), (1.0, 1.0))),
    Lesson("compressed", "none"),
    *(Lesson("compressed", "original", weight, t) for weight, t in ((0.5, 1.0), (0.5, 2.0), (1.0, 1.0), (1.0, 2.0))),
]


def run() -> dict[str, Any]:
    """Every lesson with every seed, and what the teacher's cache loses.

    Raises:
        FileNotFoundError: if the teacher's adapter is missing, naming the experiment that trains it.
    """
    digests = adapter_digests([ADAPTED_TEACHER])
    full = Bench.prepare(test=False)
    spread = evenly(len(full.tokens["train"]), WINDOWS)
    tokens = {"train": full.tokens["train"][spread], "selection": full.tokens["selection"][::EVERY]}
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "student": used(STUDENT),
                "n_blocks": N_BLOCKS,
                "training": {k: v for k, v in used(TRAINING).items() if k != "seed"},
                "train_windows": spread.tolist(),
                "every": EVERY,
                "compression": COMPRESSION,
                "adapters_sha256": digests,
            },
            "seeds": SEEDS,
            "model": identity(full.model),
            "data": full.data,
        }
    )
    work = {f"{lesson.key}/seed{seed}": (lesson, seed) for lesson in LESSONS for seed in SEEDS}
    names = ["cache", "original", "compressed", *work]
    if not record.has(*names):
        bench = Bench(full.model, tokens, full.data)
        teachers = {name: _teacher(bench, name) for name in ("original", "adapted")}

    def make(student: str, bench: Bench, key: str) -> dict[str, Any]:
        if key == "cache":
            return _cache(bench, teachers["original"])
        if key == student:
            return bench.measure("selection", 0)
        return _fit(bench, *work[key], teachers)

    for student in ("original", "compressed"):
        keys = [name for name in names if name.startswith((student, "cache"))]
        if not record.has(*keys):
            with compressed(full, COMPRESSIONS[COMPRESSION] if student == "compressed" else None):
                record.fill(keys, partial(make, student, Bench(full.model, tokens, full.data)))
    if not record.has(*names):
        return record.result
    return record.finish(headline(record.result["runs"]))


def _teacher(bench: Bench, name: str) -> torch.Tensor:
    if name == "original":
        return teacher_states(bench.model, bench.tokens["train"], progress=True)
    with attached(bench.model, ADAPTERS / ADAPTED_TEACHER):
        return teacher_states(bench.model, bench.tokens["train"], progress=True)


def _fit(bench: Bench, lesson: Lesson, seed: int, teachers: dict[str, torch.Tensor]) -> dict[str, Any]:
    groups = choose_groups(bench.gradients(STUDENT.target_modules, STUDENT.side), STUDENT.block_size, N_BLOCKS)
    training = replace(TRAINING, seed=seed, distillation=lesson.weight, temperature=lesson.temperature)
    teacher = None if lesson.teacher == "none" else teachers["adapted" if lesson.teacher == "adapted" else "original"]
    return bench.fit(STUDENT, training, None, "selection", groups, 0, teacher=teacher)


@torch.no_grad()
def _cache(bench: Bench, cached: torch.Tensor) -> dict[str, Any]:
    """Nats a token between the teacher and its cache, next to what the 64 most likely tokens alone would leave out."""
    ids = bench.tokens["train"][:CACHED]
    exact = teacher_states(bench.model, ids, dtype=torch.float32)
    tokens = ids[:, 1:].numel()
    kl = distillation_kl(cached[:CACHED].float(), bench.model.lm_head, exact, 1.0).item() / tokens
    rest = 1 - torch.cat([bench.model.lm_head(h).softmax(-1).topk(64).values.sum(-1) for h in exact])
    return {
        "kl_bf16": kl,
        "outside_top64": rest.mean().item(),
        "bytes_a_token": 2 * exact.shape[-1],
        "bytes_of_logits": 4 * bench.model.lm_head.out_features,
    }


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Change against the student before training, and against the same student without a teacher; over seeds."""
    numbers = {name: point(value, "1") for name, value in runs["cache"].items()}
    for lesson in LESSONS:
        mine = [runs[f"{lesson.key}/seed{seed}"] for seed in SEEDS]
        alone = [runs[f"{lesson.student}/none/seed{seed}"] for seed in SEEDS]
        label = lesson.key.replace("/", "_").replace(".", "")
        numbers[f"{label}_change"] = mean_interval([percent_change(r, runs[lesson.student]) for r in mine], "%")
        if lesson.teacher != "none":
            pairs = zip(mine, alone, strict=True)
            numbers[f"{label}_against_none"] = mean_interval([percent_change(*pair) for pair in pairs], "%")
    return numbers
