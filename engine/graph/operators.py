"""Which operators a network is made of, told from its structure alone."""

from pathlib import Path

import onnx

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv", "NhwcConv"})


def has_convolutions(network: bytes | Path) -> bool:
    """Say whether a network convolves, its control flow included."""
    if isinstance(network, Path):
        model = onnx.load(network, load_external_data=False)
    else:
        model = onnx.load_model_from_string(network)
    graphs = [model.graph, *model.functions]
    while graphs:
        for node in graphs.pop().node:
            if node.op_type in _CONVOLUTIONS:
                return True
            graphs += [each.g for each in node.attribute if each.HasField("g")]
    return False
