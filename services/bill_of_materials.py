"""A CycloneDX bill of materials (ML-BOM, ECMA-424 version 1.6) of a network: what it is, comes from, and was measured at."""

import json
import uuid
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import engine
from services.provenance import Parent, Provenance

# Names of our own serial numbers; the same network gives the same bill.
_NAMESPACE = uuid.UUID("5f0b9c1e-3a43-5d0b-9c0f-6f0c2c8d1a77")
_Json = dict[str, Any]


def bill_of_materials(found: Provenance) -> bytes:
    """Give the bill as JSON."""
    network, report = found.model, found.report
    document: _Json = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, f'{network.id} {found.sha256}')}",
        "version": 1,
        "metadata": {
            "timestamp": found.made_at.isoformat(timespec="seconds"),
            "tools": {"components": [_tool("onnxpress", metadata.version("onnxpress-server")), *_runtime(report)]},
            "component": _network(found),
        },
    }
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def _network(found: Provenance) -> _Json:
    component: _Json = {
        "type": "machine-learning-model",
        "bom-ref": found.model.id,
        "name": found.model.name,
        "version": found.sha256[:12],
        "mime-type": "application/octet-stream",
        "hashes": [{"alg": "SHA-256", "content": found.sha256}],
    }
    if found.report is not None:
        component["description"] = found.report.summary
    if found.ancestors:
        component["pedigree"] = {"ancestors": [_ancestor(each) for each in found.ancestors], "notes": _notes(found)}
    if len(found.files) > 1:
        component["components"] = [
            {
                "type": "data",
                "bom-ref": f"{found.model.id}/{file.path}",
                "name": file.path,
                "hashes": [{"alg": "SHA-256", "content": file.sha256}],
            }
            for file in found.files[1:]
        ]
    component["modelCard"] = _card(found)
    component["properties"] = [{"name": name, "value": value} for name, value in _properties(found)]
    return component


def _card(found: Provenance) -> _Json:
    parameters: _Json = {
        "inputs": [{"format": _format(each)} for each in found.inspection.inputs],
        "outputs": [{"format": _format(each)} for each in found.inspection.outputs],
    }
    if found.job is not None and found.job.dataset_id is not None:
        described: _Json = {"type": "dataset", "name": found.job.dataset_id}
        if found.report is not None and found.report.preprocessing is not None:
            described["description"] = found.report.preprocessing.summary
        parameters["datasets"] = [described]
    card: _Json = {"modelParameters": parameters}
    if found.report is not None:
        card["quantitativeAnalysis"] = {"performanceMetrics": [*_metrics(found.report)]}
    return card


def _format(tensor: "engine.TensorInfo") -> str:
    shape = (
        "any shape" if tensor.shape is None else "x".join("?" if size is None else str(size) for size in tensor.shape)
    )
    return f"{tensor.name}: {tensor.dtype} {shape or 'number'}"


def _metrics(report: "engine.Report") -> Iterator[_Json]:
    """Yield what was measured: quality with its interval, size, and time and memory as ratios to the original."""
    for each in report.quality:
        interval = each.compressed_interval or (each.interval if each.difference is None else None)
        yield _metric(each.metric, each.compressed, f"{each.samples} samples that judge", each.output, interval)
        if each.difference is not None:
            words = "result - original, on the same samples"
            yield _metric(f"{each.metric}_difference", each.difference, words, each.output, each.interval)
    yield _metric("size_bytes", report.size.compressed, "the file and its external data")
    yield _metric("size_ratio", report.size.compressed / report.size.original, "result / original")
    if report.latency is not None:
        where = f"{report.target.provider}, {report.target.threads} thread(s), batch {report.target.batch}"
        yield _metric("latency_p50_ms", report.latency.compressed.p50_ms, where)
        ratio = report.latency.ratios["p50"]
        yield _metric("latency_p50_ratio", ratio.value, f"result / original in turn; {where}", interval=ratio.interval)
    if report.memory is not None:
        yield _metric("peak_memory_bytes", report.memory.compressed.peak_rss_bytes, "a process that loads and runs it")


def _metric(
    name: str, value: float, said: str, output: str | None = None, interval: "engine.Interval | None" = None
) -> _Json:
    found = {"type": name, "value": f"{value:.6g}", "slice": f"output {output}; {said}" if output else said}
    if interval is None:
        return found
    bounds = {"lowerBound": f"{interval.low:.6g}", "upperBound": f"{interval.high:.6g}"}
    return {**found, "confidenceInterval": bounds}


def _ancestor(parent: Parent) -> _Json:
    component: _Json = {"type": "machine-learning-model", "bom-ref": parent.model.id, "name": parent.model.name}
    if parent.sha256 is not None:
        component["version"] = parent.sha256[:12]
        component["hashes"] = [{"alg": "SHA-256", "content": parent.sha256}]
    return component


def _notes(found: Provenance) -> str:
    if found.report is None:
        return "Uploaded as made from these."
    kept = [step.type for step in found.report.steps if step.status == "applied"]
    return f"Made by these steps: {', '.join(kept)}." if kept else "No step was kept: these are the original's bytes."


def _properties(found: Provenance) -> Iterator[tuple[str, str]]:
    yield "onnxpress:model", found.model.id
    if found.model.job_id is not None:
        yield "onnxpress:job", found.model.job_id
    yield from (("onnxpress:alias", alias.name) for alias in found.model.aliases)
    if found.report is None:
        return
    recipe = [{"type": step.type, **step.parameters} for step in found.report.steps if step.status == "applied"]
    yield "onnxpress:recipe", json.dumps(recipe, separators=(",", ":"))
    yield "onnxpress:verdict", found.report.verdict.outcome
    yield "onnxpress:source", f"sha256:{found.report.original.sha256}"


def _runtime(report: "engine.Report | None") -> list[_Json]:
    return [] if report is None else [_tool("onnxruntime", report.environment.onnxruntime)]


def _tool(name: str, version: str) -> _Json:
    return {"type": "application", "name": name, "version": version}
