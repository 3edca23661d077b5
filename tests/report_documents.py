"""A compression's report with every part that is shown of one, as the engine writes it: for tests of what is shown."""

from typing import Any

from engine.gate import Gate
from engine.report.byte_account import ByteAccount, ByteRow
from engine.report.layer_cost import LayerCost
from engine.report.quantization_details import QuantizedLayer, StaticDetails
from engine.report.run_facts import Memory
from engine.report.training_details import DistillDetails, TrainingPoint, TrainingRecord
from engine.report.values import (
    Change,
    DataParts,
    Environment,
    GateResult,
    Interval,
    Latency,
    LatencyComparison,
    MemoryComparison,
    ModelFacts,
    Quality,
    Ratio,
    Refusal,
    Report,
    Size,
    StepReport,
    Verdict,
)
from engine.target import Target


def _layer(node: str, **more: Any) -> QuantizedLayer:
    told = {
        "op": "Conv",
        "activation": "uint8",
        "weight": "int8",
        "reason": "fits",
        "accumulator_load": 0.5,
        "limited_channels": 0,
        "channels": 4,
        "weight_sqnr_db": 40.0,
        "activation_scale": 0.1,
    }
    return QuantizedLayer(node=node, **{**told, **more})


def _static() -> StaticDetails:
    layers = (
        _layer("stem", time_share_before=0.2, time_share_after=0.1, sensitivity=0.0004, output_sqnr_db=31.0),
        _layer("body", time_share_before=0.6, time_share_after=0.7, sensitivity=0.02, output_sqnr_db=25.0),
    )
    return StaticDetails(
        activations="uint8",
        weights="int8",
        why="it fits",
        per_channel=True,
        processor="vnni",
        integer_operators=2,
        clamps_absorbed=0,
        channels_with_wider_scale=0,
        layers=layers,
        tables=(),
        in_float=(),
        races=(),
        candidates=(),
        conversions_left=None,
    )


def _training() -> DistillDetails:
    points = tuple(
        TrainingPoint(step=step, seconds=step / 10, train_loss=loss, select_loss=loss, quality=0.9 - loss / 10)
        for step, loss in ((0, 1.0), (50, 0.5), (100, 0.4))
    )
    record = TrainingRecord(
        device="the processor",
        threads=1,
        parameters=1000,
        samples=512,
        batch=32,
        parts=1,
        planned_bytes=1 << 20,
        learning_rate=1e-3,
        metric="top1",
        points=points,
        best_step=100,
        steps=100,
        seconds=10.0,
        stopped="no_improvement",
    )
    return DistillDetails(drop_before=0.03, drop_after=0.004, training=record)


def _latency(scale: float) -> Latency:
    runs = tuple(scale * (1.0 + 0.01 * (place % 7)) for place in range(40))
    at = dict.fromkeys(("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms"), 1.03 * scale)
    return Latency(**at, samples=len(runs), dropped=3, runs_ms=runs, max_ms=1.2 * scale)


def _facts(size: int, parameters: int) -> ModelFacts:
    return ModelFacts(sha256="0" * 64, size_bytes=size, parameters=parameters, nodes=40, ops={"Conv": 9})


def report() -> Report:
    """Give a report of three steps, one of which was refused."""
    half = Ratio(value=0.5, interval=Interval(low=0.48, high=0.53))
    memory = Memory(peak_rss_bytes=60 << 20, load_ms=30.0, first_run_ms=2.0)
    gate = Gate(metric="top1", rule="max_drop", value=0.01)
    judged = GateResult(
        gate=gate, measured=0.002, bound=0.004, outcome="pass", reason="top1 falls by at most 0.4 points."
    )
    steps = (
        StepReport(
            index=0,
            type="quantize_static",
            parameters={},
            status="applied",
            change=Change(summary="2 layers compute in integers.", details=_static()),
            seconds=4.0,
        ),
        StepReport(
            index=1,
            type="distill",
            parameters={},
            status="applied",
            change=Change(summary="Trained for 10 s.", details=_training()),
            seconds=10.0,
        ),
        StepReport(
            index=2,
            type="prune_weights",
            parameters={},
            status="refused",
            refusal=Refusal(code="no_gain", reason="Zeros save no time here.", hint="Leave it out."),
            seconds=1.0,
        ),
    )
    return Report(
        summary="The network is 4.00x smaller and 2.00x as fast (1.89 to 2.08).",
        unchanged=False,
        target=Target(provider="cpu", threads=1, batch=1),
        original=_facts(400_000, 100_000),
        compressed=_facts(100_000, 100_000),
        bytes=ByteAccount(
            rows=(
                ByteRow(kind="quantized", tensors=9, bytes=90_000),
                ByteRow(kind="graph", tensors=0, bytes=10_000),
            ),
            total=100_000,
        ),
        layers=(
            LayerCost(node="stem", op="Conv", bytes_before=40_000, bytes_after=10_000, stored="int8"),
            LayerCost(node="gone", op="Conv", bytes_before=4_000),
        ),
        steps=steps,
        size=Size(original=400_000, compressed=100_000),
        quality=(
            Quality(
                metric="top1",
                output="logits",
                original=0.91,
                compressed=0.908,
                difference=-0.002,
                interval=Interval(low=-0.004, high=0.001),
                standard_error=0.001,
                samples=1000,
            ),
            Quality(
                metric="top1_agreement",
                output="logits",
                original=None,
                compressed=0.985,
                difference=None,
                interval=Interval(low=0.98, high=0.99),
                standard_error=0.002,
                samples=1000,
            ),
        ),
        latency=LatencyComparison(
            original=_latency(1.0),
            compressed=_latency(0.5),
            ratios=dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), half),
            cpu_ratio=half,
            noise_floor=Interval(low=0.98, high=1.02),
            cpu_noise_floor=Interval(low=0.99, high=1.01),
            stable=True,
            nodes_by_provider={"CPUExecutionProvider": 40},
        ),
        memory=MemoryComparison(original=memory, compressed=memory),
        verdict=Verdict.of((judged,)),
        parts=DataParts(calibrate=512, select=500, judge=1000, select_is_judge=False, reason="By thirds"),
        calibration_samples=512,
        held_out_samples=1000,
        environment=Environment(
            cpu="A CPU",
            cpu_flags=("avx2",),
            cores=2,
            onnxruntime="1.32.0",
            provider="CPUExecutionProvider",
            python="3.11",
            system="Linux",
        ),
        seconds=20.0,
        warnings=("The data are few.",),
    )
