"""The folder of one process, and how to tell whether that process still lives.

A process owns one folder below the journal's root and holds an exclusive ``flock`` on a file in
it for as long as it lives; the kernel lets go of the lock when the last copy of the descriptor is
gone, however the process ended. Whoever can take the lock of somebody else's folder therefore
knows that its owner is dead, and owns the folder from then on.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from ..errors import JournalError

__all__ = [
    "EXPORTER",
    "FORMAT",
    "Owner",
    "OwnerInfo",
    "holds",
    "is_alive",
    "network_file_system",
    "owner_folders",
    "read_info",
    "stores",
    "takes",
]

# As the kernel names them in its table of mounts.
_NETWORK_FILE_SYSTEMS = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "afs"),
        *("9p", "virtiofs", "glusterfs", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse"),
        *("fuse.glusterfs", "fuse.juicefs", "fuse.mount-s3", "fuse.goofys"),
    }
)


FORMAT = 1
"""Of the folders this version writes and reads."""

EXPORTER = "exporter-"
"""How the names of sinks begin that hand spans to a program's exporter."""


# What goes to each sink that is no store of everything.
_TAKEN = {
    "kestrel": frozenset({"registrations"}),
    "langfuse": frozenset({"spans", "traces", "scores"}),
    "otlp": frozenset({"spans", "traces"}),
}
_COPIES = frozenset({"langfuse", "otlp"})


def takes(sink: str, table: str) -> bool:
    """Whether a sink that an owner names takes the rows of ``table``. One that is not known here
    is taken for a store of everything but registrations, which are for Kestrel alone."""
    taken = _TAKEN["otlp"] if sink.startswith(EXPORTER) else _TAKEN.get(sink)
    return table != "registrations" if taken is None else table in taken


def stores(sink: str, table: str) -> bool:
    """Whether rows of ``table`` may leave the journal once ``sink`` has them. Langfuse, OTLP
    backends and exporters get copies, which no command of Caribou reads."""
    copies = sink in _COPIES or sink.startswith(EXPORTER)
    return not copies and takes(sink, table)


def holds(sink: str) -> bool:
    """Whether what was traced is somewhere once ``sink`` has acknowledged it. What an exporter does
    with spans nobody knows: many only print them."""
    return takes(sink, "spans") and not sink.startswith(EXPORTER)


class OwnerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What ``owner.json`` says. ``sinks`` maps a sink's name to its target."""

    format: int = FORMAT
    host: str
    boot_id: str
    pid: int
    started: float
    sinks: dict[str, str]

    @property
    def local(self) -> bool:
        """Whether its segments are the local store: no sink stores what was traced."""
        return not any(stores(sink, "spans") for sink in self.sinks)


def host_name() -> str:
    """This machine's name, made safe for a file name."""
    return re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())[:64] or "localhost"


def boot_id() -> str:
    """A string that differs between two boots of one machine; empty where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def network_file_system(path: Path) -> str | None:
    """The type of the network file system that ``path`` is on; None on a local one, or unknown."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in mounts:
        fields = line.split(" ")
        # Spaces in mount points are written as octal escapes.
        point = fields[1].replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind if kind in _NETWORK_FILE_SYSTEMS else None


def owner_folders(root: Path) -> Iterator[Path]:
    """The folders of all owners below ``root``, dead or alive, in the order of their names."""
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    except OSError:
        return
    for name in names:
        # Not Path.exists(), which raises where the folder is another user's.
        if not name.startswith(".") and os.path.exists(root / name / "lock"):
            yield root / name


class Owner:
    """A folder this process holds the lock of: its own, or one adopted from a dead process."""

    def __init__(self, folder: Path, lock: int, info: OwnerInfo) -> None:
        self.folder = folder
        self.info = info
        self._lock = lock

    @property
    def name(self) -> str:
        """The folder's name, unique over hosts and boots."""
        return self.folder.name

    @classmethod
    def create(cls, root: Path, sinks: Mapping[str, str]) -> Owner:
        """Make this process's folder below ``root``.

        It is locked and described under a hidden name before it gets its own, so nobody can see
        it, take its lock and believe it dead.

        Raises:
            OSError: the folder cannot be made.
        """
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{host_name()}-{os.getpid()}-{os.urandom(4).hex()}"
        hidden, folder = root / f".{name}", root / name
        hidden.mkdir(mode=0o700)
        try:
            lock = os.open(hidden / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            hidden.rmdir()
            raise
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            info = OwnerInfo(
                host=host_name(),
                boot_id=boot_id(),
                pid=os.getpid(),
                started=time.time(),
                sinks=dict(sinks),
            )
            (hidden / "owner.json").write_bytes(msgspec.json.encode(info))
            (hidden / "owner.json").chmod(0o600)
            hidden.rename(folder)
        except OSError:
            os.close(lock)
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        return cls(folder, lock, info)

    @classmethod
    def adopt(cls, folder: Path) -> Owner | None:
        """Take over a dead owner's folder; None when it is alive, gone, or cannot be judged.

        On a network file system a lock may not reach other hosts, so there only folders of this
        very host are taken.
        """
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The folder may have been finished with and removed while its lock was being opened.
            same = os.stat(folder / "lock").st_ino == os.fstat(lock).st_ino
            info = read_info(folder)
            if same and (info.host == host_name() or network_file_system(folder) is None):
                return cls(folder, lock, info)
        except (OSError, JournalError):
            pass
        os.close(lock)
        return None

    def release(self) -> None:
        """Let go of the lock; the folder stays for whoever adopts it next."""
        os.close(self._lock)

    def remove(self) -> None:
        """Delete the folder and let go of the lock."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def read_info(folder: Path) -> OwnerInfo:
    """What the owner said of itself.

    Raises:
        JournalError: ``owner.json`` is missing or not readable as such.
    """
    try:
        return msgspec.json.decode((folder / "owner.json").read_bytes(), type=OwnerInfo)
    except (OSError, msgspec.DecodeError) as error:
        raise JournalError(f"{folder / 'owner.json'} cannot be read: {error}") from error


def is_alive(folder: Path) -> bool:
    """Whether the owner of ``folder`` still holds its lock. The lock is not kept."""
    try:
        lock = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False
