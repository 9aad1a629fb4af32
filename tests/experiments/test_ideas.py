import pytest
import torch

from cua import CUAConfig, attach, cayley, inverse_cayley, skew, unskew
from cua.experiments import ideas, placement
from cua.experiments.ideas import IDEAS, RATES, CayleyAdam, groups_of


@pytest.fixture
def gradients() -> dict[str, torch.Tensor]:
    """Thirty layers, the later the larger."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for layer in range(30):
        k = (1 + layer / 10) * torch.randn(192, 192, generator=generator)
        made[f"model.layers.{layer}.self_attn.v_proj"] = k - k.mT
    return made


@pytest.mark.parametrize("b", [2, 4, 8])
def test_the_gradient_of_a_small_rotation(b):
    """CayleyAdam's formula against autograd through cayley(delta) Q at delta = 0."""
    torch.manual_seed(0)
    theta = torch.randn(7, b * (b - 1) // 2, dtype=torch.float64, requires_grad=True)
    target = torch.randn(7, b, b, dtype=torch.float64)
    (cayley(skew(theta, b)) * target).sum().backward()
    delta = torch.zeros_like(theta, requires_grad=True)
    (cayley(skew(delta, b)) @ cayley(skew(theta.detach(), b)) * target).sum().backward()
    a = torch.eye(b) + skew(theta.detach(), b) / 2
    torch.testing.assert_close(unskew(a.mT @ skew(theta.grad, b) @ a), delta.grad, rtol=1e-9, atol=1e-9)


def test_steps_on_the_manifold():
    """The first from the identity is Adam's own; each later one turns by what Adam's step of that size would."""
    torch.manual_seed(0)
    target = cayley(skew(torch.randn(5, 6), 4))
    plain, ours = (torch.nn.Parameter(torch.zeros(5, 6)) for _ in range(2))
    optimizers = torch.optim.Adam([plain], lr=0.1), CayleyAdam([ours], lr=0.1)
    losses = []
    for step in range(200):
        for theta, optimizer in zip((plain, ours), optimizers, strict=True):
            optimizer.zero_grad()
            loss = ((cayley(skew(theta, 4)) - target) ** 2).sum()
            loss.backward()
            before = cayley(skew(theta.detach(), 4))
            optimizer.step()
        turned = unskew(inverse_cayley(cayley(skew(ours.detach(), 4)) @ before.mT))
        assert turned.abs().max() < 0.2
        if step == 0:
            torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)
            assert ours.abs().min() > 0.09
        losses.append(loss.item())
    assert losses[-1] < 1e-4 < losses[0]


@pytest.mark.parametrize("idea", IDEAS.values(), ids=IDEAS)
def test_every_idea_has_its_blocks_and_about_the_same_parameters(idea, gradients):
    groups = groups_of(idea, gradients, seed=0)
    b = idea.config.block_size
    assert sum(map(len, groups.values())) == idea.n_blocks
    assert 840 <= idea.n_blocks * (b * (b - 1) // 2 + idea.config.gain) <= 992
    for group in groups.values():
        assert group.shape[1] == b
        assert len(group.unique()) == group.numel()
    if idea.groups == "whole layers":
        assert list(groups) == list(gradients)[-3:]
        assert all(torch.equal(group.flatten(), torch.arange(192)) for group in groups.values())
    if idea.groups == "in order":
        assert all((group == group[:, :1] + torch.arange(b)).all() for group in groups.values())


def test_random_blocks_differ_by_seed(gradients):
    first, again, other = (groups_of(IDEAS["random"], gradients, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(name not in other or not torch.equal(first[name], other[name]) for name in first)


def test_headline_of_the_ideas_by_hand():
    """The n-th idea reaches 19 - n/10 at the middle rate, which its second split chooses; its first would not."""
    runs = {"base": {"perplexity": 20.0}}
    for n, name in enumerate(IDEAS):
        for rate in RATES:
            run = {"perplexity": 19.0 - 0.1 * n - 0.5 * (rate != RATES[1]), "parameters": 800 + n}
            runs[f"{name}-rate{rate}-seed0"] = run | {"rates": {"perplexity": 15.0 + (rate != RATES[1])}}
        for seed in (1, 2):
            runs[f"{name}-rate{RATES[1]}-seed{seed}"] = {"perplexity": 19.0 - 0.1 * n + 0.01 * seed}
    numbers = ideas.headline(runs)
    assert numbers["plain_change"]["value"] == pytest.approx(-4.95)
    assert numbers["random_rate"]["value"] == RATES[1]
    assert "plain_against_plain" not in numbers
    assert numbers["random_parameters"]["value"] == 801
    expected = sum(100 * ((18.9 + 0.01 * s) / (19.0 + 0.01 * s) - 1) for s in range(3)) / 3
    assert numbers["random_against_plain"]["value"] == pytest.approx(expected)
    assert numbers["random_against_plain"]["low"] < expected < numbers["random_against_plain"]["high"]


def test_cells_of_the_placement_fit_the_model(embedded):
    model, _ = embedded
    cells = placement.cells(model)
    assert len(cells) == 14 * 5 + 14 + 14 + 12 + 9
    assert "v_proj/output/4320/all" not in cells, "192 wide: 1,440 blocks"
    for name, (config, share) in cells.items():
        adapter = attach(model, config)
        for projection, n_blocks in share:
            mine = [module.theta for path, module in adapter.modules.items() if path.endswith(projection)]
            assert n_blocks <= sum(map(len, mine)), name
        assert sum(n for _, n in share) <= int(name.split("/")[2])
        assert adapter.first_layer == (config.layers or (0,))[0]
        adapter.detach()
    assert isinstance(cells["q_proj/input/144/6-11"][0], CUAConfig)
