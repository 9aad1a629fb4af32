"""The paper's placement, 4x4 blocks on the input of v_proj: in one layer, and in all."""

from cua import CUAConfig
from cua.experiments.protocol import WikitextStudy
from cua.llm.train import TrainConfig

ONE_LAYER = WikitextStudy(
    name="v_proj_one",
    question="How far do 864 parameters on one v_proj lower WikiText-2 perplexity, exact and sign-constrained?",
    adapter=CUAConfig(target_modules=("v_proj",), layers=(20,), block_size=4),
    training=TrainConfig(steps=240, learning_rate=0.04),
)

ALL_LAYERS = WikitextStudy(
    name="v_proj_all",
    question="How far do 25,920 parameters on all thirty v_proj lower it, exact and sign-constrained?",
    adapter=CUAConfig(target_modules=("v_proj",), block_size=4),
    training=TrainConfig(steps=240, learning_rate=0.02),
)
