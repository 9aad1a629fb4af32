"""Scaling: numbers, and the page on which a reader changes them, in a browser."""

import html
import json
import re
from importlib.resources import files
from itertools import product

import pytest

from cua import CUAConfig, attach
from cua.llm.architectures import ARCHITECTURES, meta_model
from cua.quantum.cost import Processor
from cua.scaling import (
    ATTENTION,
    COLUMNS,
    PLACEMENTS,
    device_sizes,
    input_widths,
    model_sizes,
    page,
    per_token,
    shown,
)

DENSE = [name for name, options in ARCHITECTURES.items() if options["model_type"] == "llama"]
MIXTURES = sorted(ARCHITECTURES.keys() - set(DENSE))
BOXES = "all => all.map(e => e.getBoundingClientRect()).map(b => [b.left, b.top, b.right, b.bottom])"
CHOICES = [
    {"placement": placement, "b": b, "shots": shots, "rounds": rounds, "signs": signs}
    for placement, b, shots, rounds, signs in product(PLACEMENTS, (2, 4, 8), (256, 8192), (1, 17), (False, True))
]


@pytest.fixture(scope="module")
def models():
    return [model_sizes(name, meta_model(name)) for name in ARCHITECTURES]


@pytest.fixture(scope="module")
def devices(marrakesh):
    heron = Processor.of(marrakesh, (2, 4, 8))
    return [device_sizes(heron), device_sizes(heron) | {"name": "twice the delay", "rep_delay_s": 5e-4}]


def arguments(choice: dict) -> dict:
    return choice | {"usd_per_s": 1.6}


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("b", [2, 4, 16])
def test_blocks_and_parameters_are_those_that_attach_counts(name, b, models, devices):
    """Of every placement, on the model itself at full size."""
    sizes = next(model for model in models if model["name"] == name)
    device = devices[0] | {"blocks": {str(b): devices[0]["blocks"]["4"]}}
    for placement, projections in PLACEMENTS.items():
        layers = (0,) if placement == "one v_proj" else None
        adapter = attach(meta_model(name), CUAConfig(projections, layers, block_size=b))
        found = per_token(sizes, device, placement, b)
        assert found["parameters"] == adapter.n_parameters
        assert found["blocks"] == sum(len(module.theta) for module in adapter.modules.values())


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_runs_the_blocks_of_the_experts_that_a_token_is_sent_to(name, devices):
    model = meta_model(name)
    sizes, config = model_sizes(name, model), model.config
    adapter = attach(meta_model(name), CUAConfig(ATTENTION))
    attention = per_token(sizes, devices[0], "all of attention")
    assert attention["parameters"] == adapter.n_parameters
    inner = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    n_experts = getattr(config, "num_local_experts", None) or config.num_experts
    per_expert = config.num_hidden_layers * (2 * config.hidden_size + inner)
    everything = per_token(sizes, devices[0], "every projection")
    assert everything["blocks"] - attention["blocks"] == config.num_experts_per_tok * per_expert // 4
    assert everything["parameters"] - attention["parameters"] == n_experts * per_expert // 4 * 6


def test_the_papers_layer(models, devices):
    llama = next(model for model in models if "3.1-8B" in model["name"])
    full = devices[0] | {"blocks": {"4": devices[0]["blocks"]["4"] | {"chains": 64}}}
    found = per_token(llama, full)
    assert (found["parameters"], found["blocks"], found["circuits"], found["qubits"]) == (6144, 1024, 16, 2048)


def test_seconds_are_those_of_the_plan(models, devices, marrakesh):
    heron = Processor.of(marrakesh, (4,))
    llama = next(model for model in models if "3.1-8B" in model["name"])
    plan = heron.plan(1024, tokens=1000, shots=4096, settings=2, rounds=3)
    found = per_token(llama, devices[0], shots=4096, rounds=3, signs=True)
    assert 1000 * found["circuits"] == plan.circuits
    assert 1000 * found["scoring_s"] == pytest.approx(plan.qpu_s, rel=1e-3)
    assert found["writing_s"] == pytest.approx(heron.plan(1024, 4, 1, 4096, 2, 3).qpu_s)


def test_a_chain_is_used_no_more_often_than_the_circuits_want(models, devices):
    """144 blocks on 63 pairs: three rounds hold them all, however many are allowed."""
    small = models[0]
    assert per_token(small, devices[0], rounds=17) == per_token(small, devices[0], rounds=3)
    assert per_token(small, devices[0], rounds=3)["circuits"] == 1
    assert per_token(small, devices[0], rounds=2)["circuits"] == 2


def test_a_step_of_many_circuits_is_several_jobs(models, devices):
    """10,000 shots: a job carries a thousand circuits, and down_proj of the largest has more."""
    large = next(model for model in models if "405B" in model["name"])
    one, ten = (per_token(large, devices[0], "every projection", 2, shots) for shots in (1, 10_000))
    few = 4 * 126
    assert one["writing_s"] - one["scoring_s"] == pytest.approx(2 * few, rel=1e-2)
    assert ten["writing_s"] - ten["scoring_s"] + ten["circuits"] * 2 / 1000 > 2 * few


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"placement": "lm_head"}, "placement='lm_head': one of one v_proj, every v_proj"),
        ({"b": 64}, "b=64: fake_marrakesh was read for blocks of 2, 4, 8"),
        ({"rounds": 0}, "rounds=0: at least 1"),
        ({"shots": 0}, "shots=0: a job carries 1 to 10,000,000 executions"),
        ({"shots": 20_000_000}, "shots=20000000: a job carries"),
    ],
)
def test_what_cannot_be_is_refused(models, devices, wrong, says):
    with pytest.raises(ValueError, match=says):
        per_token(models[0], devices[0], **wrong)


def test_steps_of_a_layer_wait_for_each_other(models, devices):
    llama = next(model for model in models if "3.1-8B" in model["name"])
    every = per_token(llama, devices[0], "every projection")
    assert every["writing_s"] > 2 * 32 * 4
    assert every["qubits"] == 2 * 14336 // 4, "down_proj, the widest step"


def test_widths_are_those_of_the_layers(models):
    widths = input_widths(meta_model("meta-llama/Llama-3.1-8B-Instruct"))
    assert widths == dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"), (4096, 4096)) | {
        "down_proj": (14336, 14336)
    }


def test_the_script_computes_what_the_library_computes(models, devices, browser):
    tab, cases = browser.new_page(), list(product(CHOICES, models, devices))
    tab.evaluate(files("cua").joinpath("scaling.js").read_text())
    data = {"usd_per_s": 1.6, "job_s": 2.0, "job_executions": 10_000_000}
    ours = [per_token(model, device, **arguments(choice)) for choice, model, device in cases]
    arguments_of_all = [[model, device, choice, data] for choice, model, device in cases]
    assert tab.evaluate("all => all.map(one => perToken(...one))", arguments_of_all) == [pytest.approx(n) for n in ours]
    texts = tab.evaluate("all => all.map(one => Object.entries(one).map(([name, value]) => shown(name, value)))", ours)
    assert texts == [[shown(name, value) for name, value in numbers.items()] for numbers in ours]


def cells(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", page)
    return [[html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def expected(models, device, choice) -> list[list[str]]:
    return [
        [model["name"], *(shown(name, number) for name, number in numbers.items() if name in COLUMNS)]
        for model in models
        for numbers in [{k: per_token(model, device, **arguments(choice))[k] for k in COLUMNS}]
    ]


def test_without_a_script_the_default_table_is_there(models, devices):
    assert cells(page(models, devices, 1.6)) == expected(models, devices[0], {})
    assert cells(page(models, devices, 1.6, rounds=17)) == expected(models, devices[0], {"rounds": 17})


def test_a_browser_draws_what_was_chosen(models, devices, browser, tmp_path):
    """By the address, as a link gives it, and by a reader who changes a control."""
    file = tmp_path / "page.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><body>{page(models, devices, 1.6)}")
    tab = browser.new_page()

    def opened(fragment: str) -> list[list[str]]:
        tab.goto("about:blank")
        tab.goto(f"{file.as_uri()}{fragment}")
        return cells(tab.content())

    assert opened("") == expected(models, devices[0], {})
    assert tab.locator("circle").count() == len(models)
    assert tab.locator("select").count() == 6
    tab.get_by_label("block size").select_option("8")
    tab.get_by_label("device").select_option("1")
    assert cells(tab.content()) == expected(models, devices[1], {"b": 8})
    link = "#scaling?b=8&shots=1024&placement=every%20v_proj&device=1&rounds=3&signs=true"
    choice = {"b": 8, "shots": 1024, "placement": "every v_proj", "rounds": 3, "signs": True}
    assert opened(link) == expected(models, devices[1], choice)
    assert opened("#scaling?b=7&shots=-1&placement=%3Cb%3E&device=9&rounds=1e9") == expected(models, devices[0], {})


@pytest.mark.parametrize("width", [1280, 390])
def test_labels_of_the_plot_can_be_read(models, devices, browser, tmp_path, width):
    """None on top of another, none beside the plot, in letters of twelve pixels."""
    short = [model | {"name": model["name"].split("/")[1].split("-Instruct")[0]} for model in models]
    file = tmp_path / "page.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><body>{page(short, devices, 1.6)}")
    tab = browser.new_page(viewport={"width": width, "height": 900})
    for placement in PLACEMENTS:
        tab.goto("about:blank")
        tab.goto(f"{file.as_uri()}#scaling?placement={placement}")
        (plot,) = tab.locator("svg").evaluate_all(BOXES)
        boxes = tab.locator("circle + text").evaluate_all(BOXES)
        assert len(boxes) == len(models)
        for i, (left, top, right, bottom) in enumerate(boxes):
            assert 10 < bottom - top < 20
            assert plot[0] <= left < right <= plot[2]
            for other in boxes[:i]:
                beside = left >= other[2] - 1 or right <= other[0] + 1
                assert beside or top >= other[3] - 1 or bottom <= other[1] + 1


def test_the_data_of_the_page_is_json(models, devices):
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', page(models, devices, 1.6))
    assert json.loads(data)["models"] == models
