"""What the passes of quantization say of their work, as Markdown: tables of layers, candidates, what stays in float."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from engine.report.detail_parts import Detail, LeftAlone
from engine.report.quantization_details import (
    DynamicDetails,
    Float16Details,
    MethodDetails,
    MixedDetails,
    StaticDetails,
    WeightsDetails,
)
from engine.report.values import StepReport
from engine.report.wording import decibel, metric_value, share, table
from engine.report.wording import size as size_text

Column = tuple[str, str, Callable[[Any], str]]


def quantization_lines(step: StepReport) -> Iterator[str]:
    """Yield the lines about one step; none for other passes, nor for what an older worker wrote without types."""
    told = step.change or step.refusal
    details = None if told is None else told.details
    if isinstance(details, MixedDetails):
        yield from _front(step.number, details)
        methods: tuple[MethodDetails, ...] = details.steps
    elif isinstance(details, StaticDetails | DynamicDetails | WeightsDetails | Float16Details):
        methods = (details,)
    else:
        return
    if step.change is not None:
        for method in methods:
            yield from _method(step.number, method)


def _method(index: int, details: MethodDetails) -> Iterator[str]:
    match details:
        case StaticDetails():
            yield from _layers(index, (*details.layers, *details.tables), details.why)
            for tried in details.candidates:
                kept = "kept" if tried.kept else "not kept"
                yield from (
                    "",
                    f"Tried {tried.candidate}: {tried.gain_db:+.2f} dB on samples to choose by, {kept}.",
                )
            if details.effort is not None:
                yield from ("", details.effort)
            yield from stay_lines(details.in_float, "in float")
        case DynamicDetails():
            yield from _layers(index, details.layers, details.why)
            yield from stay_lines(details.in_float, "in float")
        case WeightsDetails():
            yield from _layers(index, details.layers)
            yield from _levels(details)
            yield from stay_lines(details.in_float, "in float")
        case Float16Details():
            yield from stay_lines(details.in_float32, "in float32")


def _levels(details: WeightsDetails) -> Iterator[str]:
    """Show what each way of computing costs and saves."""
    if details.accuracy is None:
        return
    yield ""
    yield from table(
        ("products compute in", "accuracy_level", "noise", "time", ""),
        (
            (
                each.level,
                str(each.accuracy_level),
                f"{each.noise:.2g}",
                f"{each.relative_time:.2f}",
                "chosen" * each.chosen,
            )
            for each in details.accuracy.levels
        ),
    )
    yield from (
        "",
        f"{details.accuracy.reason}. {share(details.accuracy.loss_share, digits=0)} of the noise with `int8` comes from rounding activations.",
    )


def stay_lines(left: Sequence[LeftAlone], how: str) -> Iterator[str]:
    """Yield a paragraph for each reason to leave nodes as they are, with all of them."""
    by_reason: dict[str, list[str]] = {}
    for each in left:
        by_reason.setdefault(each.reason, []).append(f"`{each.node}`")
    for reason, nodes in by_reason.items():
        verb = f"stays {how}" if len(nodes) == 1 else f"stay {how}, each for the same reason"
        yield from ("", f"{', '.join(nodes)} {verb}: {reason}.")


def layer_table(columns: Sequence[Column], layers: Sequence[Detail]) -> Iterator[str]:
    """Yield a table with the columns (title, field, form) that any of the layers has."""
    shown = [column for column in columns if any(getattr(layer, column[1], None) is not None for layer in layers)]
    yield from table(
        [title for title, _, _ in shown],
        (tuple(_cell(getattr(layer, name, None), form) for _, name, form in shown) for layer in layers),
    )


def _cell(value: Any, form: Callable[[Any], str]) -> str:
    return "" if value is None else form(value)


def _layers(index: int, layers: Sequence[Detail], why: str | None = None) -> Iterator[str]:
    if not layers:
        return
    yield from ("", f"### Layers of step {index}", "")
    if why:
        yield from (f"{why}.", "")
    yield from layer_table(_COLUMNS, layers)


def _front(index: int, details: MixedDetails) -> Iterator[str]:
    """Show the networks that a pass chose from; those that no other one beats on all counts are marked."""
    yield from ("", f"### What step {index} chose from", "")
    yield from table(
        ("network", "time", "size", "beside the original", "on its own", ""),
        (
            (
                f"**{each.name}**" if each.chosen else each.name,
                f"{each.relative_time:.2f}",
                size_text(each.size_bytes),
                _nearness(each.fidelity),
                ", ".join(
                    f"{metric} {metric_value(metric, found.compressed)}"
                    for metric, found in list(each.quality.items())[:2]
                ),
                "chosen" if each.chosen else (each.why_not or "") + (" (on the front)" if each.on_front else ""),
            )
            for each in details.front
        ),
    )
    if details.effort is not None:
        yield from ("", details.effort)
    for again in details.duplicates:
        yield from ("", f"{again.name} is the same network as {again.same_as}.")


def _nearness(metrics: Mapping[str, float]) -> str:
    told = [name for name in ("top1_agreement", "sqnr_db") if name in metrics]
    return ", ".join(f"{name} {metric_value(name, metrics[name])}" for name in told)


def _errors(by_method: Mapping[str, float]) -> str:
    return ", ".join(f"{method} {error:.2g}" for method, error in by_method.items())


_COLUMNS: tuple[Column, ...] = (
    ("layer", "node", str),
    ("operator", "op", str),
    ("activation", "activation", str),
    ("weight", "weight", str),
    ("bits", "bits", str),
    ("group", "group", str),
    ("method", "method", str),
    ("accumulator load", "accumulator_load", share),
    ("weight SQNR", "weight_sqnr_db", decibel),
    ("output SQNR", "output_sqnr_db", decibel),
    ("noise it adds to the outputs", "sensitivity", "{:.1e}".format),
    ("time before", "time_share_before", share),
    ("time after", "time_share_after", share),
    ("held-out error", "held_out_error", _errors),
)
