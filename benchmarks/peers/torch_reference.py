"""Build an architecture at the width that pruning leaves, untrained: how fast a network of that shape can be.

Settings: `network`, `ratio`. Runs in the environment of Torch-Pruning, which has PyTorch.
"""

from pathlib import Path
from typing import Any

import torch
from image_networks import built, write


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Build and export."""
    torch.manual_seed(0)
    network = built(request["settings"]["network"], request["settings"]["ratio"])
    write(network, Path(request["out"]))
    return {"parameters": sum(parameter.numel() for parameter in network.parameters())}
