"""The sandbox's child with a search whose candidates wait instead of computing: rounds of trials without end."""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import engine
from sandbox import child

# Of the order of a candidate that is refitted and raced, a multiple of what its process takes to start.
WAIT_S = 12.0
# As a search asks for several at a time and then looks at what came of them.
ROUND = 6


def _turn(*_: object, told: list[Any], **_more: object) -> dict[str, Any]:
    count = len(told)
    proposals = [{"point": {"widths": {"group": count + place + 1}}, "because": "It waits."} for place in range(ROUND)]
    return {"do": "try_proposals", "proposals": proposals}


def _trial(_spec: object, workspace: Path, *_: object, **_more: object) -> engine.TrialValues:
    time.sleep(WAIT_S)
    shutil.copyfile(workspace / "model" / "model.onnx", workspace / "out" / "model.onnx")
    return engine.TrialValues(size_bytes=1, macs=1, parameters=1, latency=None, seconds=WAIT_S)


if __name__ == "__main__":
    engine.search_turn, engine.try_candidate = _turn, _trial
    sys.exit(child.main(sys.argv[1:]))
