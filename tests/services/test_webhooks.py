"""What ends is told to whoever asked, signed, until it arrives or was tried for days; on both stacks."""

import json
from datetime import UTC, datetime, timedelta

import pytest
import standardwebhooks
from sqlalchemy import update

from models import Webhook, WebhookDelivery
from services import aliases, attempts, jobs, metrics
from services.errors import ConflictError
from services.server_secret import SecretError, ServerSecret, open_server_secret
from services.webhooks import Courier, Policy, deliveries, subscriptions
from settings import Settings

from ..webhook_receiver import Receiver
from .conftest import TENANT

SECRET = ServerSecret("s" * 64)
LOCAL = {"webhook_networks": "127.0.0.0/8"}


@pytest.fixture
def courier(service):
    made = Courier(service.database, SECRET, Settings(data_dir=service.settings.data_dir, **LOCAL))
    yield made
    made.stop()


def subscribe(service, receiver, **more):
    policy = Policy.from_settings(Settings(**LOCAL))
    return service.write(
        lambda session: subscriptions.create(session, TENANT, receiver.url, secret=SECRET, policy=policy, **more)
    )


def send(service, courier, webhook_id):
    """Have everything sent that is due, and give all deliveries, the oldest first."""
    while courier.round() or courier._busy:
        courier._woken.wait(30)
        courier._woken.clear()
    return service.read(lambda session: deliveries.list_deliveries(session, TENANT, webhook_id))[::-1]


def make_due(service, **more):
    past = datetime(2020, 1, 1, tzinfo=UTC)
    service.write(lambda session: session.execute(update(WebhookDelivery).values(next_at=past, **more)))


def test_a_finished_job_is_told_signed_as_the_standard_says(service, courier):
    with Receiver() as receiver:
        made = subscribe(service, receiver, events=["job.succeeded"])
        job = service.submit().job
        service.finish(service.claim())
        (sent,) = send(service, courier, made.row.id)
    assert (sent.status, sent.subject_id) == ("delivered", job.id)
    ((headers, body),) = receiver.messages
    # By the package that receivers use.
    message = standardwebhooks.Webhook(made.secret).verify(body, headers)
    assert message["type"] == "job.succeeded"
    assert (message["data"]["id"], message["data"]["status"]) == (job.id, "succeeded")
    assert headers["webhook-id"] == sent.id
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(made.secret).verify(body.replace("succeeded", "failed"), headers)


def test_events_are_those_that_were_asked_for_and_of_ones_own_tenant(service, courier):
    with Receiver() as receiver:
        everything, some = subscribe(service, receiver), subscribe(service, receiver, events=["job.cancelled"])
        service.ready_model(tenant="other")
        job = service.submit().job
        service.write(lambda session: jobs.cancel(session, TENANT, job.id))
        told = sorted(one.type for one in send(service, courier, everything.row.id))
        assert [one.type for one in send(service, courier, some.row.id)] == ["job.cancelled"]
    assert told == ["job.cancelled", "model.ready", "model.rejected"]


def test_what_is_rolled_back_is_told_to_nobody(service):
    with Receiver() as receiver:
        made = subscribe(service, receiver)

        def change_its_mind(session):
            deliveries.ping(session, session.get_one(Webhook, made.row.id))
            raise RuntimeError

        with pytest.raises(RuntimeError):
            service.write(change_its_mind)
    assert service.read(lambda session: deliveries.list_deliveries(session, TENANT, made.row.id)) == []


def test_what_is_refused_is_tried_again_later_and_at_last_given_up(service, courier):
    with Receiver(500) as receiver:
        made = subscribe(service, receiver, events=["model.ready"])
        service.ready_model()
        (row,) = send(service, courier, made.row.id)
        waits = []
        while row.status == "pending":
            waits.append((row.next_at - datetime.fromisoformat(row.attempts[-1]["at"])).total_seconds())
            make_due(service)
            (row,) = send(service, courier, made.row.id)
        assert (row.status, row.next_at) == ("failed", None)
        assert len(receiver.messages) == 9
        for wait, least in zip(waits, deliveries.RETRY_S, strict=True):
            assert least <= wait <= least * 1.1
        assert {(one["result"], one["status"]) for one in row.attempts} == {("refused", 500)}
        # Again, by hand, under the same id.
        receiver.statuses = [200]
        service.write(lambda session: deliveries.replay(session, TENANT, made.row.id, row.id))
        with pytest.raises(ConflictError):
            service.write(lambda session: deliveries.replay(session, TENANT, made.row.id, row.id))
        (row,) = send(service, courier, made.row.id)
        assert (row.status, row.attempts[-1]["result"]) == ("delivered", "delivered")
    assert len({headers["webhook-id"] for headers, _ in receiver.messages}) == 1
    assert len({body for _, body in receiver.messages}) == 1


def test_all_that_was_given_up_is_sent_again(service, courier):
    with Receiver(500) as receiver:
        made = subscribe(service, receiver)
        for _ in range(2):
            service.write(lambda session: deliveries.ping(session, session.get_one(Webhook, made.row.id)))
        assert [one.status for one in send(service, courier, made.row.id)] == ["failed", "failed"]
        (counted,) = (one for one in service.read(metrics.collect) if one.name == "onnxpress_webhook_deliveries")
        assert counted.samples == [({"status": "failed"}, 2)]
        receiver.statuses = [204]
        since = datetime.now(UTC) - timedelta(hours=1)
        for count in (2, 0):
            # Without reading any of them, for there may be very many.
            replayed, read = service.write(
                lambda session: (
                    deliveries.replay_failed(session, TENANT, made.row.id, since),
                    [row for row in session if isinstance(row, WebhookDelivery)],
                )
            )
            assert (replayed, read) == (count, [])
        assert [one.status for one in send(service, courier, made.row.id)] == ["delivered", "delivered"]


def test_a_receiver_that_is_gone_or_fails_for_days_is_left_alone(service, courier):
    with Receiver(410) as gone, Receiver(503) as failing:
        first, second = subscribe(service, gone), subscribe(service, failing)
        service.ready_model()
        send(service, courier, first.row.id)
        week_ago = datetime.now(UTC) - timedelta(days=7)
        service.write(lambda session: session.execute(update(Webhook).values(failing_since=week_ago)))
        make_due(service)
        send(service, courier, second.row.id)
        reasons = [
            service.read(lambda session, one=one: session.get_one(Webhook, one.row.id)).disabled_by
            for one in (first, second)
        ]
        assert reasons == ["gone", "failing"]
        before = len(failing.messages)
        service.ready_model()
        make_due(service)
        assert courier.round() == 0
        # What waited goes on when it is enabled again.
        policy = Policy.from_settings(Settings(**LOCAL))
        change = {"policy": policy, "enabled": True}
        service.write(lambda session: subscriptions.change(session, TENANT, second.row.id, **change))
        send(service, courier, second.row.id)
        assert len(failing.messages) == before + 1


def test_both_secrets_sign_for_a_day_after_an_exchange(service, courier):
    with Receiver() as receiver:
        made = subscribe(service, receiver)
        new = service.write(lambda session: subscriptions.rotate(session, TENANT, made.row.id, SECRET))
        assert new.secret != made.secret
        service.ready_model()
        send(service, courier, made.row.id)
        day_ago = datetime.now(UTC) - timedelta(days=1, minutes=1)
        service.write(lambda session: session.execute(update(Webhook).values(rotated_at=day_ago)))
        service.ready_model()
        send(service, courier, made.row.id)
    (first, first_body), (later, later_body) = receiver.messages
    for secret in (made.secret, new.secret):
        assert standardwebhooks.Webhook(secret).verify(first_body, first)
    assert standardwebhooks.Webhook(new.secret).verify(later_body, later)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(made.secret).verify(later_body, later)


def test_one_process_sends_and_another_goes_on_when_it_dies(service, courier):
    with Receiver() as receiver:
        made = subscribe(service, receiver)
        service.ready_model()
        (row,) = service.read(lambda session: deliveries.list_deliveries(session, TENANT, made.row.id))
        assert service.write(lambda session: deliveries.claim(session, row.id)) is not None
        assert service.write(lambda session: deliveries.claim(session, row.id)) is None
        assert courier.round() == 0
        # Whoever had it is gone without a word.
        make_due(service, claimed_until=datetime(2020, 1, 1, tzinfo=UTC))
        (row,) = send(service, courier, made.row.id)
    assert (row.status, len(receiver.messages)) == ("delivered", 1)


def test_no_other_secret_signs_for_a_webhook(service):
    other = Courier(service.database, ServerSecret("o" * 64), Settings(data_dir=service.settings.data_dir, **LOCAL))
    with Receiver() as receiver:
        made = subscribe(service, receiver)
        service.ready_model()
        assert other.round() == 0
        service.write(lambda session: subscriptions.rotate(session, TENANT, made.row.id, ServerSecret("o" * 64)))
        send(service, other, made.row.id)
        other.stop()
    assert len(receiver.messages) == 1


def test_the_services_secret_is_a_private_file_that_stays(tmp_path):
    settings = Settings(data_dir=tmp_path / "var")
    first = open_server_secret(settings)
    path = tmp_path / "var" / "secret.key"
    path.chmod(0o644)
    assert open_server_secret(settings).name == first.name
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["secret.key"]
    assert first.derive("a") != first.derive("b")
    path.write_text("short")
    with pytest.raises(SecretError, match="openssl rand"):
        open_server_secret(settings)
    with pytest.raises(SecretError, match="ONNXPRESS_SECRET_FILE"):
        open_server_secret(Settings(secret_file=tmp_path / "none"))
    with pytest.raises(SecretError, match="ONNXPRESS_SECRET has 9 letters"):
        open_server_secret(Settings(secret="change-me"))
    assert open_server_secret(Settings(secret="s" * 64)).name == SECRET.name


def test_whoever_serves_an_alias_hears_of_its_moves(service, courier):
    with Receiver() as receiver:
        made = subscribe(service, receiver, events=["alias.moved"])
        first, second = service.ready_model(), service.ready_model()
        for model in (first, second):
            service.write(lambda session, model=model: aliases.move(session, TENANT, "production", model.id))
        service.write(lambda session: aliases.roll_back(session, TENANT, "production"))
        service.write(lambda session: aliases.take_away(session, TENANT, "production"))
        sent = send(service, courier, made.row.id)
    told = [json.loads(one.body)["data"] for one in sorted(sent, key=lambda one: one.created_at)]
    assert [(one["alias"], one["model"], one["rollback"]) for one in told] == [
        ("production", first.id, False), ("production", second.id, False), ("production", first.id, True), ("production", None, False),
    ]  # fmt: skip


def test_no_more_is_said_than_what_it_is_and_how_it_ended(service, courier):
    with Receiver() as receiver:
        made = subscribe(service, receiver, events=["model.rejected"])
        row, claim = service.upload(), service.claim()
        problem = {"code": "not_a_network", "class": "user", "retryable": False, "message": "A private detail."}
        service.write(lambda session: attempts.fail(session, service.store, claim.unit_id, claim.token, problem))
        (sent,) = send(service, courier, made.row.id)
    told = json.loads(sent.body)["data"]
    assert told["problem"] == {"code": "not_a_network", "class": "user", "retryable": False}
    assert (told["id"], told["state"], told["path"]) == (row.id, "rejected", f"/v1/models/{row.id}")
    assert "private" not in sent.body
