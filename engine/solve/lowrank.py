"""Layers split into thinner ones, with the error measured where it counts: on the layer's own inputs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from engine.solve.gptq import damped

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Factors:
    """Weights (outputs, inputs) as up @ down."""

    down: Doubles  # (rank, inputs)
    up: Doubles  # (outputs, rank)
    # Share of the layer's output energy that is lost at rank 0, 1, ..., full; the metric's damping included.
    lost: Doubles

    def values(self) -> Doubles:
        """Give the weights that the factors stand for."""
        return self.up @ self.down


@dataclass(frozen=True)
class Tucker:
    """Convolution weights (outputs, channels, *kernel) as 1x1, a thin convolution with the kernel, and 1x1."""

    down: Doubles  # (channel rank, channels)
    core: Doubles  # (output rank, channel rank, *kernel)
    up: Doubles  # (outputs, output rank)

    def values(self) -> Doubles:
        """Give the weights that the three convolutions stand for."""
        inner: Doubles = np.tensordot(self.up, self.core, (1, 0))
        return np.moveaxis(np.tensordot(inner, self.down, (1, 0)), -1, 1)


def low_rank(weights: Floats, xtx: Floats, rank: int, *, damping: float = 1e-4) -> Factors:
    """Give the factors of this rank that change X W^T least, given xtx = X^T X (inputs, inputs).

    With X^T X = L L^T, |X D^T| = |D L|: the truncated singular value decomposition of W L, brought back by L^-1, is the
    optimum (Eckart-Young in the activation metric; Chen et al., "DRONE", NeurIPS 2021). `damping` as in `gptq`.
    """
    w = np.asarray(weights, np.float64)
    if not 0 < rank <= min(w.shape):
        raise ValueError(f"rank {rank} is outside 1 ... {min(w.shape)}")
    lower = linalg.cholesky(damped(xtx, damping), lower=True)
    u, s, vt = linalg.svd(w @ lower, full_matrices=False)
    root = np.sqrt(s[:rank])
    # Half of each singular value on both sides keeps the two layers' ranges alike, which quantization likes.
    down = linalg.solve_triangular(lower, (root[:, None] * vt[:rank]).T, lower=True, trans="T").T
    energy = np.concatenate([np.cumsum((s**2)[::-1])[::-1], [0.0]])
    return Factors(np.ascontiguousarray(down), u[:, :rank] * root, energy / max(energy[0], np.finfo(float).tiny))


def tucker(weights: Floats, xtx: Floats, ranks: tuple[int, int], *, sweeps: int = 5, damping: float = 1e-4) -> Tucker:
    """Give the Tucker-2 form of convolution weights (outputs, channels, *kernel) with ranks (outputs, channels).

    Kim et al., "Compression of Deep Convolutional Neural Networks" (ICLR 2016), in the activation metric. Channel and
    output subspaces come from higher-order orthogonal iteration on weights whitened by the channels' own X^T X (averaged
    over the kernel); then core and `up` are solved together, exactly, in the full metric `xtx` of the patches
    (channels * kernel squared), as a reduced-rank regression on the projected inputs.
    """
    w = np.asarray(weights, np.float64)
    outputs, channels, *kernel = w.shape
    out_rank, in_rank = ranks
    places = int(np.prod(kernel))
    if not (0 < out_rank <= min(outputs, in_rank * places) and 0 < in_rank <= channels):
        raise ValueError(f"ranks {ranks} do not fit weights {w.shape}")
    metric = damped(xtx, damping)
    per_place = metric.reshape(channels, places, channels, places)
    whiten = linalg.cholesky(np.einsum("apbp->ab", per_place) / places, lower=True)
    flat = w.reshape(outputs, channels, places)
    white = np.einsum("ocp,cd->odp", flat, whiten)

    basis = _leading(np.moveaxis(white, 1, 0).reshape(channels, -1), in_rank)
    for _ in range(sweeps):
        seen = np.einsum("odp,dr->orp", white, basis)
        left = _leading(seen.reshape(outputs, -1), out_rank)
        seen = np.einsum("odp,os->dsp", white, left)
        basis = _leading(seen.reshape(channels, -1), in_rank)
    # Unwhitened: w ~ white' whiten^-1, so down = basis^T whiten^-1 spans the channels' side.
    down = linalg.solve_triangular(whiten, basis, lower=True, trans="T").T

    # Inputs of the core: z = down x at each place of the kernel. The best core for the full output is a regression of
    # X W^T on Z; its best approximation of rank `out_rank` is again a truncated SVD in the metric of Z.
    cross = np.einsum("rc,cpdq->rpdq", down, per_place).reshape(in_rank * places, channels * places)
    inner = np.einsum("xdq,sd->xsq", cross.reshape(-1, channels, places), down).reshape(in_rank * places, -1)
    lower = linalg.cholesky(inner + 1e-10 * np.trace(inner) / len(inner) * np.eye(len(inner)), lower=True)
    # In that metric the regression itself is cross L^-T: only one triangular solve is needed.
    whole = linalg.solve_triangular(lower, cross @ flat.reshape(outputs, -1).T, lower=True).T
    u, s, vt = linalg.svd(whole, full_matrices=False)
    root = np.sqrt(s[:out_rank])
    core = linalg.solve_triangular(lower, (root[:, None] * vt[:out_rank]).T, lower=True, trans="T").T
    return Tucker(np.ascontiguousarray(down), core.reshape(out_rank, in_rank, *kernel), u[:, :out_rank] * root)


def _leading(matrix: Doubles, rank: int) -> Doubles:
    """Give the `rank` leading left singular vectors."""
    _, vectors = linalg.eigh(matrix @ matrix.T, subset_by_index=(len(matrix) - rank, len(matrix) - 1))
    return np.ascontiguousarray(vectors[:, ::-1])
