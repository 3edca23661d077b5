"""Closed-form solvers for the weights of one layer. Arrays in, arrays out: no graph, no session, numpy and scipy alone.

Weights are (outputs, inputs) as in the papers, whatever the operator stores. Inputs are rows: a layer computes
X W^T + b for X (rows, inputs). A convolution is brought to that form by `patches`. Solvers see the data only through
sums over rows (`Moments`, `Inputs`), so their memory does not grow with the data. Factorisations are float64, and so are sums
and solutions, but for those of GPTQ, whose matrices are the largest: they are float32.
"""
