"""SDK of onnxpress: compress ONNX networks on your own service, and get a verdict for your pipeline.

with onnxpress.Client() as client:
    model = client.models.upload("model.onnx")
    data = client.datasets.upload("data.npz")
    limits = [{"metric": "top1", "rule": "max_drop", "value": 0.01}]
    job = client.jobs.search(model.id, "latency", dataset=data.id, subject_to=limits)
    job = client.jobs.wait(job.id, timeout=1800)
    client.jobs.download(job.id, "small.onnx")
"""

from importlib.metadata import version

from onnxpress.aliases import Alias, Aliases, AliasMove
from onnxpress.client import Artifacts, Client, Datasets, Jobs, Keys, Models
from onnxpress.dataset_conversion import (
    Converted,
    Pixels,
    Sound,
    audio_to_npz,
    csv_to_npz,
    images_to_npz,
    npy_to_npz,
    texts_to_npz,
)
from onnxpress.documents import (
    Change,
    Dataset,
    Delivery,
    Event,
    FrozenNode,
    Job,
    JobProgress,
    Key,
    Model,
    PlaceInQueue,
    Prunability,
    PrunableGroup,
    Step,
    Webhook,
)
from onnxpress.errors import (
    AuthenticationError,
    ConflictError,
    DigestMismatchError,
    InvalidError,
    JobFailedError,
    NotFoundError,
    OnnxpressError,
    PlaintextWarning,
    RequestRefusedError,
    ServiceError,
    UnavailableError,
    UnexpectedAnswerError,
    UnreachableError,
    UsageError,
    WaitTimeoutError,
)
from onnxpress.exit_codes import ExitCode
from onnxpress.problem import Fault, Problem
from onnxpress.search_documents import Front, FrontPoint, Trial
from onnxpress.tenants import Tenant, Tenants
from onnxpress.webhooks import Webhooks

__version__ = version("onnxpress")
__all__ = [
    "Alias",
    "AliasMove",
    "Aliases",
    "Artifacts",
    "AuthenticationError",
    "Change",
    "Client",
    "ConflictError",
    "Converted",
    "Dataset",
    "Datasets",
    "Delivery",
    "DigestMismatchError",
    "Event",
    "ExitCode",
    "Fault",
    "Front",
    "FrontPoint",
    "FrozenNode",
    "InvalidError",
    "Job",
    "JobFailedError",
    "JobProgress",
    "Jobs",
    "Key",
    "Keys",
    "Model",
    "Models",
    "NotFoundError",
    "OnnxpressError",
    "Pixels",
    "PlaceInQueue",
    "PlaintextWarning",
    "Problem",
    "Prunability",
    "PrunableGroup",
    "RequestRefusedError",
    "ServiceError",
    "Sound",
    "Step",
    "Tenant",
    "Tenants",
    "Trial",
    "UnavailableError",
    "UnexpectedAnswerError",
    "UnreachableError",
    "UsageError",
    "WaitTimeoutError",
    "Webhook",
    "Webhooks",
    "__version__",
    "audio_to_npz",
    "csv_to_npz",
    "images_to_npz",
    "npy_to_npz",
    "texts_to_npz",
]
