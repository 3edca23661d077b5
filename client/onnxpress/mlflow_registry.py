"""Networks in MLflow's model registry: a run with what was measured, a version of a registered model, an alias on pass."""

import importlib
import importlib.metadata
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onnxpress.errors import ServiceError, UsageError

EXPERIMENT = "onnxpress"
_ARTIFACTS = "model"
# Its loader looks for `MLmodel` beside the network; the folder's signature leaves room for it.
_NETWORK = "onnx"


class MlflowError(ServiceError):
    """MLflow's server refused, or does not answer."""

    code = "mlflow_failed"


@dataclass(frozen=True)
class Registered:
    """A version of a registered model; `alias` is the one that names it now, if the gates let it."""

    name: str
    version: str
    run_id: str
    alias: str | None


def register(
    folder: Path,
    name: str,
    report: Mapping[str, Any] | None,
    *,
    tracking_uri: str | None = None,
    alias: str | None = None,
) -> Registered:
    """Register a hub folder as a new version of a model, with what its job measured as metrics of a run.

    The alias is set only where every gate of the job held (verdict `pass`). The server is `tracking_uri`, else what MLflow itself
    takes from its environment. Raises UsageError without MLflow, MlflowError.
    """
    client = _client(tracking_uri)
    try:
        found = client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found is not None else client.create_experiment(EXPERIMENT)
        run = client.create_run(experiment, run_name=name).info
        for key, value in _metrics(report or {}):
            client.log_metric(run.run_id, key, value)
        described = json.dumps(_description(folder, run.run_id), indent=1)
        (folder / _NETWORK / "MLmodel").write_text(described, encoding="utf-8")
        client.log_artifacts(run.run_id, str(folder), _ARTIFACTS)
        if not any(each.name == name for each in client.search_registered_models(f"name = '{name}'")):
            client.create_registered_model(name)
        tags = _tags(report or {})
        version = client.create_model_version(
            name, source=f"{run.artifact_uri}/{_ARTIFACTS}/{_NETWORK}", run_id=run.run_id, tags=tags
        ).version
        passed = (report or {}).get("verdict", {}).get("outcome") == "pass"
        if alias is not None and passed:
            client.set_registered_model_alias(name, alias, version)
        client.set_terminated(run.run_id)
    except Exception as error:
        # Its errors have no base of their own beside what its HTTP library raises.
        raise MlflowError(f"MLflow did not take the network: {error}") from error
    return Registered(name, str(version), run.run_id, alias if passed else None)


def _client(tracking_uri: str | None) -> Any:
    try:
        mlflow: Any = importlib.import_module("mlflow")
    except ImportError:
        raise UsageError("mlflow:// takes MLflow's client: pip install 'onnxpress[mlflow]'") from None
    return mlflow.MlflowClient(tracking_uri=tracking_uri)


def _description(folder: Path, run_id: str) -> dict[str, Any]:
    """Give the file `MLmodel` (JSON is YAML), so that `mlflow.onnx` and `mlflow.pyfunc` load the network."""
    network = next(
        iter(sorted((folder / "onnx").glob("model*.onnx"), key=lambda path: (path.name == "model.onnx", path.name)))
    )
    path, version = network.name, importlib.metadata.version("onnxpress")
    return {
        "artifact_path": f"{_ARTIFACTS}/{_NETWORK}",
        "flavors": {
            "onnx": {"data": path, "providers": ["CPUExecutionProvider"], "onnx_version": "1.20", "code": None},
            "python_function": {"loader_module": "mlflow.onnx", "data": path, "env": {}},
        },
        "metadata": {"made_by": f"onnxpress {version}"},
        "model_uuid": uuid.uuid4().hex,
        "run_id": run_id,
        "utc_time_created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
    }


def _metrics(report: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield what was measured, under names that MLflow takes."""
    for each in report.get("quality", ()):
        prefix = f"{each['output']}/" if each.get("output") else ""
        yield f"{prefix}{each['metric']}", each["compressed"]
        if each.get("difference") is not None:
            yield f"{prefix}{each['metric']}_difference", each["difference"]
    if "size" in report:
        yield "size_bytes", report["size"]["compressed"]
        yield "size_ratio", report["size"]["compressed"] / report["size"]["original"]
    if report.get("latency"):
        yield "latency_p50_ms", report["latency"]["compressed"]["p50_ms"]
        yield "latency_p50_ratio", report["latency"]["ratios"]["p50"]["value"]


def _tags(report: Mapping[str, Any]) -> dict[str, str]:
    if not report:
        return {}
    return {
        "onnxpress.verdict": report["verdict"]["outcome"],
        "onnxpress.sha256": report["compressed"]["sha256"],
        "onnxpress.source": report["original"]["sha256"],
    }
