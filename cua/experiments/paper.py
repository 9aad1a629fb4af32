"""The paper's experiment on the paper's model, for someone with its weights and one GPU of 24 GB or more:

    accelerate launch -m cua.experiments paper_8b

6,144 parameters: 1,024 blocks of 4x4 on the input of one v_proj of Llama 3.1 8B Instruct.  Which layer and which
learning rate is chosen on WikiText-2 validation text; five seeds, read exactly and with signs copied from the input,
are measured once on the test split.  Each run is written as soon as it is done, and what was interrupted resumes.  The
text is WikiText-2's; the paper's own data and protocol are not public.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import PartialState

from cua import CUAConfig
from cua.experiments.bench import LENGTHS, Bench, wikitext_splits
from cua.experiments.protocol import change_over_text, mean_interval, percent_change, used
from cua.experiments.record import ADAPTERS, Record, point
from cua.llm.data import load_corpus
from cua.llm.models import identity, load_model
from cua.llm.train import TrainConfig


@dataclass(frozen=True)
class PaperProfile:
    """One layer of blocks on one model, chosen on validation text and measured once on test text.

    Attributes:
        name: of the result file and the adapters' folder.
        model: hub id or folder.
        layers: decoder layers to choose from, each trained with the middle one of ``rates``.
        rates: learning rates to choose from, tried in the best layer.
        steps: of the final runs; those that choose have half as many.
        seeds: of the final runs.
        readouts: of the final runs; those that choose are read exactly.
        lengths: tokens a window, by split.
        limits: at most so many windows, by split: hidden states of all of them are kept in memory.
        dtype: of the frozen weights.
    """

    name: str = "paper_8b"
    model: str = "meta-llama/Llama-3.1-8B-Instruct"
    layers: tuple[int, ...] = (8, 16, 20, 26)
    rates: tuple[float, ...] = (0.01, 0.02, 0.04)
    steps: int = 240
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    readouts: tuple[str, ...] = ("exact", "sign-constrained")
    lengths: tuple[tuple[str, int], ...] = tuple(LENGTHS.items())
    limits: tuple[tuple[str, int], ...] = (("train", 2048),)
    dtype: str = "bfloat16"

    @property
    def question(self) -> str:
        return f"How far do 4x4 blocks on one v_proj lower WikiText-2 perplexity of {self.model}?"

    def layer_tokens(self, n_layers: int, windows: dict[str, int], best: int | None = None) -> tuple[int, int]:
        """What a run computes, counted in tokens times decoder layers.

        Args:
            n_layers: of the model.
            windows: of each split.
            best: the layer that is chosen; the lowest of ``layers``, with which it takes longest, if left out.

        Returns:
            Those of forward passes, and of backward passes, each of which costs about as much: weights are frozen.
        """
        best = min(self.layers) if best is None else best
        length = dict(self.lengths)
        tokens = {split: n * length[split] for split, n in windows.items()}

        def fit(layer: int, steps: int, split: str) -> int:  # and the first window of a prefix is computed again
            check = (length["train"] + length[split]) * layer
            return (steps * length["train"] + tokens[split]) * (n_layers - layer) + check

        half, forward, backward = self.steps // 2, 0, 0
        forward += tokens["selection"] * n_layers + length["selection"] * self.layers[0]  # the base model
        for i, layer in enumerate(self.layers):
            forward += (tokens["train"] + (tokens["selection"] if i else 0)) * layer + fit(layer, half, "selection")
            backward += half * length["train"] * (n_layers - layer)
        if best != self.layers[-1]:
            forward += (tokens["train"] + tokens["selection"]) * best  # hidden states of one layer are kept at a time
        rates, runs = len(self.rates) - 1, len(self.seeds) * len(self.readouts)
        forward += rates * fit(best, half, "selection") + runs * fit(best, self.steps, "test")
        forward += tokens["test"] * n_layers + length["test"] * best
        backward += (rates * half + runs * self.steps) * length["train"] * (n_layers - best)
        return forward, backward

    def run(self) -> dict[str, Any]:
        """Record what is not recorded yet.

        Raises:
            ModelUnavailable: if the weights cannot be had: see :func:`cua.llm.models.load_model`.
            DataUnavailable: if WikiText-2 cannot be had.
        """
        corpora = wikitext_splits() | {"test": load_corpus("wikitext-2", "test")}
        state = PartialState(cpu=not torch.cuda.is_available())
        device_map = None if state.device.type == "cpu" else {"": state.device}
        where = "a CPU, for PyTorch finds no GPU: weeks for 8B" if device_map is None else str(state.device)
        text = corpora["train"]
        state.print(f"{self.model} on {where}; trained on {text.name}, {text.split} ({text.source})")
        model, tokenizer = load_model(self.model, dtype=getattr(torch, self.dtype), device_map=device_map)
        bench = Bench.of(model, tokenizer, corpora, dict(self.lengths), dict(self.limits))
        record = Record(
            {
                "name": self.name,
                "question": self.question,
                "config": {key: value for key, value in asdict(self).items() if key != "name"}
                | {"training": used(TrainConfig(self.steps)), "block_size": 4, "processes": state.num_processes},
                "seeds": self.seeds,
                "model": identity(model),
                "data": bench.data,
            }
        )

        def fit(
            layer: int, rate: float, steps: int, split: str, readout: str = "exact", seed: int = 0
        ) -> dict[str, Any]:
            config = CUAConfig(("v_proj",), (layer,), readout=readout)
            training = TrainConfig(steps, rate, batch=state.num_processes, seed=seed)
            if split != "test":
                return record.once(f"layer{layer}-rate{rate}", lambda: bench.fit(config, training, None, split))
            key = f"{readout}-seed{seed}"
            folder = ADAPTERS / self.name / key if state.is_main_process else None
            return record.once(key, lambda: bench.fit(config, training, folder, split))

        def base(split: str, layer: int) -> dict[str, Any]:
            return record.once(f"base-{split}", lambda: bench.measure(split, layer))

        middle, half = self.rates[len(self.rates) // 2], self.steps // 2
        chosen = base("selection", self.layers[0])
        by_layer = {layer: fit(layer, middle, half, "selection")["perplexity"] for layer in self.layers}
        layer = min(by_layer, key=by_layer.get)
        by_rate = {rate: fit(layer, rate, half, "selection")["perplexity"] for rate in self.rates}
        rate = min(by_rate, key=by_rate.get)
        change = 100 * (by_rate[rate] / chosen["perplexity"] - 1)
        state.print(f"layer {layer}, rate {rate}: {change:+.2f} % on validation text")
        before = base("test", layer)
        numbers = {
            "layer": point(layer, "decoder layer, counted from 0"),
            "learning_rate": point(rate, "1"),
            "base_perplexity": point(before["perplexity"], "perplexity"),
        }
        for readout in self.readouts:
            runs = [fit(layer, rate, self.steps, "test", readout, seed) for seed in self.seeds]
            label = readout.replace("-", "_")
            numbers["parameters"] = point(runs[0]["parameters"], "parameters")
            numbers[f"{label}_perplexity"] = mean_interval([run["perplexity"] for run in runs], "perplexity")
            numbers[f"{label}_change"] = mean_interval([percent_change(run, before) for run in runs], "%")
            numbers[f"{label}_change_over_text"] = change_over_text([(run, before) for run in runs])
        return record.finish(numbers)


PAPER_8B = PaperProfile()
