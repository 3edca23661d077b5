"""Closed-form solvers for the weights of one layer. Arrays in, arrays out: no graph, no session, numpy and scipy alone.

Weights are (outputs, inputs) as in the papers, whatever the operator stores. Inputs are rows: a layer computes
X W^T + b for X (rows, inputs). A convolution is brought to that form by `patches`. Solvers see the data only through
sums over rows (`Moments`, `Inputs`), so their memory does not grow with the data. Factorisations are float64, and so are sums
and solutions, but for those of GPTQ, whose matrices are the largest: they are float32.
"""

from engine.solve.gptq import gptq
from engine.solve.gram import Gram, Moments, Window, patches, pixels, positions
from engine.solve.grid import Quantized, round_to_nearest
from engine.solve.lowrank import Factors, Tucker, low_rank, tucker
from engine.solve.ridge import Fit, reconstruct
from engine.solve.sparse import magnitude, sparsegpt, wanda

__all__ = [
    "Factors",
    "Fit",
    "Gram",
    "Moments",
    "Quantized",
    "Tucker",
    "Window",
    "gptq",
    "low_rank",
    "magnitude",
    "patches",
    "pixels",
    "positions",
    "reconstruct",
    "round_to_nearest",
    "sparsegpt",
    "tucker",
    "wanda",
]
