"""A unit's folder: what it reads goes in verified, what it leaves comes out checked."""

import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from services.artifacts import NewFile
from services.claims import Claim, Leaves
from services.storage import Store

_STEPS = "steps"
_FOLDERS = ("model", "data", _STEPS, "out", "tmp")
# Of whatever formats the child's version knows: it may be newer than this process while an upgrade is on.
_REPORT_FILE = re.compile(r"report\.[a-z][a-z.]{0,30}")
_REPORT = "report.json"
_MAX_REPORTS = 16
_MODEL_FILE = "model.onnx"
_REPORT_LIMIT = 64 << 20
_CHECKPOINT = re.compile(r"\d\d[\w.-]{0,60}")
# As the engine takes and writes them.
_OUTPUT = re.compile(r"\w[\w.:+=@,~-]{0,200}")
_MAX_OUTPUTS = 64
_MAX_UNPACKED = 2048
# Files that a step keeps in a folder of its own.
_MAX_KEPT = 256
# What units of one search prepare from its network, each the same: whoever comes next on this machine has it.
_CACHE = "cache"
_CACHED = frozenset({"search", "variants", "trial"})
_MAX_CACHED = 8
# By what a child leaves: the files that must be there, and how many may be.
_EXPECTED: dict[Leaves, tuple[set[str], int]] = {
    "unpacked": ({_MODEL_FILE}, _MAX_UNPACKED),
    "reports": ({_REPORT}, _MAX_REPORTS),
    "network": ({_REPORT, _MODEL_FILE}, _MAX_OUTPUTS),
    "candidate": ({_MODEL_FILE}, _MAX_OUTPUTS),
}
_WITHOUT_REPORTS: tuple[Leaves, ...] = ("unpacked", "candidate")
_CHUNK = 1 << 20

Beat = Callable[[], None]


class OutputInvalidError(Exception):
    """The child left something else than what was agreed."""


@dataclass(frozen=True)
class Outputs:
    """What a job's child left, copied into the store's `incoming/` but not placed yet."""

    model_files: tuple[NewFile, ...]
    report_files: tuple[NewFile, ...]


@dataclass(frozen=True)
class Workspace:
    """The folder of one attempt, below the unit's. A superseded attempt may still write into its own, and nobody reads that."""

    unit: Path
    path: Path
    # What this machine keeps for other units of the same search.
    kept: Path | None = None

    @classmethod
    def prepare(cls, root: Path, claim: Claim, store: Store, beat: Beat) -> "Workspace":
        """Make the attempt's folder with verified copies of its inputs and the checkpoints of earlier attempts here."""
        unit = root / claim.unit_id
        shares = claim.job_id is not None and claim.order.verb in _CACHED
        kept = root / str(claim.job_id) if shares else None
        workspace = cls(unit, unit / str(claim.attempt), kept)
        # A token is claimed once, so nobody else works in it.
        shutil.rmtree(workspace.path, ignore_errors=True)
        for name in _FOLDERS:
            (workspace.path / name).mkdir(mode=0o700, parents=True)
        for item in claim.inputs:
            target = workspace.path / item.path
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            store.materialise(claim.tenant_id, item.sha256, target, beat=beat)
        for name, declaration in claim.declarations.items():
            (workspace.path / name).mkdir(mode=0o700, exist_ok=True)
            (workspace.path / name / "dataset.json").write_text(json.dumps(declaration))
        workspace._take_checkpoints(claim.attempt, beat)
        if kept is not None and kept.is_dir():
            (workspace.path / _CACHE).mkdir(mode=0o700)
            _copy_all(kept, workspace.path / _CACHE, beat)
        return workspace

    def keep_cache(self, beat: Beat) -> None:
        """Keep what the child has prepared, once it has ended well, for other units of the same search on this machine.

        Nothing but that search reads it: what a network's child makes is not to be trusted with anything else.
        """
        if self.kept is None or self.kept.is_dir() or not (self.path / _CACHE).is_dir():
            return
        temporary = self.unit / _CACHE
        shutil.rmtree(temporary, ignore_errors=True)
        # Another unit may have been the first meanwhile; and where it cannot be kept it is prepared again.
        with suppress(OSError, ValueError):
            temporary.mkdir(mode=0o700)
            _copy_all(self.path / _CACHE, temporary, beat)
            temporary.rename(self.kept)

    def remove(self, *, whole_unit: bool) -> None:
        """Remove all of the unit's folder, or of the attempt's what a later one has no use for: all but its checkpoints."""
        if whole_unit:
            shutil.rmtree(self.unit, ignore_errors=True)
            return
        with suppress(OSError), os.scandir(self.path) as entries:
            for entry in entries:
                if entry.name == _STEPS:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    Path(entry.path).unlink(missing_ok=True)

    @contextmanager
    def outputs(self, store: Store, tenant_id: str, leaves: Leaves, limit: int, beat: Beat) -> Iterator[Outputs]:
        """Give what the child left, hashed and stored but not placed; what is not placed by then is removed at the end.

        `limit` is in bytes: of each file, and of all together that came out of an archive. Raises OutputInvalidError for
        links, pipes, devices, foreign names, sizes over the limit, or missing files.
        """
        if leaves == "nothing":
            yield Outputs((), ())
            return
        with ExitStack() as stack:
            out = _open_folder(self.path, "out")
            stack.callback(os.close, out)
            names = _names(out)
            expected, most = _EXPECTED[leaves]
            if not expected <= set(names) or len(names) > most:
                raise OutputInvalidError(f"unexpected outputs: {names[:_MAX_OUTPUTS]}")
            reports = set() if leaves in _WITHOUT_REPORTS else set(filter(_REPORT_FILE.fullmatch, names))
            if len(reports) > _MAX_REPORTS or (leaves == "reports" and reports != set(names)):
                raise OutputInvalidError(f"unexpected outputs: {names[:_MAX_OUTPUTS]}")
            files, left = [], limit
            for name in names:
                room = _REPORT_LIMIT if name in reports else left
                files.append(self._take(stack, out, name, store, tenant_id, room, beat))
                if leaves == "unpacked":
                    left -= files[-1].writer.finish().size
            yield Outputs(
                tuple(file for file in files if file.path not in reports),
                tuple(file for file in files if file.path in reports),
            )

    @staticmethod
    def _take(  # noqa: PLR0917 - one private call
        stack: ExitStack, out: int, name: str, store: Store, tenant_id: str, limit: int, beat: Beat
    ) -> NewFile:
        if _OUTPUT.fullmatch(name) is None:
            raise OutputInvalidError(f"unexpected output: {name!r}")
        try:
            descriptor = _open_output(out, name, limit=limit)
        except (OSError, ValueError) as error:
            raise OutputInvalidError(f"output {name}: {error}") from error
        writer = stack.enter_context(store.writer(tenant_id, limit=limit))
        with os.fdopen(descriptor, "rb") as file:
            while chunk := file.read(_CHUNK):
                writer.write(chunk)
                beat()
        writer.finish()
        return NewFile(name, writer)

    def _take_checkpoints(self, attempt: int, beat: Beat) -> None:
        earlier = [self.unit / str(number) for number in range(attempt - 1, 0, -1)]
        found = [path for path in earlier if path.is_dir()]
        if found:
            self._copy_checkpoints(found[0], beat)
        for path in found:
            shutil.rmtree(path, ignore_errors=True)

    def _copy_checkpoints(self, earlier: Path, beat: Beat) -> None:
        """Copy plain files only: what the earlier child made of its folder is not to be trusted."""
        try:
            steps = _open_folder(earlier, "steps")
        except OutputInvalidError:
            return
        try:
            # The description of a step comes last: without it the other files of the step count for nothing.
            for name in sorted(_names(steps), key=lambda name: (name.endswith(".json"), name)):
                if _CHECKPOINT.fullmatch(name) is not None:
                    _copy_checkpoint(steps, name, self.path / "steps" / name, beat)
        finally:
            os.close(steps)


def _open_folder(parent: Path, name: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(parent / name, flags)
    except OSError as error:
        raise OutputInvalidError(f"{name} is not a folder") from error


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)


def _copy_checkpoint(steps: int, name: str, target: Path, beat: Beat) -> None:
    """Copy a file, or a folder of files: what a step keeps for itself until it is finished."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=steps, follow_symlinks=False).st_mode):
        _copy_plain(steps, name, target, beat)
        return
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=steps)
    try:
        target.mkdir(mode=0o700)
        for inner in _names(folder)[:_MAX_KEPT]:
            if _OUTPUT.fullmatch(inner) is not None:
                _copy_plain(folder, inner, target / inner, beat)
    finally:
        os.close(folder)


def _copy_all(source: Path, target: Path, beat: Beat) -> None:
    """Copy the plain files of a folder that an untrusted process may have made."""
    folder = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for name in _names(folder)[:_MAX_CACHED]:
            if _OUTPUT.fullmatch(name) is not None:
                _copy_plain(folder, name, target / name, beat)
    finally:
        os.close(folder)


def _copy_plain(folder: int, name: str, target: Path, beat: Beat) -> None:
    seen = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISREG(seen.st_mode):
        return
    with os.fdopen(_open_output(folder, name, limit=seen.st_size), "rb") as source, target.open("xb") as copy:
        while chunk := source.read(_CHUNK):
            copy.write(chunk)
            beat()


def _open_output(folder_fd: int, name: str, *, limit: int) -> int:
    """Open a file that an untrusted process left, by its plain name in an open folder; gives the descriptor.

    Raises ValueError unless it is a regular file with one name and within the limit: no link, no pipe, no device.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder_fd)
    seen = os.fstat(descriptor)
    if not stat.S_ISREG(seen.st_mode) or seen.st_nlink != 1 or seen.st_size > limit:
        os.close(descriptor)
        raise ValueError("an output must be a regular file within its size limit")
    return descriptor
