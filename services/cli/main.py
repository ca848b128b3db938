"""`tokenworks`: the command line's entry. One module per command; heavy imports stand inside the commands."""

from typing import Annotated

import typer

from services.cli import (
    anomalies,
    budget,
    chaos,
    doctor,
    drain,
    explain,
    export,
    fleet_bill,
    forecast,
    generate,
    invoice,
    keys,
    plan,
    prices,
    promises,
    rebuild,
    replay,
    replay_log,
    rerate,
    runaway,
    simulate,
    top,
    up,
    usage,
)
from tokenworks import __version__

app = typer.Typer(
    name="tokenworks",
    help="An open AI token factory: tokens metered once, priced, and placed where they cost least.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up")(up.up)
app.command("generate")(generate.generate)
app.command("replay")(replay.replay)
app.command("replay-log")(replay_log.replay_log)
app.command("simulate")(simulate.simulate)
app.command("compare")(simulate.compare)
app.command("usage")(usage.usage)
app.command("forecast")(forecast.forecast)
app.command("anomalies")(anomalies.anomalies)
app.command("promises")(promises.promises)
app.command("bill")(fleet_bill.bill)
app.command("rerate")(rerate.rerate)
app.command("invoice")(invoice.invoice)
app.command("plan")(plan.plan)
app.command("explain")(explain.explain)
app.command("top")(top.top)
app.command("budget")(budget.budget)
app.command("runaway")(runaway.runaway)
app.command("drain")(drain.drain)
app.command("rebuild")(rebuild.rebuild)
app.command("chaos")(chaos.chaos)
app.command("doctor")(doctor.doctor)
app.add_typer(keys.app, name="keys")
app.add_typer(prices.app, name="prices")
app.add_typer(export.app, name="export")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tokenworks {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Only so that the program itself has `--version`."""


def main() -> None:
    app()


if __name__ == "__main__":
    main()
