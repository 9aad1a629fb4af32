"""One model with its token windows, and what all runs on it share: hidden states, rotation gradients."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

import cua
from cua import CUAConfig
from cua.config import layer_number
from cua.llm.baselines import PeftAdapter
from cua.llm.data import Corpus, evenly, load_corpus, windows
from cua.llm.evaluate import Perplexity, perplexity
from cua.llm.models import load_model
from cua.llm.placement import GRADIENT_WINDOWS, rotation_gradients, weight_gradients
from cua.llm.prefix import SplitModel
from cua.llm.train import TrainConfig, train

TRAIN_WINDOW, TEST_WINDOW = 512, 1024
LENGTHS = {"train": TRAIN_WINDOW, "selection": TEST_WINDOW, "test": TEST_WINDOW}


def wikitext_splits() -> dict[str, Corpus]:
    """Corpora "train", the first 85 % of WikiText-2's validation articles, and "selection", the last 15 %.

    The copy that results were recorded with has no train split.  Where there is one it is left alone, so that
    everybody's runs are the same.
    """
    train_part, selection = load_corpus("wikitext-2", "validation").divide(0.85)
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
    _weight_gradients: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    @cache
    def prepare(cls, *, test: bool) -> "Bench":
        """Load model and text; the test split only where ``test`` is set, so that choosing cannot look at it.

        One bench serves all experiments of a process, with its hidden states.
        """
        model, tokenizer = load_model()
        corpora = wikitext_splits() | ({"test": load_corpus("wikitext-2", "test")} if test else {})
        return cls.of(model, tokenizer, corpora)

    @classmethod
    def of(
        cls,
        model: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        corpora: dict[str, Corpus],
        lengths: dict[str, int] = LENGTHS,
        limits: dict[str, int] | None = None,
    ) -> "Bench":
        """Any model, and any text: split -> corpus, tokens a window, and at most so many windows, spread evenly."""
        tokens = {name: windows(tokenizer, corpus.text, lengths[name]) for name, corpus in corpora.items()}
        for name, limit in (limits or {}).items():
            if name in tokens:
                tokens[name] = tokens[name][evenly(len(tokens[name]), limit)]
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

    @property
    def gradient_windows(self) -> Tensor:
        """:data:`~cua.llm.placement.GRADIENT_WINDOWS` windows of the train split, spread evenly."""
        tokens = self.tokens["train"]
        return tokens[evenly(len(tokens), GRADIENT_WINDOWS)]

    def gradients(self, targets: tuple[str, ...] | str, side: str) -> dict[str, Tensor]:
        """Of all rotations on the train split, see :func:`cua.llm.placement.rotation_gradients`; measured once."""
        if (targets, side) not in self._gradients:
            config = CUAConfig(targets, side=side)
            self._gradients[targets, side] = rotation_gradients(
                self.model, self.gradient_windows, config, progress=True
            )
        return self._gradients[targets, side]

    def weight_gradients(self, names: Collection[str]) -> dict[str, Tensor]:
        """Of layers' weights on the train split, see :func:`cua.llm.placement.weight_gradients`; measured once."""
        missing = [name for name in names if name not in self._weight_gradients]
        if missing:
            self._weight_gradients |= weight_gradients(self.model, self.gradient_windows, missing, progress=True)
        return {name: self._weight_gradients[name] for name in names}

    def fit(
        self,
        config: CUAConfig,
        training: TrainConfig,
        folder: Path | None,
        names: str | tuple[str, ...],
        groups: dict[str, Tensor] | None = None,
        layer: int | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Attach, train, measure on split ``names``, save to ``folder`` if given, and detach again.

        Of several splits the first is the run's own, the others are in it by their names.  Hidden states are kept at
        ``layer``, or else at the adapter's first layer; ``options`` go to :func:`train`.
        """
        return self.fit_together({"": (config, groups)}, training, folder, names, layer, **options)

    def fit_together(
        self,
        parts: dict[str, tuple[CUAConfig, dict[str, Tensor] | None]],
        training: TrainConfig,
        folder: Path | None,
        names: str | tuple[str, ...],
        layer: int | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """:meth:`fit` for several adapters that are trained as one; each is saved to a folder of its own below."""
        adapters: dict[str, cua.Adapter] = {}
        try:
            for name, (config, groups) in parts.items():
                adapters[name] = cua.attach(self.model, config, groups)
            measured = self._train_and_measure(list(adapters.values()), training, names, layer, **options)
            if folder is not None:
                for name, adapter in adapters.items():
                    cua.save(adapter, folder / name)
            norm = max(_largest_k_norm(adapter) for adapter in adapters.values())
        finally:
            for adapter in adapters.values():
                adapter.detach()
        count = sum(adapter.n_parameters for adapter in adapters.values())
        return {"parameters": count, "largest_k_norm": round(norm, 4)} | measured

    def fit_peft(
        self,
        config: PeftConfig,
        training: TrainConfig,
        names: str | tuple[str, ...],
        layer: int | None = None,
        folder: Path | None = None,
        prepare: Callable[[PeftAdapter], None] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """:meth:`fit` for an adapter of PEFT; the schedule's seed is that of its initial values as well.

        ``prepare`` may change those before training.
        """
        adapter = PeftAdapter(self.model, config, training.seed)
        try:
            if prepare is not None:
                prepare(adapter)
            measured = self._train_and_measure([adapter], training, names, layer, **options)
            if folder is not None:
                adapter.save(folder)
            return {"parameters": adapter.n_parameters} | measured
        finally:
            adapter.detach()

    def _train_and_measure(
        self,
        adapters: list[cua.Adapter] | list[PeftAdapter],
        training: TrainConfig,
        names: str | tuple[str, ...],
        layer: int | None,
        **options: Any,
    ) -> dict[str, Any]:
        layer = min(adapter.first_layer for adapter in adapters) if layer is None else layer
        first, *others = (names,) if isinstance(names, str) else names
        started = time.perf_counter()
        split, prefix = SplitModel(self.model, layer), self.prefix("train", layer)
        options |= {"split": split, "prefix": prefix, "progress": True}
        losses = train(self.model, adapters, self.tokens["train"], training, **options)
        trained = time.perf_counter()
        measured = self.measure(first, layer) | {name: self.measure(name, layer) for name in others}
        return {
            "train_loss": [round(loss, 5) for loss in losses],
            "train_s": round(trained - started, 1),
            "measure_s": round(time.perf_counter() - trained, 1),
        } | measured


@torch.no_grad()
def _largest_k_norm(adapter: cua.Adapter) -> float:
    size = adapter.config.block_size
    return max(torch.linalg.matrix_norm(cua.skew(m.theta, size), 2).max().item() for m in adapter.modules.values())


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
