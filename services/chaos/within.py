"""Starts a module in a network namespace: `python -m services.chaos.within NAMESPACE MODULE [ARGUMENT …]`.

It becomes the module, as if that had been started by itself, with the far end of a cable for its network.
"""

import runpy
import sys

from services.chaos.cables import enter


def main() -> None:
    namespace, module = sys.argv[1:3]
    enter(namespace)
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
