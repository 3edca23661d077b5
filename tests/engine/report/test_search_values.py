"""What a search speaks of is JSON, also where a candidate cannot be predicted."""

import json
import math

from engine.report.search import Predicted


def test_damage_without_bound_goes_through_json_and_comes_back():
    predicted = Predicted(latency_ratio=0.5, size_bytes=10, macs=10, damage=math.inf)
    told = json.loads(json.dumps(predicted.model_dump(mode="json"), allow_nan=False))
    assert told["damage"] is None
    assert Predicted.model_validate(told) == predicted
    assert Predicted.model_validate({**told, "damage": 0.25}).model_dump(mode="json")["damage"] == 0.25
