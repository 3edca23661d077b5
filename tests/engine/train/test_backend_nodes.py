"""The twin beside ONNX's own backend tests, onnxruntime's kernels on the same data, and finite differences."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from engine.train.twin.parity import exact_products
from tests.engine.train import backend_cases
from tests.engine.train.operator_cases import CASES

# onnxruntime has kernels for them on GPUs alone.
ON_GPUS = {("com.microsoft", "BiasAdd"), ("com.microsoft", "BiasSoftmax")}
LISTED = Path(__file__).parents[3] / "docs" / "training_operators.md"


# test_operator_parity.py tries every operator beside onnxruntime at every run. One test: what makes the data takes seconds, in each process that asks for them.
@pytest.mark.soak
def test_every_case_that_the_table_covers_gives_the_stated_results_and_true_gradients():
    failures = defaultdict(dict)
    passed = []
    for case in backend_cases.cases():
        if case.reason is not None:
            continue
        wrong = backend_cases.failure(case)
        if wrong is None and "_expanded" not in case.name:
            wrong = _beside_onnxruntime(case)
        if wrong is None and backend_cases.has_slope(case):
            wrong = backend_cases.slope_failure(case)
        if wrong is not None:
            failures[case.name] = wrong
        passed.append(case)
    assert not failures
    alone = {next(iter(case.operators)) for case in passed if len(case.operators) == 1}
    beside_onnxruntime = {(case.domain, case.op_type) for case in CASES}
    assert backend_cases.standard_operators() <= alone | beside_onnxruntime | ON_GPUS
    if f"onnx {onnx.__version__} " in LISTED.read_text():
        assert LISTED.read_text() == backend_cases.listing(), "run `python -m tests.engine.train.backend_cases`"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
def test_a_gpu_gives_the_stated_results():
    with exact_products():
        wrong = {
            case.name: problem
            for case in backend_cases.cases()
            if case.reason is None and (problem := backend_cases.failure(case, "cuda")) is not None
        }
    assert not wrong


def _beside_onnxruntime(case):
    expected = backend_cases.by_onnxruntime(case)
    if expected is None or case.name in backend_cases.NOT_AS_ONNXRUNTIME:
        return None
    twin = backend_cases.twin_of(case)
    with torch.no_grad():
        found = twin.run(twin.feed(case.feeds), list(expected))
    for name, array in expected.items():
        wrong = backend_cases.difference(found[name], np.asarray(array), case)
        if wrong is not None:
            return f"beside onnxruntime: {name}: {wrong}"
    return None
