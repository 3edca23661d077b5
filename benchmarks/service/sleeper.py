"""A worker whose units sleep instead of starting a child: all that is left is what the service itself costs.

ONNXPRESS_...=... python -m benchmarks.service.sleeper --queues inspect
"""

import os
import sys
import time
from typing import Any

import engine
import sandbox
from worker.__main__ import main

SLEEP_S = float(os.environ.get("SLEEPER_S", "0.5"))
_FOUND = engine.Inspection(
    inputs=(),
    outputs=(),
    opset={"": 17},
    ir_version=9,
    producer="sleeper",
    parameters=0,
    size_bytes=0,
    nodes=0,
    ops={},
    quantized="none",
    float_type="float32",
    external_data=False,
)


class SleepingChild:
    """Ends after its time, with the inspection of a network without nodes."""

    cpu_s = 0.0

    def __init__(self) -> None:
        self._end = time.monotonic() + SLEEP_S
        self._killed = False

    def events(self) -> list[dict[str, Any]]:
        """Tell nothing."""
        return []

    def wait(self, seconds: float | None = None) -> sandbox.Outcome | None:
        """Sleep, at most so long."""
        left = self._end - time.monotonic()
        time.sleep(max(0.0, left if seconds is None else min(left, seconds)))
        return sandbox.Outcome("done", _FOUND.model_dump(mode="json")) if time.monotonic() >= self._end else None

    @staticmethod
    def kill() -> sandbox.Outcome:
        """End at once."""
        return sandbox.Outcome("killed")


_really_start = sandbox.start


def _start(
    order: sandbox.Order, *, limits: sandbox.Limits, server: sandbox.ForkServer | None = None
) -> sandbox.Child | SleepingChild:
    # What a worker can run it finds out as ever.
    return SleepingChild() if order.verb == "inspect_model" else _really_start(order, limits=limits, server=server)


if __name__ == "__main__":
    sandbox.start = _start  # type: ignore[assignment]
    sys.exit(main())
