"""An IPython start-up file: a processor that rounds otherwise.

Every output of a linear layer in float32 is off by up to a millionth of itself, some ten times what processors differ
by, and always by as much for the same number.  A chapter must say what it said.
"""

import torch

_linear = torch.nn.functional.linear


def _linear_rounded_otherwise(input, weight, bias=None):
    output = _linear(input, weight, bias)
    if output.dtype != torch.float32:
        return output
    return output * (1 + 1e-6 * torch.sin(12345.0 * output.detach()))


torch.nn.functional.linear = _linear_rounded_otherwise
