"""Train an adapter and measure what it does: ``python -m cua --help``.

On several GPUs, or in several processes on a CPU (the flag is the same), the windows of each step are shared:

    accelerate launch --multi_gpu --num_processes 4 -m cua --model meta-llama/Llama-3.1-8B-Instruct --batch 4 ...
"""

import argparse
from pathlib import Path

import torch
from accelerate import PartialState

import cua
from cua import READOUTS, CUAConfig
from cua.config import SIDES
from cua.llm.data import evenly, load_corpus, windows
from cua.llm.evaluate import perplexity
from cua.llm.models import EMBEDDED, load_model
from cua.llm.placement import GRADIENT_WINDOWS, choose_groups, rotation_gradients
from cua.llm.train import TrainConfig, train


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cua", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=EMBEDDED, help="hub id or folder (default: the embedded %(default)s)")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="of the frozen weights (default: %(default)s)",
    )
    parser.add_argument("--corpus", default="auto", help="auto, wikitext-2, wikipedia or news (default: %(default)s)")
    parser.add_argument("--targets", nargs="+", default=["v_proj"], help="projections (default: v_proj)")
    parser.add_argument("--layers", nargs="+", type=int, help="decoder layers, counted from 0 (default: all)")
    parser.add_argument("--side", default="output", choices=SIDES, help="of the projection (default: %(default)s)")
    parser.add_argument("--block-size", type=int, default=4, help="2 to 64 (default: %(default)s)")
    parser.add_argument("--blocks", type=int, help="only so many blocks, where the gradient is largest (default: all)")
    parser.add_argument(
        "--readout", default="exact", choices=tuple(READOUTS), help="how outputs leave a block (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=120, help="of Adam (default: %(default)s)")
    parser.add_argument(
        "--batch", type=int, default=1, help="windows a step, shared by the processes (default: %(default)s)"
    )
    parser.add_argument("--rate", type=float, default=0.04, help="learning rate (default: %(default)s)")
    parser.add_argument(
        "--bound", type=float, help="largest spectral norm of K; 1.9 for signs that can be read from counts"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of windows (default: %(default)s)")
    parser.add_argument("--window", type=int, default=512, help="tokens a window (default: %(default)s)")
    parser.add_argument("--windows", type=int, help="at most so many windows of each split (default: all)")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="where to write the adapter")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    """Train on the train split, report perplexity of the test split before and after."""
    options = _arguments(given)
    layers = tuple(options.layers) if options.layers else None
    config = CUAConfig(tuple(options.targets), layers, options.side, options.block_size, readout=options.readout)
    schedule = TrainConfig(options.steps, options.rate, options.batch, max_k_norm=options.bound, seed=options.seed)
    state = PartialState(cpu=not torch.cuda.is_available())
    if options.save:  # what cannot be written is found out before an hour of training
        options.save.mkdir(parents=True, exist_ok=True)
    device_map = None if state.device.type == "cpu" else {"": state.device}
    model, tokenizer = load_model(options.model, dtype=getattr(torch, options.dtype), device_map=device_map)
    corpora = {split: load_corpus(options.corpus, split) for split in ("train", "test")}
    tokens = {
        split: windows(tokenizer, text.text, options.window)[: options.windows] for split, text in corpora.items()
    }
    shown = state.is_main_process
    for split, corpus in corpora.items():
        state.print(f"{split}: {len(tokens[split]):,} windows of {corpus.name} ({corpus.source})")
    if options.blocks:
        chosen_by = tokens["train"][evenly(len(tokens["train"]), GRADIENT_WINDOWS)]
        gradients = rotation_gradients(model, chosen_by, config, progress=shown)
        groups = choose_groups(gradients, options.block_size, options.blocks)
    else:
        groups = None
    adapter = cua.attach(model, config, groups)
    state.print(adapter)
    with adapter.disabled():
        before = perplexity(model, tokens["test"], progress=shown)
    state.print(f"base model: {before}")
    losses = train(model, adapter, tokens["train"], schedule, progress=shown)
    if options.save and shown:
        state.print(f"written to {cua.save(adapter, options.save)}")
    state.print(f"loss of the first step {losses[0]:.6f}, of the last {losses[-1]:.6f} nats a token")
    after = perplexity(model, tokens["test"], progress=shown)
    state.print(f"adapted: {after}, {100 * (after.value / before.value - 1):+.2f} %")
    if after.value > before.value:
        state.print(
            f"no gain: too few steps, or a rate of {options.rate:g} is too high (most of ours are 0.01 to 0.04)"
        )
    state.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        raise SystemExit(f"python -m cua: {error}") from None
