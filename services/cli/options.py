"""Options that several commands have, spelled once."""

from pathlib import Path
from typing import Annotated

import typer

_PEERS = "Addresses"
JsonFlag = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output; progress goes to standard error.")
]
RouterOption = Annotated[
    str,
    typer.Option("--router", envvar="TOKENWORKS_CLIENT_ROUTER", help="host:port of a router.", rich_help_panel=_PEERS),
]
KeyOption = Annotated[
    str,
    typer.Option("--key", envvar="TOKENWORKS_KEY", help="A tenant's key.", rich_help_panel=_PEERS, show_envvar=True),
]
TenantOption = Annotated[
    str,
    typer.Option("--tenant", help="Whose key to use, of those that `up` keeps in client.toml.", rich_help_panel=_PEERS),
]
DirectOption = Annotated[
    bool,
    typer.Option(
        "--direct/--relay",
        help="Stream from the workers, where they can be reached, or through the router.",
    ),
]
MeterOption = Annotated[
    str,
    typer.Option("--meter", envvar="TOKENWORKS_CLIENT_METER", help="host:port of the meter.", rich_help_panel=_PEERS),
]
OptimizerOption = Annotated[
    str,
    typer.Option(
        "--optimizer",
        envvar="TOKENWORKS_CLIENT_OPTIMIZER",
        help="host:port of the optimizer.",
        rich_help_panel=_PEERS,
    ),
]
NatsOption = Annotated[
    str, typer.Option("--nats", envvar="TOKENWORKS_CLIENT_NATS", help="nats://host:port.", rich_help_panel=_PEERS)
]
TraceArgument = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="Azure CSV, Mooncake JSON lines, or our own CSV.")
]
