"""Widths by slopes: the dearer the cost, the less stays; channels that carry nothing go first; and what it needs is said."""

import sys
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from engine.errors import ModelUnsupportedError, TargetUnavailableError
from engine.goal import Goal
from engine.search import study
from engine.search.prediction import Prediction
from engine.search.values import Proposal, Told
from tests.engine.search.made_up_library import architecture_of, library_of
from tests.engine.train.quantized_networks import parsed


@pytest.fixture
def relaxed(residual_cnn, images, feeds_of, context):
    """A network of which one group's last half hardly does anything, its library, and the context of a job."""
    from engine.search.gradient import Relaxation

    model = parsed(residual_cnn())
    # Readers of half of the first block's inner channels are nearly silent.
    value = model.graph.initializers["a2.w"]
    weights = value.const_value.numpy().copy()
    weights[:, 8:] *= 1e-3
    value.const_value = ir.tensor(weights)
    architecture = architecture_of(model, widths=(1.0, 0.5, 0.25), precisions=("float32",), drop_blocks=False)
    library = library_of(model, architecture)
    prediction = Prediction.of(architecture, library, [])
    given = context(parsed_copy(model), feeds_of({"image": images(64)}))
    return architecture, prediction, model, given, Relaxation


def parsed_copy(model):
    return ir.from_proto(ir.to_proto(model))


def kept(architecture, point):
    return np.mean([point.widths.get(name, group.size) / group.size for name, group in architecture.groups.items()])


def test_a_dearer_cost_leaves_less_and_harmless_channels_go_first(relaxed):
    architecture, prediction, model, context, relaxation = relaxed
    work = relaxation(architecture, prediction, model, context)
    shares = [kept(architecture, work.solve(weight, "macs")) for weight in (1e-4, 0.3, 30.0)]
    assert shares[0] > shares[-1]
    assert shares == sorted(shares, reverse=True)
    (silent,) = [name for name, group in architecture.groups.items() if group.producers == ("a1",)]
    mild = next(
        point for weight in (0.03, 0.1, 0.3, 1.0, 3.0) if silent in (point := work.solve(weight, "macs")).widths
    )
    assert mild.widths[silent] == architecture.groups[silent].size // 2, mild.widths
    others = [name for name in architecture.groups if name != silent]
    assert all(mild.widths.get(name, 99) / architecture.groups[name].size >= 0.5 for name in others)
    assert work.solve(0.3, "macs") == relaxation(architecture, prediction, model, context).solve(0.3, "macs")


def test_a_study_by_gradients_proposes_points_along_the_front(relaxed):
    architecture, prediction, model, context, _ = relaxed
    goal = Goal(minimise="macs")
    network = study.Network(model, context)
    found = study.propose(
        architecture, prediction, [], strategy="gradient", seed=0, count=2, goal=goal, network=network
    )
    assert len(found) == 2
    assert found[0].point != found[1].point
    told = [Told(number=n, proposal=each, state="failed") for n, each in enumerate(found)]
    more = study.propose(
        architecture, prediction, told, strategy="gradient", seed=0, count=2, goal=goal, network=network
    )
    assert not {each.point.model_dump_json() for each in more} & {each.point.model_dump_json() for each in found}
    with pytest.raises(ModelUnsupportedError, match="need data"):
        study.propose(
            architecture,
            prediction,
            [],
            strategy="gradient",
            seed=0,
            count=1,
            goal=goal,
            network=study.Network(model, replace(context, calibration=None)),
        )
    assert isinstance(found[0], Proposal)


def test_without_pytorch_the_line_that_installs_it_is_told(relaxed, monkeypatch):
    architecture, prediction, model, context, _ = relaxed
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it fails then
    for name in ("engine.train.framework", "engine.search.gradient"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    network = study.Network(model, context)
    with pytest.raises(TargetUnavailableError, match="PyTorch is not installed"):
        study.propose(
            architecture,
            prediction,
            [],
            strategy="gradient",
            seed=0,
            count=1,
            goal=Goal(minimise="macs"),
            network=network,
        )


def test_weights_of_the_cost_fill_the_front():
    from engine.search.gradient import trade

    weights = [trade(place) for place in range(15)]
    steps = np.diff(np.sort(np.log10(weights)))
    assert np.allclose(steps, steps[0]), "fifteen are evenly spread"
    assert len(set(weights)) == 15
