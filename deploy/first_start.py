"""Makes what a mesh needs before its first start; a later run finds it and changes nothing.

In: CONFIG_DIR (default /etc/tokenworks), a folder that every service of the mesh can read. Out, in it:
`tokenworks.toml` with the secret that the services share, `keys.json` with the digest of a key for tenant `local`, and
`local.key` with that key in clear, for whoever runs the mesh to fetch.
"""

import os
import secrets
import time
from pathlib import Path

from services.mesh.keys import KeyStore


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner reads, in one step: one that is there is whole."""
    scratch = path.with_suffix(".new")
    scratch.touch(mode=0o600)
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def main() -> None:
    folder = Path(os.environ.get("CONFIG_DIR", "/etc/tokenworks"))
    settings, key = folder / "tokenworks.toml", folder / "local.key"
    if not settings.exists():
        write_private(settings, f'[mesh]\nsecret = "{secrets.token_urlsafe(32)}"\n')
        print(f"made the mesh's secret in {settings}")
    if not key.exists():
        made = KeyStore(folder / "keys.json").create("local", "first start", time.time_ns() // 1_000_000)
        write_private(key, made + "\n")
        print(f"made a key for tenant local in {key}")


if __name__ == "__main__":
    main()
