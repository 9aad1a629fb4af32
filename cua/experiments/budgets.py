"""The best adapters of about 1,000, 6,000 and 25,000 parameters, on the whole test split.

Where the blocks sit is what lowered validation perplexity most at each of these sizes in
:mod:`cua.experiments.placement`: blocks of chosen components, shared equally by the inputs of all v_proj, o_proj and
down_proj.  Trained with bounded K, so that a quantum processor can read the signs of what leaves them.
"""

from cua import CUAConfig
from cua.experiments.placement import BLOCKS
from cua.experiments.protocol import WikitextStudy
from cua.llm.train import TrainConfig

TARGETS = ("v_proj", "o_proj", "down_proj")
BUDGETS = [
    WikitextStudy(
        name=f"budget_{label}",
        question=f"How far do {6 * n_blocks:,} parameters at most, placed where they are worth most, lower perplexity?",
        adapter=CUAConfig(TARGETS),
        training=TrainConfig(steps=240, learning_rate=0.01, max_k_norm=1.9),
        blocks=tuple((projection, n_blocks // len(TARGETS)) for projection in TARGETS),
    )
    for label, n_blocks in zip(("1k", "6k", "25k"), BLOCKS, strict=True)
]
