"""The WikiText-2 protocol that every recorded perplexity follows.

Train on the train split, choose on validation, report once on the whole test split.  Where the train split cannot be
had (the local copy has none), the first 85 % of the validation articles train and the last 15 % choose.
"""

import time
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from transformers import LlamaForCausalLM

import cua
from cua import CUAConfig
from cua.config import layer_number
from cua.experiments.record import ADAPTERS, Record, point
from cua.llm.data import Corpus, DataUnavailable, load_corpus, windows
from cua.llm.evaluate import Perplexity, perplexity
from cua.llm.models import identity, load_model
from cua.llm.placement import choose_groups, rotation_gradients
from cua.llm.prefix import SplitModel
from cua.llm.train import TrainConfig, train

TRAIN_WINDOW, TEST_WINDOW = 512, 1024
GRADIENT_WINDOWS = 32  # of the train split, spread evenly: what blocks are chosen by


def wikitext_splits() -> dict[str, Corpus]:
    """Corpora "train" and "selection" (for choosing); see the module's first lines."""
    validation = load_corpus("wikitext-2", "validation")
    try:
        return {"train": load_corpus("wikitext-2", "train"), "selection": validation}
    except DataUnavailable:
        train_part, selection = validation.divide(0.85)
        return {"train": train_part, "selection": selection}


@dataclass
class Bench:
    """One model with its token windows, and hidden states below a layer, computed once and shared by all runs."""

    model: LlamaForCausalLM
    tokens: dict[str, Tensor]
    data: dict[str, dict[str, Any]]
    _prefixes: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _bases: dict[str, dict[str, Any]] = field(default_factory=dict)
    _gradients: dict[tuple[Any, str], dict[str, Tensor]] = field(default_factory=dict)

    @classmethod
    @cache
    def prepare(cls, *, test: bool) -> "Bench":
        """Load model and text; the test split only where ``test`` is set, so that choosing cannot look at it.

        One bench serves all experiments of a process, with its hidden states.
        """
        model, tokenizer = load_model()
        corpora = wikitext_splits() | ({"test": load_corpus("wikitext-2", "test")} if test else {})
        lengths = {"train": TRAIN_WINDOW, "selection": TEST_WINDOW, "test": TEST_WINDOW}
        tokens = {name: windows(tokenizer, corpus.text, lengths[name]) for name, corpus in corpora.items()}
        data = {
            name: corpus.provenance()
            | {
                "windows": len(tokens[name]),
                "window": lengths[name],
                "bos": bool((tokens[name][:, 0] == tokenizer.bos_token_id).all()),
            }
            for name, corpus in corpora.items()
        }
        return cls(model, tokens, data)

    def prefix(self, name: str, layer: int) -> Tensor:
        """Hidden states of split ``name`` that enter ``layer``; earlier layers' are dropped."""
        if (name, layer) not in self._prefixes:
            self._prefixes = {key: value for key, value in self._prefixes.items() if key[1] == layer}
            self._prefixes[name, layer] = SplitModel(self.model, layer).prefix(self.tokens[name], progress=True)
        return self._prefixes[name, layer]

    def measure(self, name: str, layer: int) -> dict[str, Any]:
        """Perplexity of the model as it stands on split ``name``, with the loss of every window."""
        split = SplitModel(self.model, layer)
        measured = perplexity(
            self.model, self.tokens[name], split=split, prefix=self.prefix(name, layer), progress=True
        )
        return run_of(measured)

    def measure_base(self, name: str, layer: int) -> dict[str, Any]:
        """Perplexity of the model without adapters on split ``name``, once for all experiments of a process."""
        if name not in self._bases:
            self._bases[name] = self.measure(name, layer)
        return self._bases[name]

    def gradients(self, targets: tuple[str, ...] | str, side: str) -> dict[str, Tensor]:
        """Of all rotations on the train split, see :func:`cua.llm.placement.rotation_gradients`; measured once."""
        if (targets, side) not in self._gradients:
            tokens = self.tokens["train"]
            spread = tokens[torch.linspace(0, len(tokens) - 1, GRADIENT_WINDOWS).long()]
            config = CUAConfig(targets, side=side)
            self._gradients[targets, side] = rotation_gradients(self.model, spread, config, progress=True)
        return self._gradients[targets, side]

    def fit(
        self,
        config: CUAConfig,
        training: TrainConfig,
        folder: Path | None,
        name: str,
        groups: dict[str, Tensor] | None = None,
        layer: int | None = None,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
    ) -> dict[str, Any]:
        """Attach, train, measure on split ``name``, save to ``folder`` if given, and detach again.

        Hidden states are kept at ``layer``, or else at the adapter's first layer.
        """
        adapter = cua.attach(self.model, config, groups)
        try:
            layer = adapter.first_layer if layer is None else layer
            started = time.perf_counter()
            split, prefix = SplitModel(self.model, layer), self.prefix("train", layer)
            options = {"split": split, "prefix": prefix, "optimizer": optimizer, "progress": True}
            losses = train(self.model, adapter, self.tokens["train"], training, **options)
            trained = time.perf_counter()
            measured = self.measure(name, layer)
            finished = time.perf_counter()
            if folder is not None:
                cua.save(adapter, folder)
            with torch.no_grad():
                norms = [
                    torch.linalg.matrix_norm(cua.skew(module.theta, config.block_size), 2).max().item()
                    for module in adapter.modules.values()
                ]
        finally:
            adapter.detach()
        return {
            "parameters": adapter.n_parameters,
            "train_loss": [round(loss, 5) for loss in losses],
            "train_s": round(trained - started, 1),
            "measure_s": round(finished - trained, 1),
            "largest_k_norm": round(max(norms), 4),
        } | measured


@dataclass(frozen=True)
class WikitextStudy:
    """Base model against adapters of one placement: each readout, each seed, on the whole test split.

    Attributes:
        name: of the result file and the adapters' folder.
        question: what it answers.
        adapter: placement; its readout field is replaced by each of ``readouts``.
        training: schedule; its seed field is replaced by each of ``seeds``.
        n_blocks: so many blocks, of components chosen by their gradient; ``None``: all components in order.
    """

    name: str
    question: str
    adapter: CUAConfig
    training: TrainConfig
    readouts: tuple[str, ...] = ("exact", "sign-constrained")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    n_blocks: int | None = None

    @property
    def configuration(self) -> dict[str, Any]:
        """What is recorded of placement and schedule; options that are not used are left out."""
        chosen = {"n_blocks": self.n_blocks, "gradient_windows": GRADIENT_WINDOWS} if self.n_blocks else {}
        return {
            "adapter": {k: v for k, v in used(self.adapter).items() if k != "readout"},
            "training": {k: v for k, v in used(self.training).items() if k != "seed"},
            "readouts": self.readouts,
        } | chosen

    def run(self) -> dict[str, Any]:
        """Record every run that is not recorded yet, and the headline once all are."""
        bench = Bench.prepare(test=True)
        record = Record(
            {
                "name": self.name,
                "question": self.question,
                "config": self.configuration,
                "seeds": self.seeds,
                "model": identity(bench.model),
                "data": bench.data,
            }
        )
        groups = None
        if self.n_blocks:
            gradients = bench.gradients(self.adapter.target_modules, self.adapter.side)
            groups = choose_groups(within(gradients, self.adapter.layers), self.adapter.block_size, self.n_blocks)
        layer = min(map(layer_number, groups)) if groups else min(self.adapter.layers or (0,))
        trained = {f"{readout}-seed{seed}": (readout, seed) for seed in self.seeds for readout in self.readouts}
        for key in record.missing(["base", *trained]):
            started = time.perf_counter()
            if key == "base":
                run = bench.measure_base("test", layer)
            else:
                readout, seed = trained[key]
                config, training = replace(self.adapter, readout=readout), replace(self.training, seed=seed)
                run = bench.fit(config, training, ADAPTERS / self.name / key, "test", groups)
            record.add(key, run, time.perf_counter() - started)
            print(f"{self.name}, {key}: perplexity {run['perplexity']:.3f}", flush=True)
        if not record.has("base", *trained):
            return record.result
        return record.finish(self.headline(record.result["runs"]))

    def headline(self, runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Means with 95 % intervals: over training seeds, and (``..._over_text``) over the windows of the test text."""
        base = runs["base"]
        numbers = {
            "base_perplexity": point(base["perplexity"], "perplexity"),
            "parameters": point(runs[f"{self.readouts[0]}-seed{self.seeds[0]}"]["parameters"], "parameters"),
        }
        for readout in self.readouts:
            mine = [runs[f"{readout}-seed{seed}"] for seed in self.seeds]
            label = readout.replace("-", "_")
            numbers[f"{label}_perplexity"] = mean_interval([run["perplexity"] for run in mine], "perplexity")
            numbers[f"{label}_change"] = mean_interval([percent_change(run, base) for run in mine], "%")
            numbers[f"{label}_change_over_text"] = change_over_text([(run, base) for run in mine])
        return numbers


def run_of(measured: Perplexity) -> dict[str, Any]:
    """What is recorded of a perplexity: its value, the tokens scored and the summed loss of every window, in nats."""
    return {
        "perplexity": measured.value,
        "tokens": measured.tokens,
        "nll": [round(loss, 4) for loss in measured.nll],
    }


def within(gradients: dict[str, Tensor], layers: tuple[int, ...] | None) -> dict[str, Tensor]:
    """Those of some decoder layers only."""
    return {name: k for name, k in gradients.items() if layers is None or layer_number(name) in layers}


def used(options: CUAConfig | TrainConfig) -> dict[str, Any]:
    """The options without those that came later and are not used, so that records from before them still agree."""
    later = {"max_k_norm": None, "distillation": 0.0, "temperature": 1.0, "gain": False}
    return {name: value for name, value in asdict(options).items() if name not in later or value != later[name]}


def percent_change(run: dict[str, Any], base: dict[str, Any]) -> float:
    """Change of perplexity against the base model, in per cent; negative is better."""
    return 100 * (run["perplexity"] / base["perplexity"] - 1)


def change_over_text(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Change of perplexity from the second run of each pair to the first, in per cent; 95 % interval over windows.

    Losses are averaged over the pairs (seeds), so that the change is their geometric mean; how they differ is not in
    the interval.
    """
    windows, tokens = len(pairs[0][0]["nll"]), pairs[0][0]["tokens"]
    losses = np.mean([np.array(run["nll"]) - np.array(base["nll"]) for run, base in pairs], axis=0) * windows / tokens
    number = mean_interval(losses, "%")
    return {key: value if key == "unit" else 100 * float(np.expm1(value)) for key, value in number.items()}


def mean_interval(values: list[float] | np.ndarray, unit: str) -> dict[str, Any]:
    """Mean with a 95 % Student-t interval; no interval for a single value."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return point(mean, unit)
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return {"value": mean, "low": mean - half, "high": mean + half, "unit": unit}
