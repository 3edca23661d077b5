"""Candidates are told apart by what they compute: equal bytes of size say nothing."""

import numpy as np
import onnx
import onnx_ir as ir

from engine.quantize.candidates import Candidate, stored_size, without_duplicates
from engine.report.quantization_details import SameAs


def _candidate(name, weights, node="Add"):
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) {{ y = {node}(x, w) }}'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(weights, np.float32), "w"))
    network = ir.from_proto(model)
    return Candidate(name, network, name, size=stored_size(network))


def test_different_networks_of_one_size_are_all_compared():
    candidates = [_candidate("a", [1, 2]), _candidate("b", [3, 4]), _candidate("c", [1, 2], node="Mul")]
    assert len({each.size for each in candidates}) == 1
    distinct, again = without_duplicates(candidates)
    assert distinct == candidates
    assert again == []


def test_the_same_network_once_more_is_told_and_the_first_one_kept():
    first, other, again = _candidate("first", [1, 2]), _candidate("other", [3, 4]), _candidate("again", [1, 2])
    distinct, duplicates = without_duplicates([first, other, again])
    assert [each.name for each in distinct] == ["first", "other"]
    assert duplicates == [SameAs(name="again", same_as="first")]
