"""`python -m services.worker.contract ENGINE [--settings JSON] [-- pytest's arguments]`: see the package."""

import argparse
import sys

import pytest


def main(arguments: list[str]) -> int:
    """Runs the contract against one engine; pytest's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m services.worker.contract",
        description="Holds an engine to the contract.",
        epilog="What follows -- goes to pytest.",
    )
    parser.add_argument("engine", help="an entry point in the group tokenworks.engines, or one of ours")
    parser.add_argument("--settings", default="{}", help="WorkerSettings that are not the default, as JSON")
    end = arguments.index("--") if "--" in arguments else len(arguments)
    asked = parser.parse_args(arguments[:end])
    return pytest.main([
        "--pyargs", "services.worker.contract.test_engine",
        "-p", "services.worker.contract.plugin",
        "-o", "asyncio_default_fixture_loop_scope=function",
        "--engine", asked.engine, "--engine-settings", asked.settings,
        *(arguments[end + 1 :] or ["-ra"]),
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
