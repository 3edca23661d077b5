"""What operators do, each as a verb of `onnxpress-server`: it says what it did, and gives an exit code."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from services import backup as backups
from services import db, keys, quotas, retention, tenants
from services.errors import NotFoundError
from services.storage import open_store
from settings import Settings
from settings.private_folder import private_folder
from standalone.sbom import installation
from standalone.serve import lock


def migrate(asked: argparse.Namespace) -> int:
    """Bring the database to this version's revision."""
    settings = _settings(asked)
    private_folder(settings.data_dir)
    with _opened(settings, is_new=True) as database:
        before = db.revision(database)
        db.upgrade_database(database)
        after = db.revision(database)
    was = "from nothing" if before.found is None else f"from {before.found}"
    print(f"revision {after.found}" + (", as before" if before.found == after.found else f" ({was})"))
    return 0


def backup(asked: argparse.Namespace) -> int:
    """Make a backup; 1 where stored bytes were damaged or missing: everything else is in it."""
    settings = _settings(asked)
    with _opened(settings) as database:
        # Where the database is elsewhere there may be none on this machine yet.
        private_folder(settings.data_dir)
        made = backups.take(database, open_store(settings), asked.path, scratch=settings.data_dir)
    for damage in made.damaged:
        print(f"damaged: blob {damage.sha256} of tenant {damage.tenant_id}: {damage.reason}", file=sys.stderr)
    print(f"{asked.path}: {made.kind} at revision {made.revision}, {len(made.blobs)} blobs, {made.size} bytes")
    if made.damaged:
        print("Upload the damaged files again, or delete what names them, then back up again.", file=sys.stderr)
    return 1 if made.damaged else 0


def restore(asked: argparse.Namespace) -> int:
    """Put a backup into an empty database and store."""
    settings = _settings(asked)
    private_folder(settings.data_dir)
    with lock(settings.data_dir), _opened(settings, is_new=True) as database:
        store = open_store(settings)
        found = backups.restore(database, store, asked.path, incomplete=asked.incomplete, scratch=settings.data_dir)
    print(f"restored {len(found.blobs) - len(found.damaged)} blobs, {found.size} bytes, each with its digest checked")
    print(f"the database is as it was at {found.created_at}; jobs that ran then will run again")
    return 0


def prune(asked: argparse.Namespace) -> int:
    """Apply what the settings say of retention, now and to the end, or only say what that would remove."""
    settings = _settings(asked)
    with _opened(settings) as database:
        place = retention.Place(database, open_store(settings), settings.data_dir)
        found = retention.count(place, settings) if asked.dry_run else retention.apply(place, settings)
    for name, number in found.items():
        print(f"{number:8} {name} {'would be ' if asked.dry_run else ''}removed")
    return 0


def doctor(asked: argparse.Namespace) -> int:
    """Look at every part of the service from this machine; 1 where something is a problem."""
    # Only this verb knows broker and workers.
    from standalone.doctor import as_json, as_text, examine  # noqa: PLC0415

    findings = examine(_settings(asked))
    if asked.json:
        print(as_json(findings))
    else:
        print("\n".join(as_text(findings)))
    return int(any(one.state == "problem" for one in findings))


def sbom(asked: argparse.Namespace) -> int:
    """Write down what this installation is made of."""
    text = json.dumps(installation(), indent=1)
    if asked.out is None:
        print(text)
    else:
        asked.out.write_text(f"{text}\n")
    return 0


def selftest(asked: argparse.Namespace) -> int:
    """Try this installation out in a folder that is thrown away; 1 where something was not as it should be."""
    # Only this verb makes networks.
    from standalone.selftest import run  # noqa: PLC0415

    return run(faults=asked.faults)


def create_key(asked: argparse.Namespace) -> int:
    """Make an API key, and a tenant where there is none of that id yet; its text is printed once."""
    expires_at = datetime.now(UTC) + timedelta(days=asked.days) if asked.days else None
    with _opened(_settings(asked)) as database, database.transaction() as session:
        keys.ensure_tenant(session, asked.tenant)
        made = keys.create(session, asked.tenant, asked.name, tuple(asked.scope), expires_at)
    print(made.text)
    return 0


def list_keys(asked: argparse.Namespace) -> int:
    """Print a tenant's keys, without their text: that is stored nowhere."""
    with _opened(_settings(asked)) as database, database.reading() as session:
        for key in keys.list_keys(session, asked.tenant):
            ends = "revoked" if key.revoked_at else f"until {key.expires_at:%Y-%m-%d}" if key.expires_at else "valid"
            print(f"{key.id}  {ends:16}  {','.join(key.scopes):24}  {key.name}")
    return 0


def revoke_key(asked: argparse.Namespace) -> int:
    """End a key's validity at once."""
    with _opened(_settings(asked)) as database, database.transaction() as session:
        print(f"{keys.revoke(session, asked.tenant, asked.id).id} is revoked")
    return 0


def create_tenant(asked: argparse.Namespace) -> int:
    """Make a tenant; 1 where there is one of that id."""
    with _opened(_settings(asked)) as database, database.transaction() as session:
        print(tenants.create(session, asked.id, name=asked.name, limits=_limits(asked)).id)
    return 0


def set_tenant(asked: argparse.Namespace) -> int:
    """Change what is named of a tenant."""
    with _opened(_settings(asked)) as database, database.transaction() as session:
        tenants.change(session, asked.id, name=asked.name, limits=_limits(asked), suspended=asked.suspended)
    return show_tenant(asked)


def list_tenants(asked: argparse.Namespace) -> int:
    """Print every tenant with the limits of its own."""
    with _opened(_settings(asked)) as database, database.reading() as session:
        for tenant in tenants.list_tenants(session):
            own = [f"{name}={getattr(tenant, name):g}" for name in tenants.LIMITS if getattr(tenant, name) is not None]
            print("  ".join([f"{tenant.id:24}", *(["suspended"] if tenant.suspended_at else []), *own]).rstrip())
    return 0


def show_tenant(asked: argparse.Namespace) -> int:
    """Print what a tenant may have, and what it has of it."""
    settings = _settings(asked)
    with _opened(settings) as database, database.reading() as session:
        tenant = tenants.get(session, asked.id)
        quota, used = quotas.quotas_of(tenant, settings), quotas.usage(session, tenant.id, settings)
    print(
        f"{tenant.id} ({tenant.name})"
        + (f", suspended since {tenant.suspended_at:%F %T}" if tenant.suspended_at else "")
    )
    amounts = (("bytes", used.bytes, quota.bytes), ("jobs", used.jobs, quota.jobs), ("cpu_s", used.cpu_s, quota.cpu_s))
    for name, has, most in amounts:
        print(f"  {name:12} {has:15,.0f} of {format(most, ',.0f') if most else 'any'}")
    rate = f"{tenant.rate_per_s:g} per second" if tenant.rate_per_s else "that of each key"
    print(f"  {'requests':12} {rate:>15}")
    return 0


def _limits(asked: argparse.Namespace) -> tenants.OwnLimits:
    """Give the limits that were named; `default` is None: the service's."""
    told = {name: getattr(asked, name) for name in tenants.LIMITS}
    return {name: None if value == "default" else value for name, value in told.items() if value is not None}


def _settings(asked: argparse.Namespace) -> Settings:
    return Settings(data_dir=asked.data)


@contextmanager
def _opened(settings: Settings, *, is_new: bool = False) -> Iterator[db.Database]:
    database = db.Database.from_settings(settings)
    file = Path(database.url.database or "")
    if database.is_sqlite and not is_new and not file.is_file():
        # To open it would make it.
        raise NotFoundError(f"There is no database {file}; name its folder with --data, or set ONNXPRESS_DATABASE_URL.")
    try:
        yield database
    finally:
        database.dispose()
