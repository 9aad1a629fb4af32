"""Where a parameter lowers perplexity most: every projection, side and depth at about 1k, 6k and 25k parameters.

All of it is measured on held-out validation text, with few steps: an adapter that is to be used is trained longer.
"""

import re
from dataclasses import replace
from typing import Any

import torch

from cua import CUAConfig
from cua.config import SIDES
from cua.experiments.bench import Bench
from cua.experiments.protocol import chosen_groups, percent_change, used
from cua.experiments.record import Record, point
from cua.llm.architectures import PROJECTIONS
from cua.llm.models import identity
from cua.llm.train import TrainConfig

NAME = "placement"
QUESTION = "Which projection, side and depth lowers held-out validation perplexity most, at 1k, 6k and 25k parameters?"
BANDS = tuple(tuple(range(first, first + 6)) for first in range(0, 30, 6))
# Several projections that share the blocks equally; tried after the single ones, on the side that came out ahead.
MIXTURES = (("v_proj", "o_proj"), ("v_proj", "o_proj", "down_proj"), PROJECTIONS)
BLOCKS = (144, 1024, 4320)  # of 4x4: 864, 6,144 and 25,920 parameters
TRAINING = TrainConfig(steps=60, learning_rate=0.02, warmup=10)
EVERY = 3  # every third window of the selection split


Share = tuple[tuple[str, int], ...]  # projections, and how many blocks each of them has


def cells(model: torch.nn.Module) -> dict[str, tuple[CUAConfig, Share]]:
    """Placement and blocks by name: single projections in each band with the smallest budget, all else over depth."""
    found = {}
    for side in SIDES:
        for projection in PROJECTIONS:
            config = CUAConfig((projection,), side=side)
            linear = model.get_submodule("model.layers.0").get_submodule(_path(projection))
            width = linear.in_features if side == "input" else linear.out_features
            for band in BANDS:
                share = ((projection, BLOCKS[0]),)
                found[f"{projection}/{side}/{BLOCKS[0]}/{band[0]}-{band[-1]}"] = replace(config, layers=band), share
            for n_blocks in BLOCKS:
                if n_blocks <= len(model.model.layers) * (width // config.block_size):
                    found[f"{projection}/{side}/{n_blocks}/all"] = config, ((projection, n_blocks),)
    for mixture in MIXTURES:
        for n_blocks in BLOCKS:
            name = "all" if mixture == PROJECTIONS else "+".join(mixture)
            share = tuple((projection, n_blocks // len(mixture)) for projection in mixture)
            found[f"{name}/input/{n_blocks}/all"] = CUAConfig(mixture), share
    return found


def _path(projection: str) -> str:
    return ("mlp." if projection in ("gate_proj", "up_proj", "down_proj") else "self_attn.") + projection


def run() -> dict[str, Any]:
    """Every cell, one seed: the windows that train are the same for all, and so are those that are measured."""
    full = Bench.prepare(test=False)
    order = torch.randperm(len(full.tokens["train"]), generator=torch.Generator().manual_seed(0))
    tokens = {"train": full.tokens["train"][order[: TRAINING.steps]], "selection": full.tokens["selection"][::EVERY]}
    bench = Bench(full.model, tokens, full.data)
    record = Record(
        {
            "name": NAME,
            "question": QUESTION,
            "config": {
                "adapter": used(CUAConfig()),
                "blocks": BLOCKS,
                "bands": BANDS,
                "mixtures": MIXTURES,
                "training": used(TRAINING),
                "every": EVERY,
            },
            "seeds": [TRAINING.seed],
            "model": identity(bench.model),
            "data": bench.data,
        }
    )
    work = cells(bench.model)
    # One side after the other, whose gradients fill a gigabyte; from the deepest band to the first, as the hidden
    # states below a band serve all its cells.
    names = sorted(work, key=lambda name: (work[name][0].side, -(work[name][0].layers or (0,))[0]))

    def make(key: str) -> dict[str, Any]:
        if key == "base":
            return bench.measure("selection", 0)
        config, share = work[key]
        groups = chosen_groups(full.gradients(PROJECTIONS, config.side), config, share)
        layer = (config.layers or (0,))[0]
        run = bench.fit(config, TRAINING, None, "selection", groups, layer)
        run["blocks_by_layer"] = {name: len(group) for name, group in groups.items()}
        return run

    if not record.fill(["base", *names], make):
        return record.result
    return record.finish(headline(record.result["runs"]))


def headline(runs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Change of perplexity of each cell, and what the cells cost."""
    numbers = {
        "change_" + re.sub(r"\W", "_", key): point(percent_change(run, runs["base"]), "%")
        for key, run in runs.items()
        if key != "base"
    }
    hours = sum(run["train_s"] + run["measure_s"] for key, run in runs.items() if key != "base") / 3600
    return numbers | {"cells": point(len(runs) - 1, "cells"), "compute": point(hours, "process hours")}
