"""The Celery application: a carrier of hints, nothing more. The database holds what is true."""

from typing import Any

from celery import Celery

from services.publisher import prefix, tls
from services.routing import INSPECT_QUEUE
from settings import Settings, get_settings


def make_app(settings: Settings) -> Celery:
    """Give the application for the settings' broker."""
    made = Celery("onnxpress", include=["worker.tasks"])
    made.conf.update(configuration(settings))
    return made


def configuration(settings: Settings) -> dict[str, Any]:
    """Give Celery's settings; why they are so stands in docs/decisions/0001."""
    return {
        "broker_url": settings.broker,
        "broker_use_ssl": tls(settings),
        # A message is gone only after its unit was worked on, or given to somebody else.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        # No result backend: results are rows.
        "task_ignore_result": True,
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "task_publish_retry": False,
        # A worker listens to the queues of what it has proven; it names them when it starts.
        "task_default_queue": INSPECT_QUEUE,
        "task_create_missing_queues": False,
        "broker_transport_options": {
            "visibility_timeout": 3600,
            "socket_timeout": 10,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            **prefix(settings),
        },
        # The broker may go and come back; work that is running does not depend on it.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_soft_shutdown_timeout": 20.0,
        "worker_max_tasks_per_child": 200,
        # Nobody controls workers through the broker.
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


app = make_app(get_settings())
