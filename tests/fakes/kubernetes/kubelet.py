"""The node of the fake: it schedules at once, and runs a pod's first container as a process."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platform_assets.drills.gpu_cluster import schedule

if TYPE_CHECKING:
    from tests.fakes.kubernetes.cluster import Cluster

Object = dict[str, Any]

# As in an image, the programs of the environment are found whether or not it is activated.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


class Kubelet:
    """Pods by their containers, and the processes by the names of the pods."""

    def __init__(self, cluster: "Cluster") -> None:
        self._cluster = cluster
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ends: dict[str, dict[str, str]] = {}

    def advance(self, pod: Object) -> None:
        """Bring a pod that is not running one step on."""
        self._report_late(pod)
        if pod["status"]["phase"] != "Pending" or "deletionTimestamp" in pod["metadata"]:
            return
        cluster, status = self._cluster, pod["status"]
        if cluster.full:
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            status["conditions"] = [{**condition, "message": cluster.full}]
            return
        node, why = "node-1", ""
        if cluster.nodes:
            others = [p for p in cluster.pods.values() if p["status"]["phase"] == "Running"]
            node, why = schedule(cluster.nodes, others, pod)
        if why:
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            status["conditions"] = [{**condition, "message": why}]
            return
        pod["spec"]["nodeName"] = node
        status["conditions"] = [{"type": "PodScheduled", "status": "True"}]
        for container in pod["spec"]["containers"]:
            image = container["image"]
            if image in cluster.unpullable:
                before = _waits_for(status)
                again = f'Back-off pulling image "{image}"'
                if before == "ErrImagePull":
                    self._wait(pod, "ImagePullBackOff", f"{again}: {cluster.unpullable[image]}")
                else:
                    reason = cluster.unpullable[image].partition(":")[0]
                    known = reason if reason == "InvalidImageName" else "ErrImagePull"
                    self._wait(pod, known, cluster.unpullable[image])
                return
        if cluster.config_error:
            self._wait(pod, "CreateContainerConfigError", cluster.config_error)
            return
        status["phase"] = "Running"
        self._state(pod, {"running": {"startedAt": pod["metadata"]["creationTimestamp"]}})
        if cluster.runs:
            self._start(pod)

    def _wait(self, pod: Object, reason: str, message: str) -> None:
        self._state(pod, {"waiting": {"reason": reason, "message": message}})

    def _state(self, pod: Object, state: Object) -> None:
        pod["status"]["containerStatuses"] = [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": ""
                if "waiting" in state or container["image"] in self._cluster.late
                else self._image_id(container["image"]),
                "ready": "running" in state,
                "restartCount": 0,
                "state": state,
            }
            for container in pod["spec"]["containers"]
        ]

    def _image_id(self, image: str) -> str:
        return self._cluster.image_ids.get(image, image)

    def _report_late(self, pod: Object) -> None:
        for one in pod["status"].get("containerStatuses") or ():
            lag = self._cluster.late.get(one["image"])
            if lag is not None and time.monotonic() - pod.get("_ended", math.inf) > lag:
                one["imageID"] = self._image_id(one["image"])

    def _start(self, pod: Object) -> None:
        name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]
        process = self.execute(pod, container)
        self.processes[name] = process

        def follow() -> None:
            code = process.wait()
            with self._cluster.lock:
                self.ended(pod, code if code >= 0 else 128 - code)

        threading.Thread(target=follow, daemon=True).start()

    def execute(self, pod: Object, container: Object) -> "subprocess.Popen[bytes]":
        """The process of a container: here, without its image."""
        own = {e["name"]: e["value"] for e in container.get("env", ()) if "value" in e}
        own |= {e["name"]: "127.0.0.1" for e in container.get("env", ()) if _is_address(e)}
        own["JOB_COMPLETION_INDEX"] = str(pod["_index"])
        command = [*container.get("command", ()), *container.get("args", ())]
        for path, folder in self._folders(pod, container):
            own = {
                k: folder + v.removeprefix(path) if v.startswith(path) else v
                for k, v in own.items()
            }
            command = [folder + v.removeprefix(path) if v.startswith(path) else v for v in command]
        with (self._cluster.folder / f"{pod['metadata']['name']}.log").open("wb") as log:
            return subprocess.Popen(
                command,
                env={**os.environ, "PATH": PATH, "HOSTNAME": pod["metadata"]["name"], **own},
                stdout=log,
                stderr=log,
            )

    def _folders(self, pod: Object, container: Object) -> list[tuple[str, str]]:
        """Where a container sees the volumes that are folders here, and which they are."""
        claims = {
            v["name"]: v["persistentVolumeClaim"]["claimName"]
            for v in pod["spec"].get("volumes") or ()
            if "persistentVolumeClaim" in v
        }
        found = []
        for mount in container.get("volumeMounts") or ():
            folder = self._cluster.volumes.get(claims.get(mount["name"], ""))
            if folder is not None:
                place = folder / mount.get("subPath", "")
                place.mkdir(parents=True, exist_ok=True)
                found.append((f"{mount['mountPath']}/", f"{place}/"))
        return found

    def ended(self, pod: Object, code: int) -> None:
        """The container's process has ended, here or wherever a test has run it."""
        name, status = pod["metadata"]["name"], pod["status"]
        end = self._ends.pop(name, {})
        reason = end.get("container_reason") or ("Error" if code else "Completed")
        status["phase"] = "Failed" if code else "Succeeded"
        self._state(pod, {"terminated": {"exitCode": code, "reason": reason}})
        pod["_ended"] = time.monotonic()
        if end.get("phase_reason"):
            status |= {"reason": end["phase_reason"], "message": end["message"]}
        if "deletionTimestamp" in pod["metadata"] or (self._cluster.removes and not code):
            self._gone(pod)

    def _gone(self, pod: Object) -> None:
        """The Job controller has counted it, and lets it go."""
        pod["_counted"] = True
        self._cluster.pods.pop(pod["metadata"]["name"], None)
        self._cluster.count(pod["metadata"]["labels"]["job-name"], pod)

    def end(self, pod: Object) -> None:
        """SIGTERM, after the grace period SIGKILL; who has no process is gone at once."""
        process = self.processes.get(pod["metadata"]["name"])
        if process is None or process.poll() is not None:
            self._gone(pod)
            return
        process.terminate()
        timer = threading.Timer(self._cluster.grace, process.kill)
        timer.daemon = True
        timer.start()

    def kill(self, pod: Object, **end: str) -> None:
        """SIGKILL, without warning."""
        with self._cluster.lock:
            self._ends[pod["metadata"]["name"]] = end
            process = self.processes.get(pod["metadata"]["name"])
            if process is None:
                self.ended(pod, 137)
        if process is not None:
            process.kill()

    def freeze(self, pod: Object) -> None:
        """What is on a lost node does what it does; here it does nothing."""
        process = self.processes.get(pod["metadata"]["name"])
        if process is not None:
            process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
        for process in self.processes.values():
            process.wait()


def _waits_for(status: Object) -> str:
    statuses = status.get("containerStatuses") or [{}]
    return str(statuses[0].get("state", {}).get("waiting", {}).get("reason") or "")


def _is_address(variable: Object) -> bool:
    source = (variable.get("valueFrom") or {}).get("fieldRef") or {}
    return bool(source.get("fieldPath") == "status.podIP")


def _moved(text: str, path: str, folder: str) -> str:
    return folder + text.removeprefix(path) if text.startswith(path) else text
