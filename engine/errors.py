"""What can go wrong with a network or its data, in words for its owner.

Every error has a stable code from the closed set below, the blame (`user`, `service` or `transient`), and where it can,
the node and a hint that says what to do. Edges map these; they never invent texts of their own.
"""

from typing import ClassVar, Literal

Blame = Literal["user", "service", "transient"]


class EngineError(Exception):
    """A refusal or failure of the engine that its caller may show to the model's owner."""

    code: ClassVar[str] = "engine_failed"
    blame: ClassVar[Blame] = "service"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, node: str | None = None, step: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.node = node
        self.step = step
        self.hint = hint

    def problem(self) -> dict[str, object]:
        """Give the error in the shape that reports and job rows store."""
        found = {"node": self.node, "step": self.step, "hint": self.hint}
        return {
            "code": self.code,
            "class": self.blame,
            "retryable": self.retryable,
            "message": self.message,
            **{key: value for key, value in found.items() if value is not None},
        }


class ModelInvalidError(EngineError):
    """The bytes are not an ONNX network that can run."""

    code = "model_invalid"
    blame = "user"


class ModelUnsupportedError(EngineError):
    """The network is valid, but uses what this service does not take (a foreign operator domain, a size over the limit)."""

    code = "model_unsupported"
    blame = "user"


class DatasetInvalidError(EngineError):
    """The data are not readable, hold values that no network should see, or do not fit the network."""

    code = "dataset_invalid"
    blame = "user"


class SpecInvalidError(EngineError):
    """The job asks for something that this network or target cannot give."""

    code = "spec_invalid"
    blame = "user"


class TargetUnavailableError(EngineError):
    """The execution provider is not there, or is listed but does not run the network's nodes."""

    code = "target_unavailable"
    blame = "service"


class BaselineFailedError(EngineError):
    """The original network itself does not run on the target with the given data."""

    code = "baseline_failed"
    blame = "user"


class VerificationFailedError(EngineError):
    """A transformed network broke its promise; the pipeline rolls the step back, users see it as a refused step."""

    code = "verification_failed"
    blame = "service"


class OutOfTimeError(EngineError):
    """The job's run limit ended the work."""

    code = "runtime_limit"
    blame = "user"
