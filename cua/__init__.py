"""Cayley unitary adapters: trainable orthogonal blocks, small enough for quantum circuits, in a frozen model."""

from cua.adapter import Adapter, CayleyLinear, attach
from cua.cayley import cayley, inverse_cayley, n_parameters, skew, unskew
from cua.checkpoint import load, save
from cua.config import CUAConfig
from cua.readout import READOUTS

__version__ = "0.1.0"
__all__ = [
    "READOUTS",
    "Adapter",
    "CUAConfig",
    "CayleyLinear",
    "attach",
    "cayley",
    "inverse_cayley",
    "load",
    "n_parameters",
    "save",
    "skew",
    "unskew",
]
