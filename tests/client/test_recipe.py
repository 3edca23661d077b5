"""Recipes, gates and keys as people and pipelines give them."""

import json

import pytest

from engine import Compress
from onnxpress import goal, idempotency, recipe
from onnxpress.errors import UsageError

PASSES = [{"type": "simplify"}]


def test_every_shorthand_is_a_spec_that_the_engine_takes():
    for name in recipe.RECIPES:
        Compress.model_validate(recipe.read_spec(name))


def test_a_file_holds_a_recipe_or_a_whole_job(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"passes": PASSES}))
    assert recipe.read_spec(str(path)) == {"kind": "compress", "recipe": {"passes": PASSES}}
    job = {"recipe": {"passes": PASSES}, "target": {"threads": 2}, "gates": [], "limits": {"max_runtime_s": 60}}
    path.write_text(json.dumps(job))
    assert recipe.read_spec(str(path)) == {"kind": "compress", **job}
    Compress.model_validate(recipe.read_spec(str(path)))


def test_files_may_be_yaml_and_their_limits_have_units(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "# for the gateway\nrecipe: {passes: [{type: simplify}]}\ntarget: {threads: 2}\ngates:\n  - top1 max_drop 1%\n"
        "  - {metric: size_bytes, rule: max, value: 2MiB}\n  - {metric: latency_p99, rule: max, value: 5ms, level: warn}\n"
    )
    read = recipe.read_spec(str(path))
    assert [gate["value"] for gate in read["gates"]] == [0.01, 2 << 20, 5.0]
    Compress.model_validate(read)
    goal_file = tmp_path / "goal.yml"
    goal_file.write_text("minimise: size\nsubject_to: [top1 max_drop 0.01]\n")
    limit = {"metric": "top1", "rule": "max_drop", "value": 0.01}
    assert goal.read_goal(str(goal_file))["goal"] == {"minimise": "size", "subject_to": [limit]}
    for text, words in (("a: [", "is not YAML"), ("gates: [{metric: top1, rule: max_drop, value: '1'}]", "100 points")):
        path.write_text(text)
        with pytest.raises(UsageError, match=words):
            recipe.read_spec(str(path))


@pytest.mark.parametrize(
    ("text", "words"), [("{", "is not JSON"), ("[]", "JSON object"), ('{"pases": []}', "neither a recipe")]
)
def test_a_file_that_is_neither_is_refused_in_words(tmp_path, text, words):
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        recipe.read_spec(str(path))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match="int8"):
        recipe.read_spec("int9")


def test_labels():
    assert recipe.parse_labels(["branch=main", "note=a=b", "empty="]) == {"branch": "main", "note": "a=b", "empty": ""}
    for wrong in ("branch", "=main"):
        with pytest.raises(UsageError):
            recipe.parse_labels([wrong])


def test_an_attempt_of_a_ci_run_has_one_key_and_the_next_attempt_another():
    github = {"GITHUB_RUN_ID": "7", "GITHUB_RUN_ATTEMPT": "1", "GITHUB_JOB": "press"}
    assert idempotency.run_id(github) == idempotency.run_id(dict(github))
    assert idempotency.run_id(github) == idempotency.run_id({**github, "GITHUB_RUN_ATTEMPT": "2"})
    assert idempotency.run_id(github) != idempotency.run_id({**github, "GITHUB_JOB": "other"})
    gitlab = {"CI_PIPELINE_ID": "9", "CI_JOB_NAME": "press"}
    assert idempotency.run_id(gitlab) == idempotency.run_id({**gitlab, "CI_JOB_ID": "10"})
    assert idempotency.run_id({}) != idempotency.run_id({})


def test_a_key_depends_on_all_that_was_asked():
    spec = {"recipe": {"passes": PASSES}}
    key = idempotency.idempotency_key("job", ["sha"], spec, run="1")
    assert key == idempotency.idempotency_key("job", ["sha"], dict(spec), run="1")
    others = [("job", ["other"], spec, "1"), ("job", ["sha"], {}, "1"), ("job", ["sha"], spec, "2")]
    assert key not in {idempotency.idempotency_key(what, sha, one, run=run) for what, sha, one, run in others}
