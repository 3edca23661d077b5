"""What a report tells of pruning: typed in the file, in tables for people; what an older worker wrote stays readable."""

import pytest

from engine.report.detail_parts import LeftAlone
from engine.report.pruning_details import (
    ChannelGroup,
    DropBlocksDetails,
    FactoriseDetails,
    FactorisedLayer,
    FrozenChannels,
    OracleAgreement,
    PruneChannelsDetails,
    PruneWeightsDetails,
    ReconstructDetails,
    RefittedLayer,
    RemovedChannels,
    ResidualBranch,
    SparseLayer,
    TriedSparsity,
)
from engine.report.pruning_markdown import pruning_lines
from engine.report.values import Change

REFITTED = RefittedLayer(node="conv1", op="Conv", taken=True, error_before=0.25, error_after=0.03125)
LEFT = LeftAlone(node="head", reason="the recipe excludes it")

CHANNELS = PruneChannelsDetails(
    groups=(
        ChannelGroup(name="g0", kind="ffn", producers=("a", "b", "c", "d"), channels=64, kept=48, lossy=False),
        *(
            ChannelGroup(name=f"g{n}", kind="channels", producers=("x",), channels=8, kept=8, lossy=True)
            for n in range(1, 70)
        ),
    ),
    prunable_parameters=0.9,
    prunable_macs=0.95,
    frozen=(FrozenChannels(node="out", op="Gemm", reason="gives the network's output y", channels=10),),
    oracle=OracleAgreement(difference=1e-7, tolerance=1e-5),
    rounds=2,
    layers=(REFITTED, RefittedLayer(node="lstm", op="LSTM", taken=False, reason="not refitted")),
    macs_before=1000,
    macs_after=600,
    weight_bytes_before=4000,
    weight_bytes_after=2500,
    tried=(TriedSparsity(sparsity=0.45, drop=0.01), TriedSparsity(sparsity=0.2, latency=0.8)),
)
RECONSTRUCT = ReconstructDetails(layers=(REFITTED,), drop_before=0.2, drop_after=None)
WEIGHTS = PruneWeightsDetails(
    method="by layer",
    pattern="2:4",
    zeros=0.5,
    layers=(
        SparseLayer(node="fc", op="Gemm", weights=4096, zeros=0.5, method="wanda", held_out_error={"wanda": 0.125}),
        SparseLayer(node="fc2", op="Gemm", weights=4096, zeros=0.5, method="magnitude"),
    ),
    left_alone=(LEFT,),
    removed_channels=RemovedChannels(channels=0, reason="it was not asked for"),
    latency="No gain is expected.",
)
FACTORISE = FactoriseDetails(
    layers=(
        FactorisedLayer(
            node="fc",
            op="Gemm",
            ranks=(8, 16),
            multiplications=0.25,
            time_of_network=None,
            method="low rank",
            held_out_error={"low rank": 0.0625},
            rows=4096,
        ),
    ),
    left_alone=(LEFT,),
    weights_before=100,
    weights_after=25,
)
BLOCKS = DropBlocksDetails(
    metric="noise_share",
    after=0.01,
    samples=128,
    blocks=(
        ResidualBranch(node="add1", parameters=100, damage=0.01, dropped=True),
        ResidualBranch(node="add2", parameters=100, damage=None, dropped=False, reason="it does not run without it"),
    ),
    order=("add1",),
    not_considered=(LeftAlone(node="add3", reason="a part of it is needed elsewhere"),),
)


@pytest.mark.parametrize("details", [CHANNELS, RECONSTRUCT, WEIGHTS, FACTORISE, BLOCKS], ids=lambda each: each.of)
def test_details_come_back_from_the_file_as_what_they_were(details):
    change = Change(summary="It is thinner.", details=details)
    again = Change.model_validate_json(change.model_dump_json())
    assert type(again.details) is type(details)
    assert again == change


def test_what_an_older_worker_wrote_stays_a_table_of_facts():
    told = {"layers": [{"node": "fc", "op": "Gemm", "zeros": 0.5}], "zeros": 0.5}
    assert Change.model_validate({"summary": "It is thinner.", "details": told}).details == told


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        (
            CHANNELS,
            ["| a, b, c, … | ffn | 64 | 48 |", "And 6 more, in report.json.", "| conv1 | Conv | 0.25 | 0.0312 |"],
        ),
        (RECONSTRUCT, ["### Layers of step 3", "| conv1 | Conv | 0.25 | 0.0312 | refitted |"]),
        (
            WEIGHTS,
            [
                "| fc | Gemm | 50.0 % | wanda | wanda 0.12 |",
                "| fc2 | Gemm | 50.0 % | magnitude |  |",
                "`head` stays as it is: the recipe excludes it.",
            ],
        ),
        (FACTORISE, ["| fc | Gemm | 8, 16 | 25.0 % |  | low rank | low rank 0.062 |"]),
        (
            BLOCKS,
            [
                "| branch | weights | noise without it |  |",
                "| add1 | 100 | 0.01 | dropped |",
                "| add2 | 100 |  | it does not run without it |",
                "`add3` stays as it is: a part of it is needed elsewhere.",
            ],
        ),
    ],
    ids=lambda each: getattr(each, "of", None),
)
def test_people_read_it_in_tables(details, expected):
    lines = list(pruning_lines(details, 3))
    for text in expected:
        assert any(text in line for line in lines), text
    assert not any("lstm" in line for line in lines), "what was not fitted has no errors to show"
