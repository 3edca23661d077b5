"""The one place where the environment is read: frozen, validated, prefix ONNXPRESS_."""

import ipaddress
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Everything an operator may set. Defaults are the embedded service on one machine."""

    model_config = SettingsConfigDict(env_prefix="ONNXPRESS_", frozen=True, extra="forbid")

    data_dir: Path = Field(Path("var"), description="Folder of the database, the blobs and the job workspaces.")
    database_url: str = Field("", description="SQLAlchemy URL; by default SQLite in data_dir.")
    broker_url: str = Field("", description="Redis-protocol URL; by default the bundled Valkey on a unix socket.")
    broker_prefix: str = Field(
        "",
        pattern=r"^[\w.:-]*$",
        description="What every key in the broker begins with, where several installations share one.",
    )
    broker_ca_file: Path | None = Field(
        None, description="Certificates that sign a `rediss://` broker's; by default the system's."
    )
    broker_cert_file: Path | None = Field(None, description="Our own certificate, for a broker that asks for one.")
    broker_key_file: Path | None = Field(None, description="The key of broker_cert_file.")
    store_url: str = Field(
        "",
        pattern="^$|^s3://[^/]+(/.*)?$",
        description="`s3://bucket` or `s3://bucket/prefix` for the stored bytes; by default a folder in data_dir.",
    )
    store_endpoint: str = Field("", description="URL of an S3 service other than Amazon's.")
    store_region: str = Field("us-east-1", description="Region of the bucket.")
    store_access_key: SecretStr = Field(
        SecretStr(""), description="By default what the environment has, such as a role."
    )
    store_secret_key: SecretStr = Field(SecretStr(""), description="The secret of store_access_key.")
    store_ca_file: Path | None = Field(
        None, description="Certificates that sign the S3 service's; by default the system's."
    )
    signing_key_file: Path | None = Field(
        None,
        description="P-256 private key, PEM without a password, that exported networks are signed with; by default one in data_dir"
        " that is made when it is first used. Several API hosts need the same one.",
    )
    host: str = Field("127.0.0.1", description="Address that the API binds.")
    port: int = Field(8765, ge=0, le=65535, description="Port that the API binds; 0 takes a free one.")
    max_connections: int = Field(
        1000,
        ge=10,
        description="Connections that one API process holds, and requests that it answers at the same time.",
    )
    max_connections_per_address: int = Field(
        500,
        ge=0,
        description="How many of them may come from one address; 0: any. Behind a proxy, see trusted_proxies.",
    )
    trusted_proxies: str = Field(
        "",
        description="Addresses or networks, by comma, of proxies in front of the API whose X-Forwarded-For is believed, such as"
        " `10.0.0.0/8`: limits by address then hold for whom they ask for.",
    )
    max_model_bytes: int = Field(4 << 30, ge=1 << 10, description="Largest model upload.")
    max_dataset_bytes: int = Field(4 << 30, ge=1 << 10, description="Largest dataset upload.")
    upload_expires_hours: float = Field(
        24, gt=0, description="How long a resumable upload waits for its next piece, and then for being used."
    )
    lease_s: float = Field(30.0, gt=0, description="How long a claimed unit stays claimed without a sign of life.")
    renew_s: float = Field(6.0, gt=0, description="How often a running unit renews its lease.")
    reconcile_s: float = Field(5.0, gt=0, description="How often lost work is looked for.")
    resend_s: float = Field(15.0, gt=0, description="Age of a queued unit whose message counts as lost.")
    max_crashes: int = Field(2, ge=0, description="Crashes of a job's own process before it fails.")
    max_losses: int = Field(10, ge=0, description="Losses of infrastructure under a unit before it fails.")
    quota_bytes: int = Field(
        0,
        ge=0,
        description="Most bytes that one tenant may store, results and unpacked archives included; 0: no quota.",
    )
    quota_jobs: int = Field(0, ge=0, description="Most unfinished jobs that one tenant may have; 0: no quota.")
    quota_cpu_s: float = Field(
        0,
        ge=0,
        description="Most seconds of processor time that one tenant's work may take in the window; 0: no quota.",
    )
    quota_cpu_window_s: float = Field(86_400, ge=1, description="The window of quota_cpu_s.")
    max_job_memory_mb: int = Field(
        65_536, ge=256, description="Most memory, in MiB, that a job may ask for in limits.max_memory_mb."
    )
    max_job_runtime_s: int = Field(
        86_400, ge=5, description="Longest run, in seconds, that a job may ask for in limits.max_runtime_s."
    )
    max_job_measuring_s: float = Field(
        3600,
        ge=1,
        description="Most seconds of measuring that a job may ask for: measure_seconds and tune.max_seconds of all its targets. A"
        " machine that measures does nothing else.",
    )
    max_measuring_turn_s: float = Field(
        900,
        ge=5,
        description="Most seconds that a measurement may go on while another job waits for it; then its job fails.",
    )
    max_job_trials: int = Field(
        1000, ge=1, description="Most candidates that a search may ask for in budget.max_trials."
    )
    keep_jobs_days: float = Field(
        0,
        ge=0,
        description="How long finished jobs live, with their events, their report and the network that they made, unless"
        " something names it: an alias, a tag, another job, another network; 0: for ever.",
    )
    keep_events_days: float = Field(0, ge=0, description="How long the events of finished jobs live; 0: for ever.")
    keep_cache_days: float = Field(
        0, ge=0, description="How long a finished job's result answers the same work asked for again; 0: for ever."
    )
    keep_idempotency_hours: float = Field(
        24, ge=1, description="How long the same request under its Idempotency-Key gives the same answer."
    )
    keep_workers_days: float = Field(
        7, ge=1, description="How long a worker that is gone is remembered, and with it that its targets existed."
    )
    keep_stray_hours: float = Field(
        24,
        ge=1,
        description="How long bytes live that no row names: of uploads that died, of removals that had to wait.",
    )
    keep_deliveries_days: float = Field(
        30, ge=1, description="How long it is known what was sent to webhooks, and can be sent again."
    )
    audit_days: float = Field(365, ge=0, description="How long it is known who changed what; 0: for ever.")
    rate_per_s: float = Field(200.0, ge=0, description="Requests per second that one key may go on sending; 0: any.")
    rate_burst: int = Field(1000, ge=1, description="Requests that one key may send at once.")
    worker_targets: str = Field(
        "own",
        pattern="^[a-z]+(,[a-z]+)*$",
        description="Targets, by comma, that a worker takes jobs for where it has proven them; `all`: every one that it has"
        " proven; `own`: accelerators, and cpu where there is none.",
    )
    worker_training: Literal["auto", "never"] = Field(
        "auto",
        description="`auto`: a worker that has proven PyTorch takes jobs that train too, which may hold it for minutes; `never`:"
        " it leaves them to others.",
    )
    isolation: Literal["rlimits", "partial", "strict"] = Field(
        "rlimits",
        description="The least that the processes which touch networks must be confined; a worker that does not reach it takes"
        " no jobs. `strict`: only their job's files, no network, no programs, no other process; `partial`: some of that, which"
        " is all that a GPU's job can have; `rlimits`: limits alone. Each job says what it had.",
    )
    secret: SecretStr = Field(
        SecretStr(""),
        description="The service's own secret, which webhooks and download links are signed with: at least 32 letters. All API"
        " processes need the same one; by default what secret_file has.",
    )
    secret_file: Path | None = Field(
        None, description="A file with the secret; by default `secret.key` in data_dir, made at the first start."
    )
    link_max_hours: float = Field(168, gt=0, description="Longest life of a download link.")
    webhook_networks: str = Field(
        "",
        description="Networks by comma, such as `10.0.0.0/8,fd00::/8`, that webhooks may be in although they are not public, with"
        " `http://` too; by default only public addresses, with `https://`.",
    )
    webhook_ca_file: Path | None = Field(
        None, description="Certificates that sign the webhooks' servers'; by default the system's."
    )
    log_level: str = Field("INFO", description="Least level that is logged: DEBUG, INFO, WARNING or ERROR.")
    log_format: Literal["json", "text"] = Field("json", description="One JSON object per line, or lines for people.")

    @field_validator("trusted_proxies", "webhook_networks")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        for one in _parts(text):
            try:
                ipaddress.ip_network(one)
            except ValueError as error:
                raise ValueError(f"`{one}` is no address and no network: {error}") from None
        return text

    @property
    def proxies(self) -> list[str]:
        """The trusted proxies' addresses and networks."""
        return _parts(self.trusted_proxies)

    @property
    def database(self) -> str:
        """The database's URL, the embedded default filled in."""
        return self.database_url or f"sqlite:///{(self.data_dir / 'onnxpress.db').resolve()}"

    @property
    def signing_key(self) -> Path:
        """The signing key's file, the embedded default filled in."""
        return self.signing_key_file or self.data_dir / "signing.key"

    @property
    def broker(self) -> str:
        """The broker's URL, the embedded default filled in."""
        return self.broker_url or f"redis+socket://{(self.data_dir / 'broker' / 'valkey.sock').resolve()}"


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@cache
def get_settings() -> Settings:
    """Read the environment once."""
    return Settings()
