"""The order in which integer kernels pair a layer's weights: what may saturate together, and what rounding may balance.

Convolutions contract kernel position first, then input channel (they run channels-last), also within a group. The tests
prove it against ONNX Runtime: weights that saturate in any other order do not in this one.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from engine.graph.linear import LinearLayer

Array = npt.NDArray[Any]


def kernel_order(layer: LinearLayer) -> npt.NDArray[np.intp]:
    """Give for each place in the kernel's order the column of the layer's own matrix."""
    own = np.arange(layer.inputs)
    return np.moveaxis(own.reshape(layer.shape[1:]), 0, -1).reshape(-1) if layer.is_convolution else own


def kernel_matrix(layer: LinearLayer) -> npt.NDArray[np.float32]:
    """Give the weights as [outputs, contracted] in the kernel's order."""
    matrix = layer.matrix()
    return np.take(matrix, kernel_order(layer), axis=1) if layer.is_convolution else matrix


def stored_weights(layer: LinearLayer, matrix: Array) -> Array:
    """Give a matrix in the kernel's order as the layer stores weights."""
    if layer.is_convolution:
        own = np.empty_like(matrix)
        own[:, kernel_order(layer)] = matrix
        matrix = own
    return np.ascontiguousarray(layer.stored(matrix))
