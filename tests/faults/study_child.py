"""The sandbox's child with a search that waits instead of computing: two parts of a library, then two rounds of two trials.

All that a real search needs of the service it needs too; what it proposes follows from what it is told alone.
"""

import shutil
import sys
import time
from pathlib import Path

import engine
from engine.report.search import SearchReport
from sandbox import child

PARTS, ROUNDS, WIDTH = ("first", "second"), 2, 2
# By size: the third candidate loses more than the fourth, which is smaller.
LOSSES = {99: 0.01, 98: 0.02, 97: 0.05, 96: 0.03}
# Long enough that a test sees it run and kills it in the middle.
SECONDS = 0.5


def turn(spec, workspace, tell, *, told, pieces, **more):
    """Take the next turn."""
    missing = [part for part in PARTS if part not in pieces]
    if missing:
        return {"do": "measure_variants", "parts": missing}
    assert all(pieces[part] == {"part": part} for part in PARTS)
    ended = [engine.Told.model_validate(one) for one in told]
    assert [one.number for one in ended] == list(range(1, len(ended) + 1)), "every trial is told once"
    assert all(one.state == "succeeded" for one in ended)
    if len(ended) < ROUNDS * WIDTH:
        return {"do": "try_proposals", "proposals": [_proposal(len(ended) + place + 1) for place in range(WIDTH)]}
    front = engine.front_of(ended, "size")
    if not (workspace / "trial" / "model.onnx").exists():
        return {"do": "finish", "trial": front[0], "because": "All are tried."}
    assert (workspace / "trial" / "model.onnx").read_bytes() == (workspace / "model" / "model.onnx").read_bytes()
    return {"report": _report(spec, workspace, tell, ended, front[0], more)}


def _proposal(number):
    """The later, the smaller; each goes on from the network of the round before."""
    inherits = number - WIDTH if number > WIDTH else None
    point = {"widths": {"group": 100 - number}}
    return {"point": point, "because": f"It is number {number}.", "inherits": inherits}


def _report(spec, workspace, tell, ended, chosen, more):
    recipe = {"recipe": {"passes": [{"type": "simplify"}]}, "limits": spec.limits.model_dump()}
    report = engine.run(
        engine.read_spec(recipe), workspace, tell, lock_file=more["lock_file"], deadline=more["deadline"]
    )
    said = {
        "goal": spec.goal,
        "strategy": spec.strategy,
        "seed": spec.seed,
        "budget": spec.budget,
        "seconds": more["elapsed_s"],
        "trials": {"succeeded": len(ended)},
        "stopped": "All are tried.",
        "chosen": chosen,
        "met": True,
    }
    found = report.model_copy(update={"kind": "search", "search": SearchReport.model_validate(said)})
    (workspace / "out" / "report.json").write_text(found.model_dump_json())
    return found.model_dump(mode="json")


def trial(spec, workspace, tell, *, proposal, **_):
    """Try a candidate: wait, and leave the network as it was."""
    assert (proposal.inherits is None) == (not (workspace / "inherited").exists())
    time.sleep(SECONDS)
    shutil.copyfile(workspace / "model" / "model.onnx", workspace / "out" / "model.onnx")
    size = proposal.point.widths["group"]
    values = {"size_bytes": size, "macs": size, "parameters": size, "latency": None, "seconds": SECONDS}
    return engine.TrialValues.model_validate({**values, "quality": [_quality(LOSSES[size])]})


def _quality(lost):
    interval = {"low": -lost, "high": -lost, "confidence": 0.95}
    told = {"metric": "top1", "original": 0.9, "compressed": 0.9 - lost, "difference": -lost}
    return {**told, "interval": interval, "standard_error": 0.0, "samples": 10}


def variants(_spec, workspace, _tell, *, part, **_):
    """Measure a part of the library: wait."""
    assert not (Path(workspace) / "judge").exists()
    time.sleep(SECONDS)
    return {"part": part}


engine.search_turn, engine.try_candidate, engine.measure_variants = turn, trial, variants

if __name__ == "__main__":
    sys.exit(child.main(sys.argv[1:]))
