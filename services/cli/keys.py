"""`tokenworks keys`: tenants' keys on this machine."""

from typing import Annotated

import typer

from services.cli.options import JsonFlag
from services.cli.output import CommandFailed, command

app = typer.Typer(help="Tenants' keys: made here, checked by routers, stored as digests only.", no_args_is_help=True)


@app.command("create")
def create(
    tenant: Annotated[str, typer.Argument(help="Who the key is for.")],
    *,
    name: Annotated[str, typer.Option(help="What the key is for, to tell keys apart.")] = "",
    keep: Annotated[
        bool, typer.Option("--keep", help="Also keep it in client.toml for this machine's commands.")
    ] = False,
    direct_http: Annotated[
        bool,
        typer.Option(
            "--direct-http",
            help="Send this key's HTTP requests on (307) to the worker that makes the tokens; its clients must follow.",
        ),
    ] = False,
    team: Annotated[str, typer.Option(help="A team of the tenant, whose budgets its requests count for, too.")] = "",
    within: Annotated[
        str,
        typer.Option(
            help="Where its requests may be computed, beside what goes for its tenant, such as"
            " 'region=eu-1|eu-2;vendor=AMD;data=health'."
        ),
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Make a key and print it, this once."""
    with command(as_json) as output:
        from dataclasses import replace

        from services.cli.access import FILE_NAME, read_access, write_access
        from services.mesh.clock import SystemClock
        from services.mesh.keys import KeyStore
        from services.mesh.settings import load_settings

        settings = load_settings()
        try:
            store = KeyStore(settings.keys_file)
            key = store.create(tenant, name, SystemClock().unix_ms(), direct_http=direct_http, team=team, within=within)
        except ValueError as error:
            raise CommandFailed(str(error), reason="InvalidRequest") from error
        kept = settings.mesh.data_dir / FILE_NAME
        if keep:
            access = read_access(settings)
            write_access(kept, replace(access, keys={**access.keys, tenant: key}))
        output.result(
            {
                "tenant": tenant,
                "name": name,
                "key": key,
                "direct_http": direct_http,
                "team": team,
                "within": within,
                "keys_file": str(settings.keys_file),
                "kept": keep,
            },
            f"Key of tenant [bold]{tenant}[/]: [bold]{key}[/]",
            f"It is kept in {kept}." if keep else "It is shown this once; only its digest is stored.",
        )


@app.command("list")
def list_keys(*, as_json: JsonFlag = False) -> None:
    """Whose keys there are, and since when. Keys themselves are not stored."""
    with command(as_json) as output:
        from datetime import UTC, datetime

        from services.cli.report_view import table
        from services.mesh.keys import KeyStore
        from services.mesh.settings import load_settings

        settings = load_settings()
        made = table(f"Keys in {settings.keys_file}", "tenant", "name", "created", "HTTP", "within")
        rows = []
        for record in KeyStore(settings.keys_file).records():
            created = datetime.fromtimestamp(record.created_unix_ms / 1000, UTC).isoformat(timespec="seconds")
            made.add_row(
                record.tenant,
                record.name or "-",
                created,
                "direct" if record.direct_http else "relayed",
                record.within or "-",
            )
            rows.append(
                {
                    "tenant": record.tenant,
                    "name": record.name,
                    "created": created,
                    "direct_http": record.direct_http,
                    "within": record.within,
                }
            )
        empty = "There are no keys; make one with `tokenworks keys create TENANT`."
        output.result({"keys_file": str(settings.keys_file), "keys": rows}, made if rows else empty)
