"""`signalbox doctor`: is this home fit to run, and if not, what to do?"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from platform_assets.cli.lanes import RENEW, live_differences, stale_daemons
from platform_assets.domain.admission import Violation
from platform_assets.domain.errors import SignalboxError
from platform_assets.domain.image_spec import deployment
from platform_assets.domain.images import ImageLock
from platform_assets.factory import check_spec
from platform_assets.factory.instance import dagster_yaml, instance_config
from resources.catalog import catalog_folder, load_catalog, load_entries
from resources.cluster import instance_document
from resources.home import FORMAT, Home
from resources.images import load_lock, lock_file
from resources.lanes import load_lanes, outdated
from resources.ledger.promotions import CHAMPION

NEEDED_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Finding:
    """One check: what was found, and what to do where it is off."""

    name: str
    ok: bool
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(home: Home) -> list[Finding]:
    """Run every check; one that cannot be made is off, never skipped."""
    checks: list[tuple[str, Callable[[Home], Iterator[Finding]]]] = [
        ("python", _python),
        ("versions", _versions),
        ("home", _home),
        ("disk", _disk),
        ("instance", _instance),
        ("pools", _pools),
        ("ledger", _ledger),
        ("mlflow", _mlflow),
        ("tracking", _tracking),
        ("serving", _serving),
        ("alerts", _alerts),
        ("catalog", _catalog),
        ("images", _images),
        ("deploy", _deploy),
    ]
    findings: list[Finding] = []
    for name, check in checks:
        try:
            findings.extend(check(home))
        except SignalboxError as error:
            findings.append(Finding(name, False, str(error), "see the message"))
        except Exception as error:  # noqa: BLE001 - a doctor reports what it meets
            # Of SQLAlchemy's messages the lines that follow are the statement.
            line = next(iter(str(error).strip().splitlines()), "no message")
            findings.append(
                Finding(name, False, f"{type(error).__name__}: {line}", "see the message")
            )
    return findings


def _images(home: Home) -> Iterator[Finding]:
    """The lock: whether it can be read, and on a cluster whether it has all that would start."""
    lock, where = load_lock(), deployment(os.environ)
    wanted = {
        name: pipeline
        for pipeline, spec in load_catalog().items()
        for name in sorted(spec.images.names())
    }
    missing = [f"{n} ({wanted[n]})" for n in sorted({*wanted} - {*lock.images})]
    if where == "local":
        found = f"{len(lock.images)} in {lock_file()}; runs are local and need none"
        yield Finding("images", True, found)
    elif missing:
        yield Finding(
            "images",
            False,
            f"{lock_file()} lacks {', '.join(missing)}: their steps are refused",
            "pin each with `signalbox images pin NAME REGISTRY/REPOSITORY:TAG`",
        )
    else:
        bad = _foreseen(home, lock)
        listed = "; ".join(map(str, bad)) or f"{', '.join(sorted(lock.images))} in {lock_file()}"
        advice = "name images by their logical names, or `signalbox images pin` them" if bad else ""
        yield Finding("images", not bad, listed, advice)


def _foreseen(home: Home, lock: ImageLock) -> Sequence[Violation]:
    """What runs and steps would be refused for, by the instance, this process and the code."""
    import yaml

    from platform_assets.definitions import assemble
    from platform_assets.instance.kubernetes.executor import pinned_k8s_job_executor
    from platform_assets.instance.kubernetes.foreseeing import bad_definitions, bad_surroundings

    file = home.dagster / "dagster.yaml"
    document = yaml.safe_load(file.read_text()) if file.exists() else None
    launcher = (document or {}).get("run_launcher") or {}
    surroundings = bad_surroundings(launcher.get("config") or {}, os.environ, lock)
    return (*surroundings, *bad_definitions(assemble(), pinned_k8s_job_executor, lock))


def _deploy(_: Home) -> Iterator[Finding]:
    from platform_assets.cli.cluster import deploy_finding

    yield Finding("deploy", *deploy_finding())


def _python(_: Home) -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info[:2] == (3, 11)
    yield Finding("python", ok, found, "" if ok else "use Python 3.11, then `make setup`")


def _versions(_: Home) -> Iterator[Finding]:
    wrong = []
    count = 0
    for text in requires("signalbox") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        count += 1
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found}, allowed {requirement.specifier}")
    if wrong:
        yield Finding("versions", False, "; ".join(wrong), "run `make setup`")
    else:
        yield Finding(
            "versions", True, f"{count} packages as required, dagster {version('dagster')}"
        )


def _home(home: Home) -> Iterator[Finding]:
    home.require()
    probe = home.root / ".doctor"
    try:
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        yield Finding(
            "home", False, f"{home.root} cannot be written: {error.strerror}", "free it, or own it"
        )
        return
    yield Finding("home", True, f"{home.root}, format {FORMAT}")


def _disk(home: Home) -> Iterator[Finding]:
    place = home.root if home.root.exists() else Path.cwd()
    free = shutil.disk_usage(place).free
    ok = free > NEEDED_BYTES
    advice = "" if ok else f"free at least {NEEDED_BYTES // 10**6} MB"
    yield Finding("disk", ok, f"{free // 10**6} MB free", advice)


def _instance(home: Home) -> Iterator[Finding]:
    import dagster as dg
    import yaml

    home.require()
    config = home.dagster / "dagster.yaml"
    if not config.exists():
        yield Finding("instance", False, f"{config} is missing", "copy dagster.yaml there")
        return
    live = yaml.safe_load(config.read_text()) or {}
    if not isinstance(live, dict):
        yield Finding(
            "instance",
            False,
            f"{config} holds a {type(live).__name__}, a mapping is needed",
            f"copy {dagster_yaml().name} over it and restart Dagster",
        )
        return
    lanes = load_lanes()
    # In a pod the file is the cluster's, as deploy/ has it.
    wanted = (
        yaml.safe_load(instance_config(home))
        if deployment(os.environ) == "local" or "KUBERNETES_SERVICE_HOST" not in os.environ
        else instance_document(dagster_yaml().read_text(encoding="utf-8"))
    )
    old = outdated(live, wanted, lanes)
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        runs = instance.get_runs_count()
        wrong = live_differences(instance, lanes)
    if old or wrong:
        found = f"{config} differs from the project's in {', '.join(old)}" if old else ""
        listed = "; ".join(part for part in (found, *wrong) if part)
        yield Finding("instance", False, listed, RENEW)
        return
    stale = list(stale_daemons(home))
    if stale:
        yield Finding(
            "instance",
            False,
            f"daemon {', '.join(map(str, stale))} started before {config} was last written, and "
            "goes by the limits of before",
            "end Dagster and start it again (`signalbox dev`)",
        )
        return
    yield Finding("instance", True, f"{home.dagster}, {runs} runs, limits as declared")


def _pools(home: Home) -> Iterator[Finding]:
    import dagster as dg

    from platform_assets.definitions import assemble
    from platform_assets.instance.pools import pools_of

    home.require()
    declared = pools_of(assemble())
    with dg.DagsterInstance.from_config(str(home.dagster)) as instance:
        limited = {pool.name for pool in instance.event_log_storage.get_pool_limits()}
    if not declared:
        unused = f"; without use: limits of {', '.join(sorted(limited))}" if limited else ""
        yield Finding("pools", True, f"no asset is in a pool{unused}")
        return
    listed = "; ".join(f"{pool} ({', '.join(names)})" for pool, names in declared.items())
    yield Finding(
        "pools",
        False,
        f"in a pool: {listed}; a run that waits for one counts against its lane although it does "
        "not run",
        "take them out of it and use a lease, see docs/lanes.md",
    )


def _ledger(home: Home) -> Iterator[Finding]:
    from platform_assets.line.services import Services

    for spec in load_catalog().values():
        services = Services.open(spec, home)
        champion = services.ledger.champion(spec.pipeline)
        of = f"version {champion.version}" if champion else "none yet"
        yield Finding(f"ledger of {spec.pipeline}", True, f"champion: {of}")


def _mlflow(home: Home) -> Iterator[Finding]:
    """Whether the registry has the champion; how its aliases stand `_serving` tells."""
    from platform_assets.line.services import Services

    for spec in load_catalog().values():
        services = Services.open(spec, home)
        champion = services.ledger.champion(spec.pipeline)
        decided = champion.version if champion else None
        gone = services.tracking.absence(spec.model.name, decided) if decided else None
        if gone:
            yield Finding(
                f"mlflow of {spec.pipeline}",
                False,
                f"the ledger's champion version {decided} {gone}",
                f"restore it there, or `signalbox rollback {spec.pipeline} --reason WHY --by WHO`",
            )
            continue
        services.tracking.alias(spec.model.name, CHAMPION)  # whether it answers
        of = f"has the ledger's champion, version {decided}" if decided else "has no champion yet"
        yield Finding(f"mlflow of {spec.pipeline}", True, f"the registry {of}")


def _tracking(home: Home) -> Iterator[Finding]:
    from resources.tracking.spool import REFUSED, Spool

    spool = Spool(home.root / "tracking")
    refused = spool.refused()
    for key, reason in refused.items():
        yield Finding(
            "tracking",
            False,
            f"MLflow refused what run entry {key} had to tell: {reason}",
            f"restore what was deleted and move the file back from {spool.folder / REFUSED}, or "
            "remove it",
        )
    if not refused:
        yield Finding("tracking", True, "nothing that MLflow was to be told was refused")


def _serving(home: Home) -> Iterator[Finding]:
    from platform_assets.cli.doctor_serving import serving_findings
    from platform_assets.line.services import Services

    for spec in load_catalog().values():
        for ok, found, advice in serving_findings(Services.open(spec, home)):
            yield Finding(f"serving of {spec.pipeline}", ok, found, advice)


def _alerts(home: Home) -> Iterator[Finding]:
    from platform_assets.line.alerting import delivery_health
    from platform_assets.line.services import Services

    for spec in load_catalog().values():
        ok, found = delivery_health(Services.open(spec, home))
        advice = "" if ok else "see `signalbox alerts`; set the webhook's URL right, or start it"
        yield Finding(f"alerts of {spec.pipeline}", ok, found, advice)


def _catalog(_: Home) -> Iterator[Finding]:
    entries = load_entries()
    for entry in entries.values():
        check_spec(entry.spec, str(entry.path))
    yield Finding("catalog", True, f"{catalog_folder()}: {', '.join(entries)}")
