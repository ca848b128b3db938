"""The data directory of a mesh on this machine: one `tokenworks up` at a time, its shared secret, its tenants' keys.

mesh.secret    made at the first start, 0600; services show it to each other
keys.json      digests of tenants' keys
client.toml    addresses, and this machine's keys in clear, 0600
logs/          one file per service
nats/          the streams        meter.db  the books
"""

import fcntl
import os
import secrets
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.cli.access import FILE_NAME
from services.cli.output import CommandFailed
from services.mesh.clock import Clock
from services.mesh.keys import KeyStore


@dataclass(frozen=True, slots=True)
class TenantKeys:
    """tenant -> key; `made` are those made just now."""

    keys: dict[str, str]
    made: tuple[str, ...]


class DataDir:
    """`path` is absolute; it is made when missing. Raises CommandFailed: it cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandFailed(
                f"data directory {self.path} cannot be made: {error.strerror}; set TOKENWORKS_MESH_DATA_DIR to a"
                " directory that this user can write",
                reason="DataDirInvalid",
            ) from error

    @property
    def client_file(self) -> Path:
        return self.path / FILE_NAME

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the directory for this process. Raises CommandFailed: another mesh runs in it."""
        with (self.path / "up.lock").open("a+", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                raise CommandFailed(
                    f"a mesh runs in {self.path} already (process {holder}); stop it with Ctrl-C there, or set"
                    " TOKENWORKS_MESH_DATA_DIR to another directory",
                    reason="AlreadyRunning",
                ) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield

    def secret(self) -> str:
        """The mesh's shared secret, made at the first call."""
        path = self.path / "mesh.secret"
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return path.read_text(encoding="ascii").strip()
        made = secrets.token_urlsafe(32)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(made + "\n")
        return made

    def tenant_keys(self, store: KeyStore, tenants: Sequence[str], clock: Clock) -> TenantKeys:
        """A valid key for each tenant: the one kept in client.toml, or a new one; others kept there stay."""
        keys = {tenant: key for tenant, key in self._kept().items() if store.tenant_of(key) == tenant}
        made = tuple(tenant for tenant in tenants if tenant not in keys)
        for tenant in made:
            keys[tenant] = store.create(tenant, "made by tokenworks up", clock.unix_ms())
        return TenantKeys(keys, made)

    def _kept(self) -> dict[str, str]:
        try:
            rows: dict[str, Any] = tomllib.loads(self.client_file.read_text(encoding="utf-8"))
            return {str(tenant): str(key) for tenant, key in rows.get("keys", {}).items()}
        except (FileNotFoundError, ValueError, AttributeError):
            return {}  # without it, keys are made anew
