"""The paper's placement, 4x4 blocks on the input of v_proj: in one layer, and in all."""

from dataclasses import replace

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

# For the noise of chapter 5: other blocks in the same place.  Rates: chosen on validation, see rate_selection.
BLOCK_SIZES = [
    WikitextStudy(
        name=f"v_proj_{label}",
        question=f"How far do {what} on one v_proj lower WikiText-2 perplexity, read exactly?",
        adapter=replace(ONE_LAYER.adapter, block_size=b, strides=strides),
        training=TrainConfig(steps=240, learning_rate=rate, max_k_norm=1.9 if b == 4 else None),
        readouts=("exact",),
        seeds=(0, 1, 2),
    )
    for label, what, b, strides, rate in [
        ("bounded", "4x4 blocks that never turn by a right angle", 4, (1,), 0.04),
        ("2x2", "2x2 blocks", 2, (1,), 0.04),
        ("8x8", "8x8 blocks", 8, (1,), 0.04),
        ("16x16", "16x16 blocks", 16, (1,), 0.02),
        ("butterfly", "two butterfly layers of 4x4 blocks", 4, (1, 4), 0.04),
        ("butterfly5", "five butterfly layers of 4x4 blocks", 4, (1, 4, 16, 48, 144), 0.02),
    ]
]
BOUNDED = BLOCK_SIZES[0]

# For chapter 8: what chapter 5 left out, so that every size is there both exact and sign-constrained.
_RATES = {
    study.adapter.block_size: study.training.learning_rate for study in BLOCK_SIZES if study.adapter.strides == (1,)
}
BLOCK_DIMENSIONS = [
    WikitextStudy(
        name=f"v_proj_{b}x{b}" + ("" if len(readouts) > 1 else "_constrained"),
        question=f"How far do {b}x{b} blocks on one v_proj lower WikiText-2 perplexity, {' and '.join(readouts)}?",
        adapter=replace(ONE_LAYER.adapter, block_size=b),
        training=TrainConfig(steps=240, learning_rate=rate),
        readouts=readouts,
        seeds=(0, 1, 2),
    )
    for b, rate, readouts in [
        (2, _RATES[2], ("sign-constrained",)),
        (8, _RATES[8], ("sign-constrained",)),
        (16, _RATES[16], ("sign-constrained",)),
        (32, 0.02, ("exact", "sign-constrained")),
        (64, 0.01, ("exact", "sign-constrained")),
    ]
]
