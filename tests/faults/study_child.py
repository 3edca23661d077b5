"""The sandbox's child with one verb more: a coordinator that proposes two rounds of trials, then runs the job itself."""

import sys

from sandbox import child

ROUNDS, WIDTH = 2, 2
_known = child._work


def work(order, workspace, tell):
    """Do an order, a coordinator's too."""
    if order["verb"] != "study":
        return _known(order, workspace, tell)
    payload = order["payload"]
    state, ended = payload["state"] or {"round": 0}, payload["trials"]
    assert len(ended) == state["round"] * WIDTH, "every trial of the rounds before is told, each once"
    if state["round"] < ROUNDS:
        points = [state["round"] * WIDTH + index for index in range(WIDTH)]
        return {"spawn": [_trial(payload["spec"], point) for point in points], "state": {"round": state["round"] + 1}}
    assert all(one["values"]["size"]["compressed"] > 0 for one in ended)
    return _known({**order, "verb": "run"}, workspace, tell)


def _trial(spec, number):
    return {"kind": "trial", "payload": {"spec": spec, "point": {"number": number}}}


child._work = work

if __name__ == "__main__":
    sys.exit(child.main(sys.argv[1:]))
