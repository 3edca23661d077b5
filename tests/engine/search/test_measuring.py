import json

import numpy as np
import pytest

from engine.errors import SpecInvalidError
from engine.goal import Space
from engine.graph import io, macs
from engine.search import kernel_times, measuring
from engine.search.candidate import make
from engine.search.library import VariantLibrary
from engine.search.prediction import Prediction
from engine.search.values import Point
from engine.search.variant_damage import VariantMaker


@pytest.fixture
def quick(monkeypatch):
    """Times are taken, but what they are does not matter here."""
    monkeypatch.setattr(kernel_times, "_SECONDS", 0.05)
    monkeypatch.setattr(kernel_times, "_PROFILED_RUNS", 5)


def measured(job, parts):
    return {
        part: json.loads(json.dumps(measuring.measure(part, job.model, job.architecture, job.context)))
        for part in parts
    }


SMALL = Space(precisions=("float32", "static"), widths=(1.0, 0.5, 0.25), ranks=(0.5,))


def test_bytes_and_multiplications_of_composed_networks_are_predicted_exactly(searched, quick):
    job = searched(space=SMALL)
    library = VariantLibrary.of(measured(job, ["structure", "times:float32:0"]))
    prediction = Prediction.of(job.architecture, library, [])
    rng = np.random.default_rng(3)
    for _ in range(4):
        point = job.architecture.random(rng).model_copy(update={"precision": "float32", "ranks": {}})
        point = job.architecture.normalise(point)
        made = make(job.model, point, job.architecture, job.context).model
        predicted = prediction.predict(point)
        assert predicted.macs == macs.total(io.copy(made))
        assert predicted.size_bytes == pytest.approx(len(io.to_bytes(made)), rel=0.005)
        assert predicted.latency_ratio > 0
        assert predicted.damage >= 0


def test_layers_that_stay_in_float_keep_their_bytes_where_others_are_stored_in_less(searched, quick):
    job = searched(space=Space(precisions=("float32", "weights8"), widths=(1.0, 0.5, 0.25), ranks=()))
    library = VariantLibrary.of(measured(job, ["structure", "times:float32:0", "times:weights8:0"]))
    # No layer of the networks that were timed stays in float, so that nothing but arithmetic tells what one takes.
    assert not any(network.in_float for network in library.times["weights8"].networks)
    prediction = Prediction.of(job.architecture, library, [])
    layers = tuple(job.architecture.layers)
    every = [
        prediction.predict(Point(precision="weights8", in_float=layers[:count])).size_bytes for count in (0, 2, 99)
    ]
    assert every == sorted(every)
    assert every[-1] == pytest.approx(prediction.predict(Point()).size_bytes, rel=0.15)


def test_weights_at_any_widths_take_the_bytes_that_the_network_really_made_has(searched):
    job = searched(space=SMALL)
    structure = VariantLibrary.of(measured(job, ["structure"])).structure
    for share in (0.5, 0.25):
        point = job.architecture.uniform(share)
        made = make(job.model, point, job.architecture, job.context).model
        expected = sum(
            tensor.item * tensor.elements(point.widths, structure.full)
            for term in structure.terms
            for tensor in term.tensors
        )
        assert expected == io.weight_bytes(made)
    assert structure.parameters * 4 == io.weight_bytes(job.model)


def test_damage_is_that_of_the_refitted_variant(searched):
    job = searched(space=SMALL)
    maker = VariantMaker(job.model, job.architecture, job.context)
    group = next(iter(job.architecture.groups))
    kept = job.architecture.groups[group].widths[1]
    refitted, as_cut = maker.width(group, kept), maker.width(group, kept, refit=False)
    assert refitted.damage is not None
    assert as_cut.damage is not None
    assert 0 < refitted.damage < as_cut.damage
    assert (refitted.size_bytes, refitted.macs) == (as_cut.size_bytes, as_cut.macs)
    block = next(iter(job.architecture.blocks))
    assert maker.block(block).harm < maker.block(block, refit=False).harm


def test_a_variant_says_what_its_network_takes(searched):
    job = searched(space=SMALL)
    group = next(iter(job.architecture.groups))
    kept = job.architecture.groups[group].widths[-1]
    variant = VariantMaker(job.model, job.architecture, job.context).width(group, kept)
    made = make(job.model, Point(widths={group: kept}), job.architecture, job.context).model
    assert variant.size_bytes == len(io.to_bytes(made))
    assert variant.macs == macs.total(io.copy(made)) < macs.total(io.copy(job.model))


def test_parts_measured_apart_and_in_any_order_make_the_same_library(searched):
    job = searched(space=SMALL)
    parts = ["structure", "precision:static", "blocks:0"]
    forwards, backwards = measured(job, parts), measured(job, parts[::-1])
    assert VariantLibrary.of(forwards) == VariantLibrary.of(backwards)
    assert VariantLibrary.of(forwards).precision_damage("static") > 0


def test_a_network_that_cannot_be_made_is_a_variant_with_a_reason(searched):
    job = searched(space=SMALL)
    variant = VariantMaker(job.model, job.architecture, job.context).rank("head", 4096)
    assert variant.damage is None
    assert variant.failed
    assert variant.harm == float("inf")


def test_a_part_that_there_is_not_is_refused_by_name(searched):
    job = searched(space=SMALL)
    with pytest.raises(SpecInvalidError, match="no part `group:nothing`"):
        measuring.measure("group:nothing", job.model, job.architecture, job.context)


def test_layers_in_float_take_their_share_of_the_damage_with_them(searched):
    job = searched(space=SMALL)
    library = VariantLibrary.of(measured(job, ["structure", "precision:static"]))
    shares = library.layers["static"]
    assert sum(shares.values()) == pytest.approx(1)
    worst = max(shares, key=lambda name: shares[name])
    whole = library.precision_damage("static")
    assert library.precision_damage("static", (worst,)) == pytest.approx(whole * (1 - shares[worst]))
