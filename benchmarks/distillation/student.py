"""A student of another architecture than its teacher's, with weights drawn at random: plain convolutions, no residual sums."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTHS = (24, 48, 96)
CLASSES = 10
PIXEL_MAX = 255.0
_OPSET, _IR_VERSION = 18, 10


def write(path: Path, seed: int = 0) -> Path:
    """Write a network with the inputs and outputs of the image networks: `image` [batch, 1, 28, 28] to `logits` [batch, 10].

    Each stage is a 3x3 convolution, Relu and a pooling that halves the map; weights are drawn as He et al. do (Delving Deep into
    Rectifiers, 2015), those of the first stage for pixels of 0..255.
    """
    random = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    nodes: list[onnx.NodeProto] = []
    tensor, channels = "image", 1
    for stage, width in enumerate(WIDTHS):
        name = f"stage{stage}"
        deviation = (2 / (9 * channels)) ** 0.5 / (PIXEL_MAX if stage == 0 else 1.0)
        weights[f"{name}.weight"] = random.normal(0, deviation, (width, channels, 3, 3)).astype(np.float32)
        weights[f"{name}.bias"] = np.zeros(width, np.float32)
        inputs = [tensor, f"{name}.weight", f"{name}.bias"]
        nodes += [
            helper.make_node("Conv", inputs, [f"{name}.conv"], f"{name}/conv", pads=[1] * 4),
            helper.make_node("Relu", [f"{name}.conv"], [f"{name}.relu"], f"{name}/relu"),
            helper.make_node(
                "MaxPool", [f"{name}.relu"], [f"{name}.pool"], f"{name}/pool", kernel_shape=[2, 2], strides=[2, 2]
            ),
        ]
        tensor, channels = f"{name}.pool", width
    # Three halvings leave a map of 3x3.
    weights["head.weight"] = random.normal(0, (1 / (9 * channels)) ** 0.5, (CLASSES, 9 * channels)).astype(np.float32)
    weights["head.bias"] = np.zeros(CLASSES, np.float32)
    nodes += [
        helper.make_node("Flatten", [tensor], ["features"], "flatten"),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["logits"], "head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "student",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path
