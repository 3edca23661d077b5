"""Keys are shown once, stored as digests, and end."""

import stat
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from models import ApiKey
from services import keys
from services.errors import ConflictError, NotFoundError, UnauthorizedError

from .conftest import TENANT


def test_a_key_tells_who_calls(service):
    new = service.write(lambda session: keys.create(session, TENANT, "ci", ("read",)))
    caller = service.read(lambda session: keys.authenticate(session, new.text))
    assert (caller.tenant_id, caller.key_id, caller.scopes) == (TENANT, new.row.id, {"read"})
    stored = service.read(lambda session: session.scalars(select(ApiKey)).one())
    assert new.text.split("_")[2] not in str(vars(stored))


def test_wrong_expired_and_revoked_keys_are_refused_alike(service):
    past = datetime.now(UTC) - timedelta(seconds=1)
    new = service.write(lambda session: keys.create(session, TENANT, "a", ("read",)))
    expired = service.write(lambda session: keys.create(session, TENANT, "b", ("read",), past))
    service.write(lambda session: keys.revoke(session, TENANT, new.row.id))
    texts = [new.text, expired.text, "", "opk_x_y", "opk__", expired.text + "0", "a_b_c_d", "opk_" + "9" * 26 + "_x"]
    told = set()
    for text in texts:
        with pytest.raises(UnauthorizedError) as caught:
            service.read(lambda session, text=text: keys.authenticate(session, text))
        told.add(str(caught.value))
    assert len(told) == 1


def test_another_tenant_cannot_revoke(service):
    new = service.write(lambda session: keys.create(session, TENANT, "a", ("read",)))
    with pytest.raises(NotFoundError):
        service.write(lambda session: keys.revoke(session, "other", new.row.id))


def test_no_tenant_has_keys_without_end(service, monkeypatch):
    monkeypatch.setattr(keys, "MOST", 3)

    def make():
        return service.write(lambda session: keys.create(session, TENANT, "ci", ("read",))).row.id

    first, second, third = (make() for _ in range(3))
    with pytest.raises(ConflictError) as refused:
        make()
    assert refused.value.exact_code == "too_many_keys"
    # One that has ended makes room.
    service.write(lambda session: keys.revoke(session, TENANT, second))
    fourth = make()
    assert [one.id for one in service.read(lambda session: keys.list_keys(session, TENANT))] == [fourth, third, first]


def test_unknown_scopes_are_refused(service):
    with pytest.raises(ValueError, match="no such scope"):
        service.write(lambda session: keys.create(session, TENANT, "a", ("root",)))


def test_an_admin_key_of_an_earlier_version_is_given_the_scopes_that_are_new(service, tmp_path):
    path = tmp_path / "admin.key"
    service.write(lambda session: keys.ensure_tenant(session, keys.DEFAULT_TENANT))
    made = service.write(lambda session: keys.create(session, keys.DEFAULT_TENANT, "admin", ("admin", "read")))
    path.write_text(made.text)
    keys.ensure_admin_key(service.settings, path)
    assert path.read_text() == made.text
    assert service.read(lambda session: keys.authenticate(session, made.text)).scopes == set(keys.SCOPES)


def test_the_admin_key_is_private_and_stays(service, tmp_path):
    path = tmp_path / "admin.key"
    keys.ensure_admin_key(service.settings, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert "admin" in service.read(lambda session: keys.authenticate(session, text.strip())).scopes
    keys.ensure_admin_key(service.settings, path)
    assert path.read_text() == text
    path.write_text("opk_1_2")
    path.chmod(0o644)
    keys.ensure_admin_key(service.settings, path)
    assert path.read_text() not in {text, "opk_1_2"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
