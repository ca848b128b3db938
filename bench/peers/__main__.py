"""Ours beside the peers: `python -m bench.peers [--quick] [--fresh] [--peers nginx,smg,…] [--out peers]`.

In: this checkout, and a package index for what is not under `.bench/` yet. Out: `bench/results/<out>.json` and
`<out>.md`. What was measured within the last hours is kept, unless it has changed or `--fresh` (or `FRESH=1`) is given:
a run that was broken off goes on where it stopped.
"""

import argparse
import os
from collections.abc import Mapping
from typing import Any, Final

from bench.datapath.__main__ import say
from bench.datapath.measure import QUICK, Plan, measured
from bench.datapath.ours import SUBJECTS
from bench.datapath.processes import raise_open_files
from bench.datapath.report import comparison, tables
from bench.datapath.subject import NoRouter, Subject
from bench.peers import dynamo, litellm_proxy, nginx, sglang_router, smg, vllm_router
from bench.peers.peer import NotInstalled
from bench.record import RESULTS, hardware, write

PEERS: Final[Mapping[str, Subject]] = {
    "vllm": vllm_router.PEER,
    "sglang": sglang_router.PEER,
    "smg": smg.PEER,
    "dynamo": dynamo.PEER,
    "dynamo-migrating": dynamo.MIGRATING,
    "litellm": litellm_proxy.PEER,
    "nginx": nginx.PEER,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small loads, once: to see that it works")
    parser.add_argument("--fresh", action="store_true", default=os.environ.get("FRESH") == "1")
    parser.add_argument("--peers", default=",".join(PEERS), help="by commas; empty: ours alone")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", default="peers", help="name of the result")
    options = parser.parse_args()
    raise_open_files()
    plan = QUICK if options.quick else Plan(repetitions=options.repetitions)
    names = [each for each in options.peers.split(",") if each]
    if unknown := sorted(set(names) - set(PEERS)):
        parser.error(f"--peers {','.join(unknown)}: known are {','.join(PEERS)}")

    missing: dict[str, str] = {}
    subjects: list[dict[str, Any]] = []
    plain = measured(NoRouter(), plan, say, fresh=options.fresh)
    for subject in (*SUBJECTS, *[PEERS[name] for name in names]):
        try:
            subjects.append(measured(subject, plan, say, fresh=options.fresh))
        except (NotInstalled, RuntimeError) as why:
            say(f"{subject.name} was not measured: {why}")
            missing[subject.name] = str(why).splitlines()[0]
    figures = {"plan": repr(plan), "plain": plain, "subjects": subjects, "missing": missing}
    path = write(options.out, figures)
    table = tables(subjects, plain, missing)
    names_of_ours = {each.name for each in SUBJECTS}
    others = [each for each in subjects if each["name"] not in names_of_ours]
    ours = [each for each in subjects if each["name"] in names_of_ours and each.get("costs")]
    routers = [each for each in others if each["name"] != nginx.PEER.name]
    compared = [("other LLM routers", routers), (nginx.PEER.name, [each for each in others if each not in routers])]
    for whom, figures_of_them in compared:
        if compared_table := comparison(ours, figures_of_them):
            table += f"\nOurs over the lowest of {whom}; below 1, ours costs less:\n\n{compared_table}"
    machine = hardware()
    told = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}"
    text = f"Measured by `make bench-peers` on {told}.\n\n{table}"
    (RESULTS / f"{options.out}.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
