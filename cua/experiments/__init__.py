"""Recorded experiments: name -> (question, function that records it)."""

from cua.experiments import (
    baseline_cost,
    baseline_selection,
    baselines,
    block_readout,
    budget_circuits,
    circuit_speed,
    compression,
    compression_rates,
    distillation,
    domains,
    forgetting,
    hardware,
    ideas,
    noise_frontier,
    placement,
    rate_selection,
    speed,
    two_questions,
    v_proj_selection,
)
from cua.experiments.benchmarks import STUDIES as BENCHMARK_STUDIES
from cua.experiments.budgets import BUDGETS
from cua.experiments.v_proj import ALL_LAYERS, BLOCK_DIMENSIONS, BLOCK_SIZES, ONE_LAYER

EXPERIMENTS = {
    speed.ADAPTER: (speed.ADAPTER_QUESTION, speed.run_adapter),
    speed.PREFIX: (speed.PREFIX_QUESTION, speed.run_prefix),
    v_proj_selection.NAME: (v_proj_selection.QUESTION, v_proj_selection.run),
    ONE_LAYER.name: (ONE_LAYER.question, ONE_LAYER.run),
    ALL_LAYERS.name: (ALL_LAYERS.question, ALL_LAYERS.run),
    circuit_speed.NAME: (circuit_speed.QUESTION, circuit_speed.run),
    **{chosen.name: (chosen.question, chosen.run) for chosen in rate_selection.SELECTIONS},
    **{study.name: (study.question, study.run) for study in (*BLOCK_SIZES, *BLOCK_DIMENSIONS, *BUDGETS)},
    noise_frontier.NAME: (noise_frontier.QUESTION, noise_frontier.run),
    block_readout.NAME: (block_readout.QUESTION, block_readout.run),
    budget_circuits.NAME: (budget_circuits.QUESTION, budget_circuits.run),
    hardware.NAME: (hardware.QUESTION, hardware.run),
    distillation.NAME: (distillation.QUESTION, distillation.run),
    compression_rates.NAME: (compression_rates.QUESTION, compression_rates.run),
    compression.NAME: (compression.QUESTION, compression.run),
    ideas.NAME: (ideas.QUESTION, ideas.run),
    placement.NAME: (placement.QUESTION, placement.run),
    baseline_selection.NAME: (baseline_selection.QUESTION, baseline_selection.run),
    baselines.NAME: (baselines.QUESTION, baselines.run),
    baseline_cost.NAME: (baseline_cost.QUESTION, baseline_cost.run),
    domains.NAME: (domains.QUESTION, domains.run),
    forgetting.NAME: (forgetting.QUESTION, forgetting.run),
    **{study.name: (study.question, study.run) for study in BENCHMARK_STUDIES},
    two_questions.NAME: (two_questions.QUESTION, two_questions.run),
}
