"""The trace explorer beside the mesh: `tokenworks up --traces phoenix`.

In: the host, two ports, a directory. Out: the service to start, and the environment that sends every service's spans
to it. Phoenix (`arize-phoenix`) is an optional extra.
"""

import importlib.util
from pathlib import Path
from typing import Final

from services.cli.layout import ServiceSpec
from services.cli.output import CommandFailed

HTTP_PORT: Final = 6006
GRPC_PORT: Final = 4317
_MODULE: Final = "phoenix.server.main"


def phoenix(host: str, http_port: int, grpc_port: int, directory: Path) -> tuple[ServiceSpec, dict[str, str]]:
    """The explorer as a service, and what the others need in their environment.

    Raises:
        CommandFailed: the package is not installed.
    """
    if importlib.util.find_spec("phoenix") is None:
        raise CommandFailed(
            "--traces phoenix needs the package arize-phoenix (about 850 MB), which is not installed; use"
            " `make run TRACES=phoenix`, or `pip install 'tokenworks[phoenix]'`",
            reason="PhoenixMissing",
        )
    directory.mkdir(parents=True, exist_ok=True)
    spec = ServiceSpec(
        id="phoenix",
        kind="traces",
        module=(_MODULE, "serve"),
        environment={
            "PHOENIX_HOST": host,
            "PHOENIX_PORT": str(http_port),
            "PHOENIX_GRPC_PORT": str(grpc_port),
            "PHOENIX_WORKING_DIR": str(directory),
            "PHOENIX_TELEMETRY_ENABLED": "false",
            "OTEL_SDK_DISABLED": "true",  # it shows traces of the mesh, not its own
        },
        ready_at=f"{host}:{http_port}",
        ready_path="/",
        shown=f"traces at http://{host}:{http_port}",
    )
    sending = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{host}:{grpc_port}",
        "OTEL_EXPORTER_OTLP_INSECURE": "true",
        "OTEL_TRACES_EXPORTER": "otlp",
    }
    return spec, sending
