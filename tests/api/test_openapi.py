"""The description says what the service does."""

import httpx
import pytest

from api.app import create_app
from api.schemas import NewJob
from settings import Settings

# A link is its own key.
KEYLESS = {"/livez", "/readyz", "/v1/links/{digest}"}


@pytest.fixture(scope="module")
def document():
    """Give what a process says that serves nothing."""
    return create_app(Settings()).openapi()


def operations(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_the_description_is_public_and_the_same_without_a_server(service, document):
    told = httpx.get(service.url + "/openapi.json", timeout=60).json()
    assert told == document
    assert told["openapi"].startswith("3.1")


def test_every_operation_has_a_name_a_tag_and_typed_errors(document):
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    assert all(name.replace("_", "").isalpha() for name in names)
    for method, path, operation in operations(document):
        assert operation["tags"], path
        words = " ".join(operation["description"].split())
        assert words.startswith(operation["summary"]), path
        assert operation["summary"].replace(" ", "_").lower() != operation["operationId"], path
        if path in KEYLESS:
            continue
        assert operation["security"] == [{"key": []}], path
        assert {"401", "403", "422", "500", "503"} <= set(operation["responses"]), path
        if "{" in path:
            assert "404" in operation["responses"], path
        if method == "post" and ":" not in path:
            assert {"413", "415"} <= set(operation["responses"]), path
            assert "requestBody" in operation, path
        for status, answer in operation["responses"].items():
            if int(status) >= 400:
                assert answer["content"] == {
                    "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
                }, (path, status)


def test_every_reference_leads_somewhere(document):

    def references(node):
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for inner in node.values():
                yield from references(inner)
        elif isinstance(node, list):
            for inner in node:
                yield from references(inner)

    found = set(references(document))
    assert found
    assert {one.removeprefix("#/components/schemas/") for one in found} <= set(document["components"]["schemas"])


def test_a_recipe_is_a_discriminated_union_of_passes(document):
    schemas = document["components"]["schemas"]
    items = schemas["Recipe"]["properties"]["passes"]["items"]
    assert items["discriminator"]["propertyName"] == "type"
    assert {"simplify", "quantize_static"} <= set(items["discriminator"]["mapping"])
    assert len(items["oneOf"]) == len(items["discriminator"]["mapping"])


def test_examples_are_valid(document):
    examples = document["components"]["schemas"]["CompressJob"]["examples"]
    assert examples
    for example in examples:
        NewJob.model_validate(example)
