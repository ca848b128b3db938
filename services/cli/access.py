"""How the command line reaches a mesh: addresses, keys and the mesh's secret.

Each comes from the command's option or its environment variable (`TOKENWORKS_CLIENT_<NAME>`, `TOKENWORKS_KEY`); else
from `<data_dir>/client.toml`, which `tokenworks up` writes, readable by its owner only; else from the settings'
defaults. The file holds tenants' keys in clear: it is the client's purse, while `keys.json` holds only digests.
"""

import json
import os
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from services.cli.output import CommandFailed
from services.mesh.settings import Settings, load_settings

FILE_NAME: Final = "client.toml"
DEFAULT_TENANT: Final = "local"
_ENVIRONMENT: Final = "TOKENWORKS_CLIENT_"
_ADDRESSES: Final = ("router", "meter", "optimizer", "nats", "secret", "traces", "store")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where the services are, as `host:port`.

    Attributes:
        nats: URL.
        secret: what operators show to meter and optimizer; empty where the mesh has none.
        traces: the OTLP endpoint that the mesh's spans go to; empty where they go nowhere.
        store: URL of the meter's database, where it is not the file in the data directory.
        keys: tenant -> key.
        http: service id -> host:port of its `/readyz` and `/metrics`.
    """

    router: str
    meter: str
    optimizer: str
    nats: str
    secret: str = ""
    traces: str = ""
    store: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)
    http: Mapping[str, str] = field(default_factory=dict)

    def key(self, given: str, tenant: str) -> str:
        """The key to use: the one given, else the one kept for `tenant`.

        Raises:
            CommandFailed: neither is there.
        """
        if given:
            return given
        if tenant in self.keys:
            return self.keys[tenant]
        known = ", ".join(sorted(self.keys)) or "none"
        raise CommandFailed(
            f"no key for tenant {tenant!r} (kept here: {known}); give --key or TOKENWORKS_KEY, or make one with"
            f" `tokenworks keys create {tenant} --keep`",
            reason="NoKey",
        )


def _defaults(settings: Settings) -> Access:
    host = settings.advertise_host
    return Access(
        router=f"{host}:{settings.router.port}",
        meter=f"{host}:{settings.meter.port}",
        optimizer=f"{host}:{settings.optimizer.port}",
        nats=settings.nats.url or f"nats://{host}:{settings.nats.port}",
        secret=settings.mesh.secret,
        store=settings.meter.database_url,
        http={
            settings.router.id: f"{host}:{settings.router.http_port}",
            settings.meter.id: f"{host}:{settings.meter.http_port}",
            settings.optimizer.id: f"{host}:{settings.optimizer.http_port}",
        },
    )


def read_access(settings: Settings | None = None, **given: str) -> Access:
    """The access of this command.

    Args:
        given: what the command line said: router, meter, optimizer, nats, traces; empty where it said nothing.

    Raises:
        SettingInvalid: the settings are bad.
        CommandFailed: client.toml cannot be read.
    """
    settings = settings or load_settings()
    access = _defaults(settings)
    path = settings.mesh.data_dir / FILE_NAME
    if path.exists():
        try:
            rows = tomllib.loads(path.read_text(encoding="utf-8"))
            access = replace(access, **rows)
        except (OSError, ValueError, TypeError) as error:
            raise CommandFailed(
                f"{path} cannot be read: {error}; remove it, `tokenworks up` writes it again", reason="AccessInvalid"
            ) from error
    said: dict[str, Any] = {
        name: given.get(name) or os.environ.get(_ENVIRONMENT + name.upper(), "") for name in _ADDRESSES
    }
    return replace(access, **{name: value for name, value in said.items() if value})


def write_access(path: Path, access: Access) -> None:
    """Replaces client.toml in one step; only its owner can read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["# Written by `tokenworks up`: where the mesh is, and its tenants' keys in clear. Keep it to yourself."]
    lines.extend(f"{name} = {json.dumps(getattr(access, name))}" for name in _ADDRESSES)
    for name, table in (("keys", access.keys), ("http", access.http)):
        lines.append(f"\n[{name}]")
        lines.extend(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in table.items())
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=".client-")  # mode 0600
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    Path(scratch).replace(path)
