"""Aliases move, are found by `@name`, and go back the way they came."""

import pytest

from models import ModelState
from services import aliases, artifacts, catalog
from services.aliases import REMEMBERED_MOVES, Expected, Mover
from services.errors import ConflictError, NotFoundError

TENANT = "default"


def move(service, model, name="prod", **more):
    return service.write(lambda session: aliases.move(session, TENANT, name, model.id, **more).model_id)


def back(service, name="prod", **more):
    return service.write(lambda session: aliases.roll_back(session, TENANT, name, **more).model_id)


def named(service, name="@prod"):
    return service.read(lambda session: artifacts.get_model(session, TENANT, name))


def test_a_network_has_several_and_is_found_by_each(service):
    model, other = service.ready_model(), service.ready_model()
    move(service, model)
    move(service, model, "staging")
    assert named(service).id == named(service, "@staging").id == model.id
    move(service, other)
    assert (named(service).id, named(service, "@staging").id) == (other.id, model.id)
    found = service.read(lambda session: [one.name for one in artifacts.get_model(session, TENANT, model.id).aliases])
    assert found == ["staging"]
    # What processes of the version before go by.
    assert (named(service).alias, named(service, "@staging").alias) == ("prod", "staging")
    with pytest.raises(NotFoundError, match="has the alias nothing"):
        named(service, "@nothing")


def test_each_step_back_undoes_the_move_before_it(service):
    first, second, third, fourth = (service.ready_model() for _ in range(4))
    for model in (first, second, third):
        move(service, model, mover=Mover("key_1", "release"))
    assert back(service) == second.id
    assert back(service) == first.id
    with pytest.raises(ConflictError) as refused:
        back(service)
    assert refused.value.exact_code == "no_earlier_model"
    # A move after steps back goes on from there.
    move(service, fourth)
    assert back(service) == first.id
    moves = service.read(lambda session: aliases.history(session, TENANT, "prod"))
    assert [(one.model_id, one.is_rollback) for one in moves] == [
        (first.id, True), (fourth.id, False), (first.id, True), (second.id, True),
        (third.id, False), (second.id, False), (first.id, False),
    ]  # fmt: skip
    assert (moves[-1].key_id, moves[-1].note) == ("key_1", "release")


def test_what_was_deleted_is_not_gone_back_to(service):
    first, second, third = (service.ready_model(content=name) for name in (b"1", b"2", b"3"))
    for model in (first, second, third):
        move(service, model)
    service.write(lambda session: catalog.delete_model(session, service.store, TENANT, second.id))
    assert back(service) == first.id


def test_nobody_overwrites_a_move_that_was_not_seen(service):
    first, second = service.ready_model(), service.ready_model()
    move(service, first, expected=Expected(None))
    for expected in (Expected(None), Expected(second.id)):
        with pytest.raises(ConflictError) as refused:
            move(service, second, expected=expected)
        assert refused.value.exact_code == "alias_moved"
    move(service, second, expected=Expected(first.id))
    with pytest.raises(ConflictError):
        back(service, expected=Expected(first.id))
    assert back(service, expected=Expected(second.id)) == first.id


def test_only_a_ready_network_gets_one(service):
    with pytest.raises(ConflictError) as refused:
        move(service, service.upload())
    assert refused.value.exact_code == "model_not_ready"


def test_an_alias_is_taken_away_with_its_network(service):
    model = service.ready_model()
    move(service, model)
    service.write(lambda session: aliases.take_away(session, TENANT, "prod"))
    with pytest.raises(NotFoundError):
        named(service)
    assert service.read(lambda session: aliases.history(session, TENANT, "prod"))[0].model_id is None
    move(service, model)
    service.write(lambda session: catalog.delete_model(session, service.store, TENANT, model.id))
    assert service.read(lambda session: aliases.list_aliases(session, TENANT)) == []


def test_as_many_moves_are_remembered(service):
    pair = service.ready_model(), service.ready_model()
    for turn in range(REMEMBERED_MOVES + 3):
        move(service, pair[turn % 2])
    moves = service.read(lambda session: aliases.history(session, TENANT, "prod"))
    assert len(moves) == REMEMBERED_MOVES


def test_no_tenant_has_aliases_without_end(service, monkeypatch):
    monkeypatch.setattr(aliases, "MOST", 2)
    model = service.ready_model()
    move(service, model, "first")
    move(service, model, "second")
    with pytest.raises(ConflictError) as refused:
        move(service, model, "third")
    assert refused.value.exact_code == "too_many_aliases"
    for name in ("third", "fourth", "fifth"):
        service.write(lambda session: aliases.take_away(session, TENANT, "second"))
        move(service, model, name)
        service.write(lambda session, name=name: aliases.take_away(session, TENANT, name))
        move(service, model, "second")

    def moves(name):
        return service.read(lambda session: aliases.history(session, TENANT, name))

    # Of names that no network had any more, the last two were remembered: at the end `second` was one of them.
    assert [name for name in ("first", "second", "third", "fourth", "fifth") if moves(name)] == [
        "first",
        "second",
        "fifth",
    ]


def test_a_job_takes_the_network_that_has_the_alias(service):
    model = service.ready_model()
    move(service, model)
    request = service.request(model)
    job = service.submit(type(request)(**{**request.__dict__, "model_id": "@prod"})).job
    assert job.model_id == model.id


def test_a_result_that_is_pushed_again_keeps_where_it_comes_from(service):
    model = service.ready_model()
    job = service.submit(service.request(model)).job
    assert service.finish(service.claim())
    result = service.read(lambda session: artifacts.get_model(session, TENANT, job.output_model_id))
    sha256 = service.read(lambda session: artifacts.get_model(session, TENANT, result.id).artifact.files[0].sha256)
    pushed = service.write(
        lambda session: artifacts.add_model(
            session, TENANT, artifacts.known_blob(session, service.store, TENANT, sha256), name="pushed"
        )
    )
    assert pushed.in_state is ModelState.CHECKING
    found = service.read(lambda session: catalog.lineage(session, TENANT, pushed.id).ancestors)
    assert [one.id for one in found] == [result.id, model.id]
