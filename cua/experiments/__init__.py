"""Recorded experiments: name -> (question, function that records it)."""

from cua.experiments import speed, v_proj_selection
from cua.experiments.v_proj import ALL_LAYERS, ONE_LAYER

EXPERIMENTS = {
    speed.ADAPTER: (speed.ADAPTER_QUESTION, speed.run_adapter),
    speed.PREFIX: (speed.PREFIX_QUESTION, speed.run_prefix),
    v_proj_selection.NAME: (v_proj_selection.QUESTION, v_proj_selection.run),
    ONE_LAYER.name: (ONE_LAYER.question, ONE_LAYER.run),
    ALL_LAYERS.name: (ALL_LAYERS.question, ALL_LAYERS.run),
}
