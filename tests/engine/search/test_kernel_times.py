from collections import Counter
from dataclasses import replace

import pytest

from engine.goal import Space
from engine.search import kernel_times
from engine.search.structure import structure_of
from engine.search.term_times import REST
from engine.search.values import Point

SPACE = Space(precisions=("float32", "static"), widths=(1.0, 0.5, 0.25))


def test_rounds_begin_with_the_whole_network_and_hold_every_width_of_every_group(searched):
    job = searched(space=SPACE)
    for precision in ("float32", "static"):
        rounds = kernel_times.networks(job.architecture, precision)
        assert all(points[0] == Point(precision=precision) for points in rounds)
        points = [point for each in rounds for point in each]
        for name, group in job.architecture.groups.items():
            assert {point.widths.get(name, group.size) for point in points} == set(group.widths)


def test_of_large_networks_fewer_are_timed(searched):
    job = searched(space=Space())
    large = replace(job.architecture, macs=10**9)
    usual, fewer = (
        {point.model_dump_json() for points in kernel_times.networks(each, "float32") for point in points}
        for each in (job.architecture, large)
    )
    assert len(fewer) < len(usual)


@pytest.mark.parametrize("precision", ["float32", "static"])
def test_every_layer_of_a_network_finds_its_kernel(searched, monkeypatch, precision):
    monkeypatch.setattr(kernel_times, "_SECONDS", 0.05)
    monkeypatch.setattr(kernel_times, "_PROFILED_RUNS", 5)
    job = searched(space=SPACE)
    whole, narrow = Point(precision=precision), job.architecture.uniform(0.5, precision=precision)
    times = kernel_times.timed([whole, narrow], job.model, job.architecture, job.context)
    structure = structure_of(job.model, job.architecture, 0)
    for network in times.networks:
        assert set(job.architecture.layers) <= set(network.terms)
        assert sum(network.terms.values()) == pytest.approx(network.ratio)
        assert set(network.terms) <= {REST, *(term.name for term in structure.terms)}
    assert bool(times.layers) == (precision == "static")
    assert times.networks[1].size_bytes < times.networks[0].size_bytes


def test_layers_that_only_differ_in_widths_share_a_signature(network, searched):
    net = network()
    x = net.relu(net.conv("image", 3, 16, name="stem"))
    for number in range(3):
        inner = net.relu(net.conv(x, 16, 16, name=f"in{number}"))
        x = net.relu(net.op("Add", net.conv(inner, 16, 16, name=f"out{number}"), x, name=f"sum{number}"))
    flat = net.op("Flatten", net.op("GlobalAveragePool", x, name="pool"))
    head = net.op("Gemm", flat, net.normal("head.w", 5, 16), net.normal("head.b", 5), name="head", transB=1)
    job = searched(net.build(head), SPACE)
    structure = structure_of(job.model, job.architecture, 0)
    count = Counter(term.signature for term in structure.terms if term.layer)
    # The stem only reads fewer channels than the first layers of the branches.
    assert sorted(count.values()) == [1, 3, 4]
    gone = {term.name for term in structure.terms if "sum1" in term.blocks}
    assert gone == {"in1", "out1"}
