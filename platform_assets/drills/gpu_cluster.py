"""A stand-in for an API server with GPU nodes: it lists nodes and pods, takes Jobs, and schedules.

Its scheduler knows what the drill needs: required and preferred node affinity, and whether the GPUs
fit. Where nothing is preferred the node with the most free is taken, as LeastAllocated does.
Taints, preemption, queues and all that is no GPU are left out; what is scheduled runs no code.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from platform_assets.domain.gpu_pods import GPU, HOST_LABEL, MODEL_LABEL

Object = dict[str, Any]


def gpu_node(name: str, gpus: int, model: str = "", **spec: Any) -> Object:
    """A node that is ready, as the API server lists it."""
    labels = {HOST_LABEL: name}
    if model:
        labels[MODEL_LABEL] = model
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
        "status": {
            "allocatable": {"cpu": "64", GPU: str(gpus)},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    }


def held_pod(name: str, node: str, gpus: int, namespace: str = "others") -> Object:
    """A pod of somebody else that runs."""
    resources = {"requests": {GPU: str(gpus)}, "limits": {GPU: str(gpus)}}
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": name, "namespace": namespace, "labels": {"job-name": name}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "resources": resources}]},
        "status": {"phase": "Running"},
    }


def gpus_of(pod: Object) -> int:
    """GPUs of a pod's containers."""
    resources = [c.get("resources") or {} for c in pod["spec"]["containers"]]
    return sum(int((r.get("limits") or {}).get(GPU, 0)) for r in resources)


def schedule(nodes: dict[str, Object], pods: list[Object], pod: Object) -> tuple[str, str]:
    """The node, or why there is none."""
    wanted = gpus_of(pod)
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = required.get("nodeSelectorTerms")
    scores: dict[str, tuple[int, int]] = {}
    short = 0
    for name, node in nodes.items():
        if node["spec"].get("unschedulable"):
            continue
        if terms is not None and not any(_matches(node, term) for term in terms):
            continue
        held = sum(gpus_of(p) for p in pods if p["spec"].get("nodeName") == name)
        free = int(node["status"]["allocatable"].get(GPU, 0)) - held
        if free < wanted:
            short += 1
            continue
        soft = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
        likes = sum(one["weight"] for one in soft if _matches(node, one["preference"]))
        scores[name] = (likes, free)
    if scores:
        return max(scores, key=lambda name: scores[name]), ""
    return "", f"0/{len(nodes)} nodes are available: {short} Insufficient {GPU}."


def _matches(node: Object, term: Object) -> bool:
    labels = node["metadata"]["labels"]
    return all(
        (labels.get(e["key"]) in e["values"]) == (e["operator"] == "In")
        for e in term["matchExpressions"]
    )


class GpuCluster:
    """Nodes and pods, with what the API server would do about them.

    Attributes:
        url: of the server, while `serving`.
    """

    def __init__(self, nodes: list[Object], pods: list[Object]) -> None:
        self.nodes = {node["metadata"]["name"]: node for node in nodes}
        self.pods = {pod["metadata"]["name"]: pod for pod in pods}
        self.url = ""
        self._lock = threading.RLock()

    def create(self, job: Object) -> Object:
        """A Job, and its pod."""
        with self._lock:
            name = job["metadata"]["name"]
            metadata = {"name": f"{name}-0", "namespace": "signalbox", "labels": {"job-name": name}}
            pod = {"kind": "Pod", "apiVersion": "v1", "metadata": metadata}
            pod |= {"spec": dict(job["spec"]["template"]["spec"]), "status": {"phase": "Pending"}}
            self.pods[metadata["name"]] = pod
            self._schedule()
            return job

    def end(self, name: str) -> None:
        """A pod ends, and gives back its GPUs."""
        with self._lock:
            del self.pods[name]
            self._schedule()

    def listed(self, kind: str) -> Object:
        """As the API server answers."""
        with self._lock:
            things = {"nodes": self.nodes, "pods": self.pods}.get(kind, {})
            return json.loads(json.dumps({"kind": "List", "items": list(things.values())}))  # type: ignore[no-any-return]

    def _schedule(self) -> None:
        for pod in self.pods.values():
            if pod["status"]["phase"] != "Pending":
                continue
            held = [p for p in self.pods.values() if p["status"]["phase"] == "Running"]
            node, why = schedule(self.nodes, held, pod)
            if node:
                pod["spec"]["nodeName"] = node
                pod["status"] = {"phase": "Running"}
            else:
                condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
                pod["status"]["conditions"] = [{**condition, "message": why}]

    @contextmanager
    def serving(self) -> Iterator["GpuCluster"]:
        """Answer on a port of the loopback."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _handler(cluster: GpuCluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self, document: Object) -> None:
            content = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self._answer(cluster.listed(self.path.partition("?")[0].rpartition("/")[2]))

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self._answer(cluster.create(json.loads(self.rfile.read(length))))

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
