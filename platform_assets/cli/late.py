"""The commands for late and corrected data: restatements, restate, impact."""

from typing import Annotated, Any

import typer

from platform_assets.cli.app import AsJson, PipelineName, app, pipeline_of
from platform_assets.domain.errors import UsageError
from platform_assets.domain.spec import PipelineSpec
from platform_assets.line.services import Services
from platform_assets.terminal import print_json
from resources.catalog import load_catalog


@app.command()
def restatements(
    pipeline: PipelineName = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Partitions whose hours changed after they were used: what they touch, and what to do."""
    from platform_assets.line.late import described

    specs = [pipeline_of(pipeline)] if pipeline else list(load_catalog().values())
    found = {}
    for spec in specs:
        services = Services.open(spec)
        records = services.restatements.all(spec.pipeline, only_open=not every)
        found[spec.pipeline] = [described(services, record) for record in records]
    if as_json:
        print_json({"pipelines": found})
        return
    for name, documents in found.items():
        if not documents:
            print(f"{name}: no restatement is {'there' if every else 'open'}")
        for document in documents:
            _print(document)


def _print(document: dict[str, Any]) -> None:
    print(f"{document['partition']}: {document['state']}, {document['changed']}")
    print(f"  {document['decision']}: {document['reason']}")
    print(f"  hours {document['used_version'][:12]} -> {document['now_version'][:12]}")
    print(f"  touches {_touched(document['touches'])}")
    for word in ("progress", "outcome", "to_do"):
        if document.get(word):
            print(f"  {word.replace('_', ' ')}: {document[word]}")


def _touched(touches: dict[str, Any]) -> str:
    models = [f"{model['date']} version {model['version']}" for model in touches.get("models", ())]
    champion = touches.get("champion")
    parts = {
        "snapshots": touches.get("snapshots", ()),
        "models": models,
        "evaluations": touches.get("evaluations", ()),
        "champion": [f"version {champion['version']}"] if champion else (),
    }
    return "; ".join(f"{name} {', '.join(found) or 'none'}" for name, found in parts.items())


@app.command()
def restate(
    partition: Annotated[
        list[str] | None, typer.Argument(help="JFK|2013-01-05; several are allowed.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that wait for a person.")] = False,
    by: Annotated[str, typer.Option("--by", help="Who lets them go.")] = "",
    no_retrain: Annotated[
        bool, typer.Option("--no-retrain", help="Build features anew, and leave models alone.")
    ] = False,
    pipeline: PipelineName = None,
    as_json: AsJson = False,
) -> None:
    """Let listed restatements go; the sensor of late data launches them within a minute."""
    from platform_assets.line.late import described, may_go

    if not by.strip():
        raise UsageError("nobody lets them go; say who does with --by NAME")
    if bool(partition) == every:
        raise UsageError("name partitions such as 'JFK|2013-01-05', or give --all, one of the two")
    spec = pipeline_of(pipeline)
    services = Services.open(spec)
    records = services.restatements.all(spec.pipeline, only_open=True)
    waiting = [record.partition for record in records if not may_go(record)]
    wanted = waiting if every else [_key(services, text) for text in partition or ()]
    unknown = sorted(set(wanted) - {record.partition for record in records})
    if unknown:
        raise UsageError(
            f"{', '.join(unknown)}: no restatement is open; open are "
            f"{', '.join(r.partition for r in records) or 'none'}, see `signalbox restatements`"
        )
    approved = services.restatements.approve(
        spec.pipeline, sorted(set(wanted)), by.strip(), retrain=not no_retrain
    )
    now = services.restatements.all(spec.pipeline, only_open=True)
    documents = [described(services, record) for record in now if record.partition in approved]
    sensor = f"{spec.pipeline}_late_data"
    if as_json:
        print_json({"approved": approved, "sensor": sensor, "restatements": documents})
        return
    if not approved:
        print("no restatement waits for a person")
        return
    print(
        f"{', '.join(approved)}: let go by {by.strip()}; while `signalbox dev` runs, the sensor "
        f"{sensor} launches them within a minute, one at a time in the lane late"
    )
    for document in documents:
        if document["hours"] and document["reason"].startswith("it is held"):
            print(f"{document['partition']}: {document['reason']}; it goes as soon as it is clear")


def _key(services: Services, text: str) -> str:
    return str(services.partition(text, keyed=True))


@app.command()
def impact(
    asset: Annotated[str, typer.Argument(help="An asset, flights/features.")],
    partition: Annotated[str, typer.Argument(help="JFK|2013-01-05, or 2013-01-05 of a day.")],
    pipeline: PipelineName = None,
    as_json: AsJson = False,
) -> None:
    """Which snapshots, models, evaluations and champion read a partition, and in which version."""
    from platform_assets.line.impact import read_impact

    spec: PipelineSpec = pipeline_of(pipeline, asset)
    document = read_impact(Services.open(spec), asset, partition)
    if as_json:
        print_json(document)
        return
    print(f"{document['asset']} {document['partition']} is read by")
    print(f"  snapshots: {', '.join(document['snapshots']) or 'none'}")
    models = [f"{m['date']} version {m['version']}" for m in document["models"]]
    print(f"  models: {', '.join(models) or 'none'}")
    print(f"  evaluations: {', '.join(document['evaluations']) or 'none'}")
    champion = document["champion"]
    print(
        "  champion: "
        + (f"yes, version {champion['version']} of {champion['date']}" if champion else "no")
    )
    for model in document["registered"]:
        read = ", ".join(sorted({version[:12] for version in model["read"].values()}))
        print(
            f"  model version {model['version']} of {model['date']} read {read}, "
            f"{'what is there now' if model['current'] else 'corrected since'}"
            + (", was champion" if model["was_champion"] else "")
        )
