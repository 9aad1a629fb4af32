"""Budgets, and what reads their blocks from counts."""

import math

import numpy as np
import pytest
import torch

from cua import attach
from cua.experiments import block_readout, budget_circuits, placement
from cua.experiments.bench import Bench
from cua.experiments.budgets import BUDGETS
from cua.experiments.protocol import chosen_groups
from cua.quantum.blocks import Execution


@pytest.mark.parametrize(("study", "most"), list(zip(BUDGETS, (1000, 6144, 25920), strict=True)))
def test_a_budget_is_kept(study, most):
    parameters = 6 * sum(n_blocks for _, n_blocks in study.blocks)
    assert 0.85 * most < parameters <= most
    assert study.training.max_k_norm < 2, "or else signs cannot be read"


def test_every_projection_of_a_mixture_gets_its_share(frozen):
    windows = torch.randint(97, (32, 16), generator=torch.Generator().manual_seed(0))
    bench = Bench(frozen, {"train": windows}, {})
    work = placement.cells(frozen)
    config, share = work["v_proj+o_proj/input/144/all"]
    share = tuple((projection, n_blocks // 36) for projection, n_blocks in share)
    groups = chosen_groups(bench.gradients(placement.PROJECTIONS, "input"), config, share)
    assert [sum(len(g) for name, g in groups.items() if name.endswith(p)) for p, _ in share] == [2, 2]
    adapter = attach(frozen, config, groups)
    assert adapter.n_parameters == 24


@pytest.mark.parametrize("b", [2, 8, 32])
def test_counted_outputs_come_near_the_product(rotations, b):
    x, q = np.random.default_rng(b).normal(size=(40, 3, b)), rotations(3, b=b, norm=1.2)
    x[3, 1] = 0.0
    y = np.einsum("nij,tnj->tni", q, x)
    found = block_readout.counted(q, np.random.default_rng(0), 1_000_000, x)
    assert np.abs(found - y).max() < 0.03 * np.linalg.norm(x, axis=-1).max()
    assert not found[3, 1].any()
    fewer = block_readout.counted(q, np.random.default_rng(0), 1000, x)
    assert 100 < ((fewer - y) ** 2).mean() / ((found - y) ** 2).mean() < 10_000


def test_headline_of_the_readings_by_hand():
    """As trained 20; turned back 21; counted 22; the second and third seed a little more."""
    level = {"as trained": 20.0, "bounded": 21.0, "sign-faithful": 22.0}
    runs = {
        f"{b}/{reading}/{seed}": _run(level[reading] + 0.1 * seed * (reading != "as trained"))
        for b in block_readout.TRAINED
        for reading in level
        for seed in block_readout.SEEDS
    }
    numbers = block_readout.headline(runs)
    assert numbers["penalty_32x32_bounded"]["value"] == pytest.approx(5.5)
    assert numbers["penalty_2x2_sign_faithful"]["value"] == pytest.approx(10.5)
    assert numbers["penalty_2x2_sign_faithful"]["low"] < 10.5 < numbers["penalty_2x2_sign_faithful"]["high"]
    assert len(numbers) == 4 * len(block_readout.TRAINED)


def test_headline_of_the_budgets_on_circuits_puts_the_parts_together():
    """36 windows, of which the first eight and the last four are run: base 30, exact 25, on noisy circuits 26 and 27.
    Between them the adapter without circuits does worse, which must not count."""
    n, runs, exact = 36, {}, {}
    base = _run(30.0, n)
    for study in BUDGETS:
        exact[study.name] = _run(25.0, n)
        exact[study.name]["nll"][8:32] = [99.0] * 24
        for device, less in (("noisy", 0.0), ("mitigated", 0.5), ("perfect", 1.0)):
            runs |= {f"{study.name}/{device}/{4 * i}": _run(26.0 + i - less, n) for i, n in enumerate((8, 4))}
    numbers = budget_circuits.headline(runs, exact, base)
    noisy = math.exp((8 * math.log(26) + 4 * math.log(27)) / 12)
    assert numbers["penalty_budget_6k_noisy"]["value"] == pytest.approx(100 * (noisy / 25 - 1))
    assert numbers["change_budget_1k_noisy"]["value"] == pytest.approx(100 * (noisy / 30 - 1))
    assert numbers["change_budget_25k_perfect"]["value"] < numbers["change_budget_25k_mitigated"]["value"] < -13
    assert numbers["change_budget_1k_exact"]["value"] == pytest.approx(100 * (25 / 30 - 1))
    assert len(numbers) == (1 + 2 * 3) * len(BUDGETS)


def test_pairs_of_qubits_are_dealt_on_from_layer_to_layer(rotations):
    places = tuple((2 * i, 2 * i + 1) for i in range(5))
    runner = budget_circuits.one_after_another(Execution(places=places, shots=100, seed=3))
    first, second, third = (runner(rotations(n)) for n in (3, 7, 1))
    assert first.places == [places[i] for i in (0, 1, 2)]
    assert second.places == [places[i] for i in (3, 4, 0, 1, 2, 3, 4)]
    assert third.places == [places[0]]
    draws = [runner.rng.integers(1 << 30) for runner in (first, second, third)]
    assert len(set(draws)) == 3, "each layer has shots of its own"


def _run(perplexity: float, n_windows: int = 4) -> dict:
    return {"perplexity": perplexity, "nll": [10 * math.log(perplexity)] * n_windows, "tokens": 10 * n_windows}
