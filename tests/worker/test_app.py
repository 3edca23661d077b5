"""Celery is set as the fault tests need it."""

from settings import Settings
from worker.app import make_app


def test_messages_are_hints_and_json_only(tmp_path):
    settings = Settings(data_dir=tmp_path, broker_url="redis+socket:///x/valkey.sock")
    found = make_app(settings).conf
    assert found.broker_url == "redis+socket:///x/valkey.sock"
    assert found.task_acks_late
    assert found.task_reject_on_worker_lost
    assert found.task_ignore_result
    assert found.result_backend is None
    assert found.accept_content == ["json"]
    assert found.worker_prefetch_multiplier == 1
    assert not found.task_publish_retry
    assert not found.worker_enable_remote_control
    assert not found.worker_cancel_long_running_tasks_on_connection_loss
    assert found.broker_transport_options["visibility_timeout"] == 3600
    assert found.worker_soft_shutdown_timeout == 20
    assert found.worker_max_tasks_per_child == 200
    assert not found.task_create_missing_queues
