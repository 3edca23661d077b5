"""PyTorch itself: the one module that imports it, so that a worker without it can say what to install."""

from engine.errors import TargetUnavailableError
from engine.train.training_support import MISSING, TRAINING_HINT

try:
    import torch
    from torch import Tensor
    from torch.nn import functional
except ImportError as error:
    raise TargetUnavailableError(MISSING, hint=TRAINING_HINT) from error

__all__ = ["Tensor", "device", "functional", "torch"]


def device() -> torch.device:
    """Give the GPU where PyTorch has one, the CPU elsewhere."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
