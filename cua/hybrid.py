"""Where both wings meet: a language model whose blocks are run as quantum circuits.

with run_on_circuits(adapter, Execution(noise=DeviceNoise(backend), places=disjoint_paths(backend, 2))):
    perplexity(model, windows)
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cua.adapter import Adapter
from cua.cayley import cayley, skew
from cua.quantum.blocks import BlockRunner, Execution
from cua.quantum.jobs import JobRunner
from cua.quantum.noise import DeviceNoise
from cua.quantum.plan import DryRun


class DeviceRunner(BlockRunner):
    """Runs the blocks of one layer as jobs, signs read faithfully.

    Args:
        q: ``(n_blocks, 4, 4)`` orthogonal.
        jobs: where to; a :class:`DryRun` sends nothing.
        mitigation: as of :class:`Execution`.
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
        noise: DeviceNoise | None = None,
        layer: int = 0,
    ) -> None:
        if isinstance(jobs, DryRun):
            mitigation = "none"
        self.jobs, self.layer, self.kept = jobs, layer, noise is None
        if mitigation == "none":
            noise = None
        elif noise is None:
            noise = DeviceNoise(jobs.backend, asymmetric_readout=not jobs.twirls_measurements)
        super().__init__(q, Execution(shots=None, noise=noise, places=jobs.packed.pairs, mitigation=mitigation))

    def measure(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[NDArray[Any]]]:
        """The slices that went in, and their counts in both settings."""
        return self.jobs.measure(x, self.settings)

    def _inverse(self, setting: int) -> NDArray[np.float64] | None:
        if self.execution.mitigation == "none" or not self.kept:
            return super()._inverse(setting)
        name = f"{self.execution.mitigation.replace('+', '-')}-{self.layer:03}-{setting}"
        return self.jobs.keep(name, lambda: super(DeviceRunner, self)._inverse(setting))


def run_on_circuits(adapter: Adapter, execution: Execution) -> AbstractContextManager[None]:
    """Inside this context every block of the adapter is evaluated by ``execution`` instead of a matrix product.

    The adapter's own ``readout`` is not used, and no gradients are kept.  The blocks are those of the moment of entry:
    parameters changed inside have no effect.  Outputs come in the dtype and on the device of the activations.

    Raises:
        ValueError: on entry, see :class:`BlockRunner`.
    """

    streams = count()
    return _running(adapter, lambda q: BlockRunner(q, execution, next(streams)))


def run_on_device(
    adapter: Adapter, jobs: JobRunner | DryRun, mitigation: str = "none", noise: DeviceNoise | None = None
) -> AbstractContextManager[None]:
    """Inside this context every block of the adapter runs as jobs on a device, through a journal; signs are read.

    with JobRunner(packed, backend, sampler, "my-run", shots=4096) as jobs, run_on_device(adapter, jobs):
        model.generate(...)

    Args:
        adapter: of 4x4 blocks, trained with ``max_k_norm`` below 2.
        jobs: device, shots, journal and budget; or a :class:`~cua.quantum.plan.DryRun`, which only adds up what would
            be sent.
        mitigation: "none", "readout" or "readout+depolarising".  The same journal can be read again with another one,
            without running anything, as long as the adapter is in one layer with one stride: what goes into a second
            one depends on what came out of the first.
        noise: calibration to mitigate by.  If left out, the device's of the day on which the journal was begun.

    Raises:
        ValueError: on entry, see :class:`DeviceRunner`; errors of :class:`~cua.quantum.jobs.JobRunner` inside.
    """
    layers = count()
    return _running(adapter, lambda q: DeviceRunner(q, jobs, mitigation, noise, next(layers)))


@contextmanager
def _running(adapter: Adapter, run: Callable[[NDArray[np.float64]], BlockRunner]) -> Iterator[None]:
    def executor(q: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        runner = run(q.numpy())

        def read(x: Tensor, _: Tensor) -> Tensor:
            y = runner(x.cpu().double().reshape(-1, *q.shape[:2]).numpy())
            return torch.from_numpy(y).reshape(x.shape).to(x)

        return read

    with ExitStack() as stack, torch.no_grad():
        for module in adapter.modules.values():
            blocks = cayley(skew(module.theta.cpu().double(), adapter.config.block_size))  # Qiskit wants 1e-8
            executors = tuple(executor(q) for q in blocks.chunk(len(adapter.config.strides)))
            stack.callback(setattr, module, "executors", module.executors)
            module.executors = executors
        yield
