"""An audit as one self-contained page, for a reviewer who has never seen Signalbox."""

import base64
from collections.abc import Mapping
from datetime import date
from typing import Any

from platform_assets.domain.errors import SignalboxError
from platform_assets.domain.manifest import PartitionVersion, describe_dates, window
from platform_assets.domain.promotion import PRIMARY_METRIC
from platform_assets.line.recipes import recorded_recipe, told_again
from platform_assets.line.services import Services
from resources import plots
from resources.ledger.records import VersionRecord
from resources.pages import render
from resources.training import load_trainer, training_frame

WORDS: Mapping[str, str] = {
    "digest": "A number that is computed from contents, here by SHA-256. Other contents have "
    "another digest, so whoever knows the digest notices any change. Shown are its first digits.",
    "partition": "The rows of one key and one date. It is built as a whole, and replaced as a "
    "whole when its data is corrected; each time it gets a new version, and older ones are kept.",
    "complete": "Every hour that the local day had was delivered and accepted, from each source. A "
    "day has 23 or 25 hours when the clocks change.",
    "held": "What is not complete is not built, and days that hold such a partition are left out "
    "of a training. Which ones, and why, is recorded.",
    "waiver": "A person let a partition go although it lacked something, answers for it by name, "
    "and until a date.",
    "snapshot": "The list of exactly those partition versions that one training read.",
    "candidate, champion": "Each training makes a candidate. It is judged on days that came after "
    "everything it was trained on. The one in use is the champion.",
    "verdict": "The comparison of one candidate with the champion of that moment, on the same "
    "rows. It counts for this pair alone.",
    "environment, canary": "All that a training computes with: its image, packages, processor and "
    "threads. A canary trains the champion's own rows again in another one, to see whether that "
    "makes a difference.",
    "log_loss, rmse": "How far the predictions lie from what happened: of a probability, the mean "
    "of the logarithm of what was given to what happened; of a value, the root of the mean square. "
    "The smaller the better.",
    "auc": "How often the model ranks a case that happened above one that did not: 0.5 is "
    "guessing, 1 is perfect.",
    "ndcg_at_...": "How well the day's first so many are ranked, 0 to 1; the larger the better.",
    "ledger": "The database that decides; the model registry (MLflow) shows what was decided.",
}


def audit_page(services: Services, record: VersionRecord, document: Mapping[str, Any]) -> str:
    """The page of an audit.

    Args:
        services: of the pipeline.
        record: of the version.
        document: as `audit` returned it.
    """
    figures, missing = _figures(services, record, document)
    spec = services.spec
    return render(
        "audit.html",
        title=f"Audit of {document['model']} version {document['version']}",
        a=document,
        story=_story(services, document),
        map=_map(services, document),
        figures={
            name: "data:image/png;base64," + base64.b64encode(png).decode()
            for name, png in figures.items()
        },
        missing=missing,
        key=spec.partitions.key,
        timezone=spec.partitions.timezone,
        metric=PRIMARY_METRIC[spec.model.kind],
        words=WORDS,
    )


def _story(services: Services, document: Mapping[str, Any]) -> list[str]:
    """What the model is, in sentences."""
    snapshot, training = document["snapshot"], document["training"]
    crowned = [c for c in document["promotions"] if c["this"]]
    told = [
        f"Version {document['version']} of {document['model']} was trained for "
        f"{document['date']} on {training['rows']:,} rows of {len(snapshot['days'])} days, "
        f"{snapshot['window_start']} to {document['date']}, and registered at "
        f"{_instant(training['registered_at'])}."
    ]
    if snapshot["held"]:
        days = describe_dates([date.fromisoformat(day) for day in snapshot["held"]])
        told.append(f"Left out of that time, since data was missing: {days}.")
    if document["judgements"]:
        latest = document["judgements"][-1]
        told.append(
            f"It was judged on {latest['rows']:,} rows of the days that followed, "
            f"{latest['days'][0]} to {latest['days'][-1]}, none of which it had seen."
        )
    else:
        told.append("It was not judged yet.")
    if crowned:
        change = crowned[-1]
        before = f" in place of version {change['previous']}" if change["previous"] else ""
        by = "by rule" if change["by"] == "signalbox" else f"by {change['by']}"
        told.append(
            f"It became champion at {_instant(change['at'])}{before}, {by}: {change['reason']}."
        )
        for after in document["promotions"]:
            if after["previous"] != document["version"]:
                continue
            told.append(f"Version {after['version']} followed it at {_instant(after['at'])}.")
    else:
        told.append("It never was champion.")
    changed = sum(p["changed_since"] for p in snapshot["partitions"])
    if changed:
        told.append(
            f"{changed} of the {len(snapshot['partitions'])} partitions that it was trained on "
            "hold other rows by now, since their data was corrected; it was trained on the "
            "versions before, which are kept."
        )
    return told


def _instant(text: str) -> str:
    return text[:19].replace("T", " ") + " UTC"


def _map(services: Services, document: Mapping[str, Any]) -> dict[str, Any]:
    """The window, a row a key and a column a day: what was read, and what was left out."""
    spec = services.spec
    found = {p["partition"]: p for p in document["snapshot"]["partitions"]}
    held: Mapping[str, str] = document["snapshot"]["held"]
    days = window(date.fromisoformat(document["date"]), spec.model.window_days)
    rows: dict[str, list[dict[str, str]]] = {}
    for value in spec.partitions.values:
        rows[value] = []
        for day in days:
            p = found.get(f"{value}|{day}")
            if p is None:
                why = held.get(day.isoformat(), "not in the snapshot")
                rows[value].append({"state": "out", "text": f"{value} {day}: left out, {why}"})
                continue
            state = "short" if p["short"] else "changed" if p["changed_since"] else "whole"
            said = p["short"] or "whole"
            since = ", corrected since" if p["changed_since"] else ""
            text = f"{value} {day}: {p['rows']} rows, {said}{since}"
            rows[value].append({"state": state, "text": text})
    return {"days": [day.isoformat() for day in days], "rows": rows}


def _figures(
    services: Services, record: VersionRecord, document: Mapping[str, Any]
) -> tuple[dict[str, bytes], list[str]]:
    """Pictures by title, and why one of them is not there."""
    figures: dict[str, bytes] = {}
    missing: list[str] = []
    metric = PRIMARY_METRIC[services.spec.model.kind]
    curve = {
        date.fromisoformat(day): float(e.detail["metrics"][metric])
        for day, e in services.ledger.current_versions(services.spec.asset("evaluation")).items()
        if metric in e.detail["metrics"]
    }
    if curve:
        crowned = {
            date.fromisoformat(c["model_date"]): f"v{c['version']}" for c in document["promotions"]
        }
        figures[f"{metric} of the candidates, champions marked"] = plots.metric_over_time(
            metric, curve, crowned
        )
    try:
        figures |= _of_the_model(services, record, document)
    except SignalboxError as error:
        missing.append(str(error))
    return figures, missing


def _of_the_model(
    services: Services, record: VersionRecord, document: Mapping[str, Any]
) -> dict[str, bytes]:
    """What can be drawn of the model itself; its files are verified before they are loaded."""
    recipe = recorded_recipe(record)
    spec = told_again(services.spec, recipe) if recipe else services.spec
    trainer = load_trainer(spec.model.trainer)
    model = services.tracking.load(
        spec.model.name, document["version"], trainer.flavor, digest=record.data_version
    )
    figures = {}
    importance = dict(trainer.importance(model))
    if importance:
        figures["what the model looks at"] = plots.importance(importance)
    if document["judgements"] and spec.model.kind == "binary_classification":
        judged = [PartitionVersion(**p) for p in document["judgements"][-1]["partitions"]]
        rows = services.dataset.read(judged)
        frame, target = training_frame(rows, spec)
        predictions = trainer.predict(model, frame)
        figures["predicted and observed on the judged days"] = plots.calibration(
            target.to_numpy(), predictions
        )
    return figures
