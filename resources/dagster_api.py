"""Dagster's webserver, through its GraphQL API: what the UI does, done by a program."""

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from platform_assets.domain.errors import RefusedError, TransientError, UsageError

TIMEOUT_SECONDS = 30

LAUNCH_BACKFILL = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
    ... on UnauthorizedError { message }
    ... on PartitionKeysNotFoundError { message }
    ... on RunConflict { message }
  }
}
"""

CANCEL_BACKFILL = """
mutation Cancel($id: String!) {
  cancelPartitionBackfill(backfillId: $id) {
    __typename
    ... on UnauthorizedError { message }
    ... on PythonError { message }
  }
}
"""

BACKFILL = """
query Backfill($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    __typename
    ... on PartitionBackfill {
      status
      error { message }
      assetBackfillData {
        assetBackfillStatuses {
          __typename
          ... on AssetPartitionsStatusCounts {
            assetKey { path }
            numPartitionsTargeted numPartitionsMaterialized numPartitionsFailed
          }
          ... on UnpartitionedAssetStatus { assetKey { path } materialized failed }
        }
      }
    }
    ... on BackfillNotFoundError { message }
    ... on PythonError { message }
  }
}
"""

RUNS = """
query Runs($filter: RunsFilter, $limit: Int) {
  runsOrError(filter: $filter, limit: $limit) {
    ... on Runs { results {
      runId status jobName creationTime startTime endTime tags { key value }
      assetSelection { path }
    } }
    ... on PythonError { message }
  }
}
"""

LAUNCH_JOB = """
mutation LaunchJob($location: String!, $job: String!, $tags: [ExecutionTag!]!) {
  launchRun(executionParams: {
    selector: {
      repositoryLocationName: $location, repositoryName: "__repository__", jobName: $job
    }
    executionMetadata: {tags: $tags}
  }) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""

RUN_STATUS = """
query RunStatus($id: ID!) {
  runOrError(runId: $id) { __typename ... on Run { status } ... on PythonError { message } }
}
"""

UNFINISHED = """
query { partitionBackfillsOrError(status: REQUESTED) {
  ... on PartitionBackfills { results { id } }
  ... on PythonError { message }
} }
"""

LOCATIONS = """
query { workspaceOrError {
  ... on Workspace { locationEntries {
    name loadStatus locationOrLoadError {
      __typename ... on PythonError { message errorChain { error { message } } }
    }
  } }
  ... on PythonError { message }
} instance { daemonHealth { allDaemonStatuses { daemonType healthy required } } } }
"""


class DagsterApi:
    """A running Dagster webserver.

    Args:
        url: its address, `http://127.0.0.1:3000`.

    Raises:
        UsageError: it is no address of a webserver.
    """

    def __init__(self, url: str) -> None:
        self.url = _address(url)

    def query(self, text: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Run one GraphQL operation.

        Raises:
            TransientError: the webserver does not answer.
            RefusedError: it answered with errors.
        """
        body = json.dumps({"query": text, "variables": dict(variables or {})}).encode()
        request = urllib.request.Request(  # noqa: S310 - http on loopback, given by the caller
            f"{self.url}/graphql", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
                document = json.load(answer)
        except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
            raise TransientError(
                f"Dagster's webserver at {self.url} does not answer ({error}); start it with "
                "`signalbox dev`"
            ) from error
        if document.get("errors"):
            raise RefusedError(f"Dagster refused a query: {document['errors'][0]['message']}")
        data: dict[str, Any] = document["data"]
        return data

    def loaded(self) -> bool:
        """Whether the code location is loaded and the daemons are well.

        Raises:
            RefusedError: the code location cannot be loaded.
        """
        data = self.query(LOCATIONS)
        entries = data["workspaceOrError"].get("locationEntries", [])
        for entry in entries:
            found = entry["locationOrLoadError"]
            if found and found["__typename"] == "PythonError":
                raise RefusedError(f"code location {entry['name']} fails: {_cause(found)}")
        daemons = data["instance"]["daemonHealth"]["allDaemonStatuses"]
        return (
            bool(entries)
            and all(entry["loadStatus"] == "LOADED" for entry in entries)
            and all(d["healthy"] for d in daemons if d["required"])
        )

    def unfinished_backfills(self) -> list[str]:
        """The ids of the backfills that still request runs, oldest first."""
        found = self.query(UNFINISHED)["partitionBackfillsOrError"]
        return [str(backfill["id"]) for backfill in reversed(found["results"])]

    def launch_backfill(
        self,
        partitions: Mapping[str, Sequence[tuple[str, str]] | None],
        *,
        title: str,
        tags: Mapping[str, str],
    ) -> str:
        """Launch a native backfill.

        Args:
            partitions: ranges of partition keys by asset key; none for an asset without any.
            title: shown in the UI.
            tags: put onto the backfill and every run of it.

        Returns:
            The backfill's id.
        """
        selectors = [
            {
                "assetKey": {"path": asset.split("/")},
                **(
                    {}
                    if ranges is None
                    else {"partitions": {"ranges": [{"start": a, "end": b} for a, b in ranges]}}
                ),
            }
            for asset, ranges in partitions.items()
        ]
        params = {
            "partitionsByAssets": selectors,
            "title": title,
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        result = self.query(LAUNCH_BACKFILL, {"params": params})["launchPartitionBackfill"]
        if result["__typename"] != "LaunchBackfillSuccess":
            raise RefusedError(f"Dagster refused the backfill: {result.get('message', result)}")
        return str(result["backfillId"])

    def cancel_backfill(self, backfill_id: str) -> None:
        """Ask for the end of a backfill: the daemon ends its runs, and requests no more.

        Raises:
            RefusedError: there is none, or it may not be cancelled.
        """
        result = self.query(CANCEL_BACKFILL, {"id": backfill_id})["cancelPartitionBackfill"]
        if result["__typename"] != "CancelBackfillSuccess":
            raise RefusedError(
                f"Dagster refused to cancel backfill {backfill_id}: {result.get('message', result)}"
            )

    def launch_job(self, job: str, *, location: str, tags: Mapping[str, str]) -> str:
        """Launch a run of a job, as its page in the UI does; its id.

        Raises:
            RefusedError: Dagster refused it.
        """
        pairs = [{"key": key, "value": value} for key, value in tags.items()]
        given = {"location": location, "job": job, "tags": pairs}
        result = self.query(LAUNCH_JOB, given)["launchRun"]
        if result["__typename"] != "LaunchRunSuccess":
            raise RefusedError(f"Dagster refused a run of {job}: {result}")
        return str(result["run"]["runId"])

    def run_status(self, run_id: str) -> str:
        """`QUEUED`, `STARTED`, `SUCCESS` and so on."""
        found = self.query(RUN_STATUS, {"id": run_id})["runOrError"]
        if found["__typename"] != "Run":
            raise RefusedError(f"run {run_id}: {found}")
        return str(found["status"])

    def backfill(self, backfill_id: str) -> dict[str, Any]:
        """Status and counts by asset: `{"status": …, "assets": {key: (done, failed, of)}}`."""
        found = self.query(BACKFILL, {"id": backfill_id})["partitionBackfillOrError"]
        if found["__typename"] != "PartitionBackfill":
            raise RefusedError(f"backfill {backfill_id}: {found.get('message')}")
        counts = {}
        statuses = (found["assetBackfillData"] or {}).get("assetBackfillStatuses", [])
        for status in statuses:
            asset = "/".join(status["assetKey"]["path"])
            if status["__typename"] == "UnpartitionedAssetStatus":
                counts[asset] = (int(status["materialized"]), int(status["failed"]), 1)
            else:
                counts[asset] = (
                    status["numPartitionsMaterialized"],
                    status["numPartitionsFailed"],
                    status["numPartitionsTargeted"],
                )
        error = found["error"]["message"] if found["error"] else None
        return {"status": found["status"], "error": error, "assets": counts}

    def runs(self, tags: Mapping[str, str], limit: int = 100) -> list[dict[str, Any]]:
        """Runs that carry all these tags, newest first."""
        wanted = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
        found = self.query(RUNS, {"filter": wanted, "limit": limit})["runsOrError"]
        runs: list[dict[str, Any]] = found["results"]
        return runs


def _address(url: str) -> str:
    try:
        found = urllib.parse.urlsplit(url)
        right = found.scheme in ("http", "https") and bool(found.hostname) and found.port != 0
    except ValueError:  # a port that is no number
        right = False
    if not right:
        raise UsageError(
            f"{url!r} is no address of a webserver; write it as in http://127.0.0.1:3000"
        )
    return url.rstrip("/")


def _cause(error: Mapping[str, Any]) -> str:
    """What is at the bottom of an error of Dagster's, in one line and without its class."""
    chain = [link["error"]["message"] for link in error["errorChain"]]
    text = " ".join((chain or [error["message"]])[-1].split())
    return re.sub(r"^(\w+\.)+\w+: ", "", text)
