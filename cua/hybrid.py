"""Where both wings meet: a language model whose blocks are run as quantum circuits.

with run_on_circuits(adapter, Execution(noise=DeviceNoise(backend), places=disjoint_paths(backend, 2))):
    perplexity(model, windows)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from cua.adapter import Adapter, CayleyLinear
from cua.cayley import cayley, skew
from cua.quantum.blocks import MITIGATIONS, BlockRunner, Execution
from cua.quantum.jobs import JobRunner
from cua.quantum.mitigation import reset_response
from cua.quantum.noise import DeviceNoise
from cua.quantum.plan import DryRun
from cua.quantum.shift import parameter_shift, shifted

Runner = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # slices -> outputs, (tokens, n_blocks, b)


class DeviceRunner(BlockRunner):
    """Runs the blocks of one layer as jobs, signs read faithfully.

    Args:
        q: ``(n_blocks, 4, 4)`` orthogonal.
        jobs: where to; a :class:`DryRun` sends nothing.
        mitigation: as of :class:`Execution`; the depolarising strength counts errors of the resets in.
        importance: of each block, ``(n_blocks,)``: the more important ones get the better slots; in their order if left
            out.
        noise: calibration to mitigate by.  If left out, the device's of the day on which the journal was begun.
        layer: number of this layer and stride.

    Raises:
        ValueError: as :class:`BlockRunner`.
    """

    def __init__(
        self,
        q: NDArray[np.float64],
        jobs: JobRunner | DryRun,
        mitigation: str = "none",
        importance: NDArray[np.float64] | None = None,
        noise: DeviceNoise | None = None,
        layer: int = 0,
    ) -> None:
        self.jobs, self.layer, self.kept = jobs, layer, noise is None
        self.order = np.arange(len(q))
        if importance is not None and (np.shape(importance) != (len(q),) or not np.isfinite(importance).all()):
            raise ValueError(f"importance: one finite number for each of the {len(q)} blocks; see slice_energies")
        if mitigation not in MITIGATIONS:
            raise ValueError(f"unknown mitigation {mitigation!r}; known: {', '.join(MITIGATIONS)}")
        if isinstance(jobs, DryRun):
            mitigation = "none"
        elif importance is not None:
            self.order = jobs.keep(f"order-{layer:03}", lambda: jobs.packed.deal(importance))
        if mitigation == "none":
            noise = None
        elif noise is None:
            noise = DeviceNoise(jobs.backend, asymmetric_readout=not jobs.twirls_measurements)
        places = jobs.packed.pairs
        super().__init__(q[self.order], Execution(shots=None, noise=noise, places=places, mitigation=mitigation))

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        y = np.empty_like(x)
        y[:, self.order] = super().__call__(x[:, self.order])
        return y

    def measure(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[NDArray[Any]]]:
        """The slices that went in, and their counts in both settings."""
        return self.jobs.measure(x, self.settings)

    def _start(self) -> NDArray[np.float64]:
        """|00> in the first round; later what a reset makes of outcomes that were all equally likely."""
        packed, noise = self.jobs.packed, self.execution.noise
        round_ = np.arange(len(self.q)) % packed.n_slots // len(packed.pairs)
        later = [reset_response(noise, pair, packed.resets) for pair in self.places]
        return np.where(round_[:, None] > 0, np.stack(later).mean(-1), np.eye(4)[0])

    def _inverse(self, setting: int) -> NDArray[np.float64] | None:
        if self.execution.mitigation == "none" or not self.kept:
            return super()._inverse(setting)
        name = f"{self.execution.mitigation.replace('+', '-')}-{self.layer:03}-{setting}"
        return self.jobs.keep(name, lambda: super(DeviceRunner, self)._inverse(setting))


def slice_energies(adapter: Adapter, ids: Tensor) -> list[NDArray[np.float64]]:
    """Mean squared length of the slices that enter each block: how much an error of the block weighs.

    The measurement's errors are relative to the length of a slice, and a few components of a language model's hidden
    states are far larger than the others.

    Args:
        adapter: attached to a model.
        ids: tokens ``(batch, length)`` of a text like the ones to be run, but not of the test text.

    Returns:
        ``(n_blocks,)`` for each layer and stride, as :func:`run_on_device` takes them.
    """
    energies: list[NDArray[np.float64]] = []

    def runner(q: NDArray[np.float64]) -> Runner:
        place = len(energies)
        energies.append(np.zeros(len(q)))

        def run(x: NDArray[np.float64]) -> NDArray[np.float64]:
            energies[place] += (x**2).sum((0, 2)) / ids.numel()
            return np.einsum("nij,tnj->tni", q, x)

        return run

    with run_blocks(adapter, runner):
        adapter.model(ids)
    return energies


def run_on_circuits(adapter: Adapter, execution: Execution) -> AbstractContextManager[None]:
    """Inside this context every block of the adapter is evaluated by ``execution`` instead of a matrix product.

    The adapter's own ``readout`` is not used, and no gradients are kept.  The blocks are those of the moment of entry:
    parameters changed inside have no effect.  Outputs come in the dtype and on the device of the activations.

    Raises:
        ValueError: on entry, see :class:`BlockRunner`.
    """

    streams = count()
    return run_blocks(adapter, lambda q: BlockRunner(q, execution, next(streams)))


def run_on_device(
    adapter: Adapter,
    jobs: JobRunner | DryRun,
    mitigation: str = "none",
    importance: Sequence[NDArray[np.float64]] | None = None,
    noise: DeviceNoise | None = None,
) -> AbstractContextManager[None]:
    """Inside this context every block of the adapter runs as jobs on a device, through a journal; signs are read.

    with JobRunner(packed, sampler, "my-run", shots=4096) as jobs, run_on_device(adapter, jobs):
        model.generate(...)

    Args:
        adapter: of 4x4 blocks, trained with ``max_k_norm`` below 2.
        jobs: device, shots, journal and budget; or a :class:`~cua.quantum.plan.DryRun`, which only adds up what would
            be sent.
        mitigation: "none", "readout" or "readout+depolarising".  The same journal can be read again with another one,
            without running anything, as long as the adapter is in one layer with one stride: what goes into a second
            one depends on what came out of the first.
        importance: of the blocks of each layer and stride, such as :func:`slice_energies`: the more important ones get
            the better pairs and earlier rounds.  A run that goes on keeps the deal it began with.
        noise: calibration to mitigate by.  If left out, the device's of the day on which the journal was begun.

    Raises:
        ValueError: on entry, see :class:`DeviceRunner`, or if ``importance`` is of another number of layers; errors of
            :class:`~cua.quantum.jobs.JobRunner` inside.
    """
    n_layers = len(adapter.modules) * len(adapter.config.strides)
    if importance is not None and len(importance) != n_layers:
        raise ValueError(f"importance of {len(importance)} layers and strides; the adapter has {n_layers}")
    layers = count()

    def runner(q: NDArray[np.float64]) -> DeviceRunner:
        layer = next(layers)
        return DeviceRunner(q, jobs, mitigation, None if importance is None else importance[layer], noise, layer)

    return run_blocks(adapter, runner)


@contextmanager
def train_on_device(adapter: Adapter, jobs: JobRunner | DryRun) -> Iterator[None]:
    """Inside this context blocks run as jobs on a device, and gradients come from it, too: the parameter-shift rule::

        with train_on_device(adapter, dry := DryRun(packed, shots=4096)):
            next_token_nll(split.above(hidden), split.head, ids).backward()
        print(dry.plan)

    A forward pass takes two settings, to read signs from; a backward pass takes six more (see
    :mod:`cua.quantum.shift`).  Everything outside of the blocks is computed as ever.

    Args:
        adapter: of 4x4 blocks that turn by less than a right angle (``max_k_norm`` below 2).
        jobs: device, shots, journal and budget; or a :class:`~cua.quantum.plan.DryRun`, which computes exact gradients
            and adds up what would be sent.

    Raises:
        ValueError: in the forward pass, see :class:`DeviceRunner`; errors of :class:`~cua.quantum.jobs.JobRunner`
            inside.
    """
    executors = (partial(_ShiftedBlocks.apply, jobs),) * len(adapter.config.strides)
    with _executed(adapter, lambda _: executors):
        yield


class _ShiftedBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, jobs: JobRunner | DryRun, x: Tensor, q: Tensor) -> Tensor:
        slices, blocks = (t.detach().cpu().double().numpy() for t in (x.reshape(-1, *q.shape[:2]), q))
        y = DeviceRunner(blocks, jobs)(slices)
        ctx.jobs, ctx.arrays = jobs, (slices, blocks, y)
        return torch.from_numpy(y).reshape(x.shape).to(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        slices, blocks, y = ctx.arrays
        _, counts = ctx.jobs.measure(slices, shifted(blocks))
        grads = parameter_shift(slices, blocks, y, grad.cpu().double().reshape(y.shape).numpy(), counts)
        grad_x, grad_q = map(torch.from_numpy, grads)
        return None, grad_x.reshape(grad.shape).to(grad), grad_q.to(grad)


@contextmanager
def run_blocks(adapter: Adapter, run: Callable[[NDArray[np.float64]], Runner]) -> Iterator[None]:
    """Inside this context every block of the adapter is evaluated by what ``run`` makes of it.

    No gradients are kept; the blocks are those of the moment of entry.

    Args:
        adapter: attached to a model.
        run: called on entry for each layer and stride with its blocks, ``(n_blocks, b, b)``; gives what turns slices
            into outputs, both ``(tokens, n_blocks, b)`` in float64.
    """

    def executor(q: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        runner = run(q.numpy())

        def read(x: Tensor, _: Tensor) -> Tensor:
            y = runner(x.cpu().double().reshape(-1, *q.shape[:2]).numpy())
            return torch.from_numpy(y).reshape(x.shape).to(x)

        return read

    def executors(module: CayleyLinear) -> tuple[Callable[[Tensor, Tensor], Tensor], ...]:
        blocks = cayley(skew(module.theta.cpu().double(), adapter.config.block_size))  # Qiskit wants 1e-8
        return tuple(executor(q) for q in blocks.chunk(len(adapter.config.strides)))

    with torch.no_grad(), _executed(adapter, executors):
        yield


@contextmanager
def _executed(
    adapter: Adapter, executors: Callable[[CayleyLinear], tuple[Callable[[Tensor, Tensor], Tensor], ...]]
) -> Iterator[None]:
    """Inside this context each layer has the executors that ``executors`` makes for it, one a stride."""
    with ExitStack() as stack:
        for module in adapter.modules.values():
            made = executors(module)
            stack.callback(setattr, module, "executors", module.executors)
            module.executors = made
        yield
