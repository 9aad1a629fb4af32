"""How circuits, qubits and seconds of a token grow with the model: numbers, and a page on which a reader changes them.

A token passes through its layers one after another, and within a layer through up to four *steps*: the inputs of
q_proj, k_proj and v_proj are there at the same time, then that of o_proj, then those of gate_proj and up_proj, then
that of down_proj.  Blocks of one step can run side by side, steps cannot: what enters the second is known only when the
first has been read out.  A mixture of experts runs the blocks of those experts that a token is sent to.
"""

import html
import json
import math
from importlib.resources import files
from typing import Any

from transformers import PreTrainedModel

from cua.cayley import n_parameters
from cua.llm.architectures import PROJECTIONS, active_parameters
from cua.quantum.cost import Processor, circuits_and_rounds
from cua.quantum.plan import JOB_OVERHEAD_S, MAX_EXECUTIONS, per_job

STEPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
PLACEMENTS = {
    "one v_proj": ("v_proj",),
    "every v_proj": ("v_proj",),
    "all of attention": ATTENTION,
    "every projection": PROJECTIONS,
}
"""Where blocks sit: on the inputs of these projections, in one layer or in all."""


def input_widths(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Width of the input of each projection of a layer: of what a token passes through, and of all experts together.

    Args:
        model: of the Llama family, or a mixture of experts whose experts are one tensor, as transformers 5 has them.
    """
    layer = model.model.layers[0]
    widths = {
        name: (getattr(part, name).in_features,) * 2
        for part in (layer.self_attn, layer.mlp)
        for name in PLACEMENTS["every projection"]
        if hasattr(part, name)
    }
    if experts := getattr(layer.mlp, "experts", None):
        n_experts, inner, width = experts.gate_up_proj.shape
        used = model.config.num_experts_per_tok
        widths |= dict.fromkeys(("gate_proj", "up_proj"), (used * width, n_experts * width))
        widths["down_proj"] = used * inner // 2, n_experts * inner // 2
    return widths


def model_sizes(name: str, model: PreTrainedModel) -> dict[str, Any]:
    """What the arithmetic needs of a model, ready for JSON.

    Args:
        name: to show.
        model: may be on the meta device.

    Returns:
        Parameters, active parameters, and for each placement ``steps``, components of a step and how many such steps a
        token passes through, and ``stored``, components that have blocks.
    """
    widths, layers = input_widths(model), model.config.num_hidden_layers
    placements = {}
    for label, projections in PLACEMENTS.items():
        times = 1 if label == "one v_proj" else layers
        steps = [sum(widths[name][0] for name in step if name in projections) for step in STEPS]
        placements[label] = {
            "steps": [[components, times] for components in steps if components],
            "stored": times * sum(widths[name][1] for name in projections),
        }
    return {
        "name": name,
        "parameters": model.num_parameters(),
        "active": active_parameters(model),
        "placements": placements,
    }


def device_sizes(processor: Processor) -> dict[str, Any]:
    """What the arithmetic needs of a device, ready for JSON."""
    return {
        "name": processor.name,
        "qubits": processor.qubits,
        "reset_s": processor.reset_s,
        "rep_delay_s": processor.rep_delay_s,
        "blocks": {
            str(b): {"chains": block.chains, "cz": block.cz, "circuit_s": block.circuit_s}
            for b, block in processor.blocks.items()
        },
    }


def per_token(
    model: dict[str, Any],
    device: dict[str, Any],
    placement: str = "one v_proj",
    b: int = 4,
    shots: int = 8192,
    rounds: int = 1,
    signs: bool = False,
    usd_per_s: float = 0.0,
) -> dict[str, float]:
    """Circuits, qubits, seconds and money of one token.

    A step of n blocks on c chains takes, in each setting, C = ceil(n / (c rounds)) circuits that use a chain
    r = ceil(n / (c C)) times: C shots (r (circuit_s + reset_s) + rep_delay_s) seconds, and two more for each job.

    Args:
        model, device: of :func:`model_sizes` and :func:`device_sizes`.
        placement: one of :data:`PLACEMENTS`.
        b: components of a block.
        shots: of each circuit, in each setting.
        rounds: how often a chain of qubits may be used in a shot.
        signs: whether signs are read: 2 settings for b = 4, 1 + log2(b) for others, instead of 1.
        usd_per_s: price of a second of the device.

    Returns:
        ``parameters`` of the adapter; ``blocks`` and ``circuits`` of a token; ``cz`` of a block's circuit; ``qubits``
        for the widest step at once; ``scoring_s``, where jobs carry many tokens of a known text, and ``writing_s``,
        where each step of each token is a job of its own, or more; ``usd`` of scoring.

    Raises:
        ValueError: for another placement or size, rounds below 1, or shots that no job carries.
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"placement={placement!r}: one of {', '.join(PLACEMENTS)}")
    if str(b) not in device["blocks"]:
        raise ValueError(f"b={b}: {device['name']} was read for blocks of {', '.join(device['blocks'])}")
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: at least 1")
    step = per_job(shots)
    block, steps = device["blocks"][str(b)], model["placements"][placement]["steps"]
    qubits = b.bit_length() - 1
    settings = 1 if not signs else 2 if b == 4 else 1 + qubits
    circuits, running_s, jobs = 0, 0.0, 0
    for components, times in steps:
        n_blocks = math.ceil(components / b)
        needed, used = circuits_and_rounds(n_blocks, block["chains"], rounds)
        shot_s = used * (block["circuit_s"] + device["reset_s"]) + device["rep_delay_s"]
        circuits += settings * times * needed
        running_s += settings * times * needed * shots * shot_s
        jobs += times * math.ceil(settings * needed / step)
    scoring_s = running_s + JOB_OVERHEAD_S * circuits / step
    return {
        "parameters": model["placements"][placement]["stored"] // b * n_parameters(b),
        "blocks": sum(times * math.ceil(components / b) for components, times in steps),
        "circuits": circuits,
        "cz": block["cz"],
        "qubits": qubits * max(math.ceil(components / b) for components, _ in steps),
        "scoring_s": scoring_s,
        "writing_s": running_s + JOB_OVERHEAD_S * jobs,
        "usd": scoring_s * usd_per_s,
    }


COLUMNS = {
    "parameters": "parameters of the adapter",
    "blocks": "blocks a token",
    "circuits": "circuits a token",
    "qubits": "qubits for the widest step at once",
    "scoring_s": "seconds a token, scoring",
    "writing_s": "seconds a token, writing",
    "usd": "USD a token, scoring",
}


def shown(name: str, value: float) -> str:
    """A number as both the page and its script write it."""
    if name in ("scoring_s", "writing_s", "usd"):
        digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
        return f"{value:,.{digits}f}"
    return f"{value:,.0f}"


def page(models: list[dict[str, Any]], devices: list[dict[str, Any]], usd_per_s: float, **choice: Any) -> str:
    """A fragment of HTML: a table of all models, and where scripts run, controls and a plot.

    Args:
        models, devices: of :func:`model_sizes` and :func:`device_sizes`; the first device is shown first.
        usd_per_s: price of a second of a device.
        choice: options of :func:`per_token` to begin with.

    Returns:
        One self-contained fragment, without network; everything in it is computed by :func:`per_token`, until a reader
        changes a control and the script computes the same.
    """
    start = {"placement": "one v_proj", "b": 4, "shots": 8192, "rounds": 1, "signs": False} | choice
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in ("model", *COLUMNS.values()))
    rows = ""
    for model in models:
        numbers = per_token(model, devices[0], usd_per_s=usd_per_s, **start)
        cells = "".join(f"<td>{shown(name, numbers[name])}</td>" for name in COLUMNS)
        rows += f'<tr><th scope="row">{html.escape(model["name"])}</th>{cells}</tr>'
    data = {
        "models": models,
        "devices": devices,
        "usd_per_s": usd_per_s,
        "start": start,
        "columns": list(COLUMNS),
        "placements": list(PLACEMENTS),
        "job_s": JOB_OVERHEAD_S,
        "job_executions": MAX_EXECUTIONS,
    }
    style, script = (files("cua").joinpath(f"scaling.{kind}").read_text() for kind in ("css", "js"))
    caption = f"{start['placement']}, {start['b']}×{start['b']} blocks, {start['shots']:,} shots, {devices[0]['name']}"
    return (
        f'<div class="cua-scaling"><style>{style}</style><div class="cua-controls"></div>'
        f"<table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f'<div class="cua-plot"></div><script type="application/json">{json.dumps(data)}</script>'
        f"<script>{script}</script></div>"
    )
