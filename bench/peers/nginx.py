"""nginx as a plain relay, least connections: what relaying costs at least when nothing is known of models.

Taken from the path, or else from Debian's package, which is unpacked and not installed.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.datapath.subject import HttpBackend
from bench.peers.peer import ENVIRONMENTS, HttpPeer, NotInstalled, Started

_FOLDER: Final = ENVIRONMENTS / "nginx"
_UNPACKED: Final = _FOLDER / "usr" / "sbin" / "nginx"
_CONFIG: Final = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 16384; }}
worker_rlimit_nofile 20000;
http {{
  access_log off; tcp_nodelay on; keepalive_requests 1000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream models {{ least_conn; {servers} keepalive 4096; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://models; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""


def _program() -> Path | None:
    found = shutil.which("nginx")
    return Path(found) if found else _UNPACKED if _UNPACKED.exists() else None


def _install() -> str:
    if _program() is None:
        _FOLDER.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", "nginx"], cwd=_FOLDER, check=True, capture_output=True, text=True)
            (package,) = _FOLDER.glob("nginx_*.deb")
            subprocess.run(["dpkg-deb", "-x", str(package), str(_FOLDER)], check=True, capture_output=True, text=True)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise NotInstalled(f"no nginx on the path, and apt-get can't download it: {error}") from error
    program = _program()
    if program is None:
        raise NotInstalled(f"Debian's package has no {_UNPACKED}")
    told = subprocess.run([str(program), "-v"], check=False, capture_output=True, text=True).stderr
    version = re.search(r"nginx/(\S+)", told)
    if version is None:
        raise NotInstalled(f"{program} does not run here: {told.strip()}")
    return version[1]


def _run(port: int, backends: Sequence[HttpBackend], folder: Path) -> Started:
    servers = " ".join(f"server {each.address};" for each in backends)
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder.resolve(), port=port, servers=servers), encoding="utf-8")
    return Started([str(_program()), "-c", str(config.resolve()), "-e", str(folder.resolve() / "start.log")])


PEER: Final = HttpPeer("nginx", "least connections", _install, _run)
