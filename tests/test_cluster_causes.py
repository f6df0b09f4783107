"""What the cluster says, sorted into causes; and what is done about each."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from platform_assets.domain.cluster_budgets import (
    ADVICE,
    DEFAULTS,
    Budget,
    Budgets,
    decide,
    parse_budgets,
    restarting,
)
from platform_assets.domain.cluster_causes import (
    SLACK,
    Cause,
    Fault,
    Finding,
    disruption,
    find,
    refusal,
    unrecorded,
)
from platform_assets.domain.errors import SpecError
from resources.failures import VARIABLE, load_budgets

NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
JOB: dict[str, Any] = {
    "metadata": {"name": "j"},
    "spec": {"template": {}},
    "status": {"active": 1},
}
FAILED = {
    **JOB,
    "status": {
        "failed": 1,
        "conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}],
    },
}


def pod(phase: str = "Failed", deleted: str | None = None, **status: Any) -> dict[str, Any]:
    metadata = {"name": "j-a"} | ({"deletionTimestamp": deleted} if deleted else {})
    limit = {"resources": {"limits": {"memory": "2Gi"}}}
    spec = {"nodeName": "node-1", "containers": [{"name": "dagster", **limit}]}
    return {
        "kind": "Pod",
        "metadata": metadata,
        "spec": spec,
        "status": {"phase": phase, **status},
    }


def disrupted(reason: str) -> dict[str, Any]:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": reason}
    return {"conditions": [{**condition, "message": "said so"}]}


def container(**state: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "dagster", "state": state}]}


def ended(code: int, reason: str = "Error", **more: Any) -> dict[str, Any]:
    return container(terminated={"exitCode": code, "reason": reason, **more})


def waiting(reason: str) -> dict[str, Any]:
    return container(waiting={"reason": reason, "message": "why"})


def event(kind: str, reason: str, message: str = "why") -> dict[str, Any]:
    name = "j" if kind == "Job" else "j-a"
    return {"involvedObject": {"kind": kind, "name": name}, "reason": reason, "message": message}


def quota(text: str) -> dict[str, Any]:
    return event("Job", "FailedCreate", f'Error creating: pods "j-b" is forbidden: {text}')


EARLIER = "2026-11-23T02:00:00Z"
LATER = "2026-11-23T03:00:10Z"
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}

CASES: dict[str, tuple[Any, list[Any], list[Any], tuple[str, str, str] | None]] = {
    "runs": (JOB, [pod("Running")], [], None),
    "pulls": (JOB, [pod("Pending", **waiting("ContainerCreating"))], [], None),
    "has no pod yet": (JOB, [], [], None),
    "ended well": ({**JOB, "status": {"succeeded": 1}}, [pod("Succeeded")], [], None),
    "preempted": (
        *(JOB, [pod(**disrupted("PreemptionByScheduler"))], []),
        ("preempted", "over", "pod j-a: PreemptionByScheduler: said so (DisruptionTarget)"),
    ),
    "drained": (
        *(JOB, [pod(**disrupted("EvictionByEvictionAPI"))], []),
        ("evicted", "over", "pod j-a: EvictionByEvictionAPI: said so (DisruptionTarget)"),
    ),
    "a reason of a later release": (
        *(JOB, [pod(**disrupted("SomethingNew"))], []),
        ("evicted", "over", "pod j-a: SomethingNew: said so (DisruptionTarget)"),
    ),
    "evicted by the kubelet": (
        *(JOB, [pod(reason="Evicted", message="low on memory", **ended(137))], []),
        ("evicted", "over", "pod j-a: Evicted: low on memory"),
    ),
    "node shut down": (
        *(JOB, [pod(reason="Terminated", message="imminent node shutdown")], []),
        ("evicted", "over", "pod j-a: Terminated: imminent node shutdown"),
    ),
    "still has its grace": (
        *(JOB, [pod("Running", LATER, **disrupted("PreemptionByScheduler"))], []),
        None,
    ),
    "was to be gone": (
        *(JOB, [pod("Running", EARLIER, **disrupted("DeletionByTaintManager"))], []),
        (
            *("node_lost", "over"),
            "pod j-a: DeletionByTaintManager: said so (DisruptionTarget); pod j-a was to be gone "
            f"by {EARLIER} and is not: its node node-1 does not answer",
        ),
    ),
    "phase unknown": (
        *(JOB, [pod("Unknown", reason="NodeLost", message="unresponsive")], []),
        ("node_lost", "over", "pod j-a: NodeLost: unresponsive"),
    ),
    "status unknown": (
        *(JOB, [pod(**ended(137, "ContainerStatusUnknown", message="could not be located"))], []),
        (
            *("node_lost", "over"),
            "container dagster of pod j-a ended with exit code 137 (ContainerStatusUnknown, "
            "signal 9): could not be located",
        ),
    ),
    "out of memory": (
        *(JOB, [pod(**ended(137, "OOMKilled"))], []),
        (
            *("out_of_memory", "over"),
            "container dagster of pod j-a ended with exit code 137 (OOMKilled, signal 9); its "
            "memory limit is 2Gi",
        ),
    ),
    "preempted while out of memory": (
        *(JOB, [pod(**disrupted("PreemptionByScheduler"), **ended(137, "OOMKilled"))], []),
        ("preempted", "over", "pod j-a: PreemptionByScheduler: said so (DisruptionTarget)"),
    ),
    "the code": (
        *(JOB, [pod(**ended(3))], []),
        ("exited", "over", "container dagster of pod j-a ended with exit code 3 (Error)"),
    ),
    "killed by nobody known": (
        *(JOB, [pod(**ended(137))], []),
        (
            *("exited", "over"),
            "container dagster of pod j-a ended with exit code 137 (Error, signal 9)",
        ),
    ),
    "no such command": (
        *(JOB, [pod(**ended(128, "StartError", message="exec: not found"))], []),
        (
            *("container_config", "over"),
            "container dagster of pod j-a ended with exit code 128 (StartError): exec: not found",
        ),
    ),
    "deleted": (None, [], [], ("deleted", "over", "its Job is not there any more: somebody")),
    "too long": (
        {
            **JOB,
            "status": {
                "conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]
            },
        },
        [pod(**ended(143))],
        [],
        ("deadline", "over", "Job j: DeadlineExceeded"),
    ),
    "gone with its pod": (
        *(FAILED, [], [event("Job", "SuccessfulCreate"), event("Pod", "Preempted")]),
        ("preempted", "over", "pod j-a: Preempted: why"),
    ),
    "gone without a word": (FAILED, [], [], ("exited", "over", "Job j: BackoffLimitExceeded;")),
    "back-off": (
        *(JOB, [pod("Pending", **waiting("ImagePullBackOff"))], []),
        ("image", "waits", "container dagster of pod j-a: ImagePullBackOff: why"),
    ),
    "pull": (JOB, [pod("Pending", **waiting("ErrImagePull"))], [], ("image", "waits", "")),
    "no name": (JOB, [pod("Pending", **waiting("InvalidImageName"))], [], ("image", "over", "")),
    "config": (
        *(JOB, [pod("Pending", **waiting("CreateContainerConfigError"))], []),
        ("container_config", "waits", ""),
    ),
    "no room": (
        *(JOB, [pod("Pending", conditions=[{**UNSCHEDULABLE, "message": "0/2 nodes"}])], []),
        ("unschedulable", "waits", "pod j-a: Unschedulable: 0/2 nodes"),
    ),
    "held by a queue": (
        {
            **JOB,
            "status": {
                "conditions": [{"type": "Suspended", "status": "True", "reason": "JobSuspended"}]
            },
        },
        *([], []),
        ("suspended", "waits", "Job j: JobSuspended"),
    ),
    "quota": (
        *(JOB, [], [quota("exceeded quota: lane, requested: pods=1")]),
        ("quota", "waits", 'Job j: FailedCreate: Error creating: pods "j-b" is forbidden:'),
    ),
    "priority class": (
        *(JOB, [], [quota("no PriorityClass with name x was found")]),
        ("priority_class", "over", ""),
    ),
    "pod security": (
        *(JOB, [], [quota('violates PodSecurity "restricted:latest"')]),
        ("forbidden", "waits", ""),
    ),
    "webhook": (
        *(JOB, [], [event("Job", "FailedCreate", 'failed calling webhook "x": refused')]),
        ("api", "waits", ""),
    ),
    "quota in the end": (JOB, [pod("Running")], [quota("exceeded quota: lane")], None),
}


@pytest.mark.parametrize(("job", "pods", "events", "expected"), CASES.values(), ids=list(CASES))
def test_what_the_cluster_says_has_a_cause(
    job: Any, pods: list[Any], events: list[Any], expected: tuple[str, str, str] | None
) -> None:
    found = find(job, pods, events, NOW)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert (found.cause, found.state) == expected[:2]
        assert found.words.startswith(expected[2])


def test_a_pod_is_lost_once_its_time_and_some_more_is_over() -> None:
    gone = [pod("Running", LATER)]
    due = datetime.fromisoformat(LATER)
    assert find(JOB, gone, [], due + SLACK - timedelta(seconds=1)) is None
    found = find(JOB, gone, [], due + SLACK)
    assert found is not None
    assert found.cause is Cause.NODE_LOST


def test_an_interruption_is_told_while_it_goes_on() -> None:
    going = pod("Running", LATER, **disrupted("PreemptionByScheduler"))
    found = disruption(JOB, [going], [])
    assert found is not None
    assert found.cause is Cause.PREEMPTED
    # The pod is gone already: its events are not.
    found = disruption(FAILED, [], [event("Pod", "TaintManagerEviction")])
    assert found is not None
    assert found.cause is Cause.NODE_LOST
    # Its events are as well: somebody has deleted it, a drain or a person.
    found = disruption(FAILED, [], [])
    assert found is not None
    assert found.cause is Cause.EVICTED
    # A release that knows no DisruptionTarget.
    found = disruption(JOB, [pod(reason="Evicted", message="low on memory")], [])
    assert found is not None
    assert found.cause is Cause.EVICTED
    for job, pods in ((None, []), (JOB, [pod("Running", LATER)])):
        found = disruption(job, pods, [])
        assert found is not None
        assert found.cause is Cause.DELETED
    # Who was interrupted by something else was not by the cluster.
    assert disruption(JOB, [pod("Running")], []) is None


def test_a_job_that_ended_well_is_asked_about_only_by_who_knows_of_no_end() -> None:
    assert unrecorded(JOB, [pod("Running")]) is None
    found = unrecorded({**JOB, "status": {"succeeded": 1, "failed": 1}}, [])
    assert found is not None
    assert found.cause is Cause.RESTARTED
    assert "after 2 pods" in found.words


STATES = st.sampled_from([container(**s) for s in ({}, {"running": {}})]) | st.builds(
    ended, st.integers(0, 255), st.text(max_size=8)
)
PODS = st.lists(
    st.builds(
        lambda phase, state, more: pod(phase, **{**more, **state}),
        st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown"]),
        STATES | st.builds(waiting, st.text(max_size=8)),
        st.dictionaries(st.sampled_from(["reason", "message"]), st.text(max_size=8)),
    ),
    max_size=3,
)


@given(
    st.none() | st.just(JOB) | st.just(FAILED),
    PODS,
    st.lists(
        st.builds(event, st.sampled_from(["Job", "Pod"]), st.text(max_size=9), st.text()),
        max_size=3,
    ),
)
def test_whatever_is_said_has_a_cause_or_none(job: Any, pods: list[Any], events: list[Any]) -> None:
    found = find(job, pods, events, NOW)
    if job is None or job is FAILED:
        assert found is not None
    if found is not None:
        assert found.words.strip()
        verdict = decide(found, Budgets(), 0, timedelta(0))
        assert verdict.words.startswith(found.words)


# --- budgets --------------------------------------------------------------------------------------


def test_every_cause_has_a_budget_and_advice() -> None:
    assert set(DEFAULTS) == set(ADVICE) == set(Cause)
    # What a person or a setting did is not done again.
    for cause in Cause:
        if cause.fault in (Fault.PERSON, Fault.CODE):
            assert DEFAULTS[cause].retries == 0


@given(
    st.sampled_from(Cause),
    st.sampled_from(["waits", "over"]),
    st.integers(0, 120),
    st.integers(0, 10**6),
    st.floats(0, 1),
)
def test_a_budget_is_never_overrun(
    cause: Cause, state: Any, retried: int, seconds: int, jitter: float
) -> None:
    budgets = Budgets()
    waited = timedelta(seconds=seconds)
    verdict = decide(Finding(cause, state, "x"), budgets, retried, waited, jitter)
    budget = budgets.of(cause)
    if verdict.step == "retry":
        assert retried < budget.retries
        assert budget.wait <= verdict.seconds <= 3600 * 1.25
    if verdict.step == "wait":
        assert state == "waits"
        assert seconds < budget.patience
    assert (verdict.step == "theirs") == (cause is Cause.EXITED)


def test_waits_grow_to_an_hour() -> None:
    budgets = Budgets(failures={Cause.EVICTED: Budget(retries=100, wait=30)})
    found = Finding(Cause.EVICTED, "over", "x")
    waits = [decide(found, budgets, n, timedelta(0), 0).seconds for n in range(10)]
    assert waits == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert decide(found, budgets, 0, timedelta(0), 1).seconds == 37.5


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"failures": {"evict": {}}}, "evicted"),
        ({"failures": {"evicted": {"retries": -1}}}, "greater than or equal to 0"),
        ({"failures": {"evicted": {"retry": 1}}}, "Extra inputs"),
        ({"failures": {"out_of_memory": {"retries": 2}}}, "at most 1 is allowed"),
        ({"failures": {"exited": {"retries": 1}}}, "the op's RetryPolicy's"),
        ([], "dictionary"),
    ],
)
def test_a_wrong_declaration_is_refused(document: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        parse_budgets(document, "failures.yaml")


def test_the_declaration_that_comes_along_says_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = load_budgets()
    assert {cause: budgets.of(cause) for cause in Cause} == dict(DEFAULTS)
    place = tmp_path / "own.yaml"
    place.write_text("failures: {preempted: {retries: 99}}")
    monkeypatch.setenv(VARIABLE, str(place))
    assert load_budgets().of(Cause.PREEMPTED).retries == 99
    assert load_budgets().of(Cause.EVICTED) == DEFAULTS[Cause.EVICTED]


def job(limit: int | None, policy: str = "Never", run: bool = True) -> dict[str, Any]:
    labels = {"dagster/run-id": "r"} if run else {}
    spec: dict[str, Any] = {"template": {"spec": {"restartPolicy": policy}}}
    spec |= {} if limit is None else {"backoffLimit": limit}
    return {"kind": "Job", "metadata": {"labels": labels}, "spec": spec}


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (job(0), ""),
        (job(3), "backoffLimit is 3"),
        (job(None), "backoffLimit is 6"),
        (job(0, "OnFailure"), "restartPolicy is OnFailure"),
        (job(3, run=False), ""),
        ({"kind": "Pod"}, ""),
    ],
)
def test_who_would_start_a_pod_again(manifest: dict[str, Any], words: str) -> None:
    assert restarting(manifest).startswith(words)
    assert bool(restarting(manifest)) == bool(words)


WORDS: list[tuple[Callable[[str], Cause], str, Cause]] = [
    (refusal, 'pods "x" is forbidden: exceeded quota: q', Cause.QUOTA),
    (refusal, 'pods "x" is forbidden: User "y" cannot create', Cause.FORBIDDEN),
]


@pytest.mark.parametrize(("sort", "text", "cause"), WORDS)
def test_a_refusal_is_told_by_its_words(
    sort: Callable[[str], Cause], text: str, cause: Cause
) -> None:
    assert sort(text) is cause
