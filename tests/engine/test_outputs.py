"""What owners declare of their networks' outputs."""

import pytest

from engine import OutputDeclaration, read_declarations, read_spec
from engine.errors import DatasetInvalidError


def test_declarations_are_read_from_json():
    said = {"a": {"kind": "values"}, "b": {"weight": 0.5}, "c": {"ignore": True}}
    found = read_declarations(said)
    assert found == {
        "a": OutputDeclaration(kind="values"), "b": OutputDeclaration(weight=0.5), "c": OutputDeclaration(ignore=True)
    }  # fmt: skip
    assert {name: each.model_dump(exclude_defaults=True) for name, each in found.items()} == said


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([], "must be an object"),
        ({"a": {"kind": "vectors"}}, "output `a` is wrong at `kind`"),
        ({"a": {}}, "say a `kind`, a `weight` or `ignore`"),
        ({"a": {"weight": 0}}, "at `weight`"),
        ({"a": {"weight": "2"}}, "at `weight`"),
        ({"a": {"kinds": "values"}}, "at `kinds`"),
    ],
)
def test_what_is_wrong_with_a_declaration_is_said(said, message):
    with pytest.raises(DatasetInvalidError, match=message):
        read_declarations(said)


@pytest.mark.parametrize(
    "body", [{"recipe": {"passes": [{"type": "simplify"}]}}, {"kind": "profile", "targets": [{"provider": "cpu"}]}]
)
def test_jobs_of_both_kinds_declare_outputs(body):
    assert read_spec(body).outputs == {}
    spec = read_spec({**body, "outputs": {"y": {"kind": "embedding"}}})
    assert spec.outputs == {"y": OutputDeclaration(kind="embedding")}
    assert read_spec(spec.model_dump(mode="json")) == spec
