import ast
import re
from pathlib import Path

import pytest

import services

ROOT = Path(services.__file__).parent.parent
LEVELS = ("tokenworks", "mesh", "service", "twin", "cli")


def named_files():
    return re.findall(r"\b((?:services|tokenworks)/[a-z0-9_/]+\.[a-z]+)", services.__doc__)


@pytest.mark.parametrize("name", named_files())
def test_every_file_of_the_map_is_there(name):
    assert (ROOT / name).is_file()


def house_of(module):
    parts = module.split(".")
    return parts[0] if parts[0] == "tokenworks" else parts[1] if parts[0] == "services" and len(parts) > 1 else ""


def level(house):
    return LEVELS.index(house if house in LEVELS else "service")


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_imports_only_go_down_and_no_service_imports_another():
    wrong = []
    for package in ("tokenworks", "services"):
        for path in (ROOT / package).rglob("*.py"):
            ours = house_of(".".join(path.relative_to(ROOT).parts))
            for module in imports_of(path):
                theirs = house_of(module)
                if theirs and theirs != ours and level(theirs) >= level(ours):
                    wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


def test_the_package_nats_alone_imports_nats():
    importing = {
        path.relative_to(ROOT).parent.as_posix()
        for package in ("tokenworks", "services")
        for path in (ROOT / package).rglob("*.py")
        if any(module.split(".")[0] == "nats" for module in imports_of(path))
    }
    assert importing == {"services/mesh/nats"}
