"""Tenants' keys: made by the command line, checked by routers, stored as SHA-256 digests only.

A key is 32 random bytes, so a fast digest is enough: there is nothing to guess. The file is JSON, replaced in one step,
and read again when it changed: at once for a key that is not known, within a second for one that is.
"""

import hashlib
import json
import os
import secrets
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from services.mesh.confines import Confines
from services.mesh.errors import SettingInvalid

PREFIX: Final = "tw-"
_LOOK_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One key, without the key.

    Attributes:
        team: whose budget its requests count for beside the tenant's and the key's own; empty: of none.
        direct_http: its HTTP requests are sent on (307) to the worker that makes the tokens, where that is possible.
        within: where its requests may be computed beside what goes for its tenant, as `confines` writes it.
    """

    tenant: str
    name: str
    created_unix_ms: int
    direct_http: bool = False
    team: str = ""
    within: str = ""

    def __post_init__(self) -> None:
        Confines.parse(self.within)

    @property
    def confines(self) -> Confines:
        return Confines.parse(self.within)


def digest(key: str) -> str:
    # A header may hold any bytes, which aiohttp keeps as lone surrogates.
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


class KeyStore:
    """The keys in one file. A missing file is an empty store."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._records: dict[str, KeyRecord] = {}
        self._looked_s = float("-inf")  # when the file was looked at last for a key that is known

    def tenant_of(self, key: str) -> str | None:
        """The tenant whose key this is, or None."""
        record = self.record_of(key)
        return record.tenant if record else None

    def record_of(self, key: str) -> KeyRecord | None:
        """What is kept of this key, or None. A key that was taken out of the file is known a second longer."""
        record = self._records.get(digest(key))
        now_s = time.monotonic()
        if record is None or now_s - self._looked_s >= _LOOK_EVERY_S:
            self._refresh()
            self._looked_s = now_s
            record = self._records.get(digest(key))
        return record

    def tenants(self) -> set[str]:
        self._refresh()
        return {record.tenant for record in self._records.values()}

    def records(self) -> list[KeyRecord]:
        """Every key's record, oldest first."""
        self._refresh()
        return sorted(self._records.values(), key=lambda record: record.created_unix_ms)

    def create(
        self, tenant: str, name: str, unix_ms: int, *, direct_http: bool = False, team: str = "", within: str = ""
    ) -> str:
        """A new key for `tenant`, returned in clear this once.

        Raises:
            ValueError: `tenant` is empty or longer than 128 characters; `within` says nothing.
        """
        if not 1 <= len(tenant) <= 128:
            raise ValueError(f"tenant {tenant!r} must have 1 to 128 characters")
        self._refresh()
        key = PREFIX + secrets.token_urlsafe(32)
        self._records[digest(key)] = KeyRecord(tenant, name, unix_ms, direct_http, team, within)
        self._write()
        return key

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp == self._stamp:
            return
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))
            self._records = {hashed: KeyRecord(**row) for hashed, row in rows.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise SettingInvalid(f"keys file {self._path} is not readable: {error}; restore or remove it") from error
        self._stamp = stamp

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        rows = {hashed: asdict(each) for hashed, each in self._records.items()}
        handle, scratch = tempfile.mkstemp(dir=self._path.parent, prefix=".keys-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
        Path(scratch).replace(self._path)
