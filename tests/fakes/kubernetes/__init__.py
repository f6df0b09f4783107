"""A FAKE of Kubernetes: API server, Job controller, scheduler and kubelet, for one namespace.

It is driven only through the real client, over HTTP, and follows what clusters of 1.36 were seen
to do:

- A Job is judged little: an unknown PriorityClass, a full quota and a bad image string are taken,
  and fail when the pod is made (event FailedCreate) or started. It goes on once quota frees.
- 404 NotFound, 409 AlreadyExists, uid, resourceVersion, labelSelector and fieldSelector.
- A pod that is preempted, drained or deleted gets its condition DisruptionTarget (not by hand), a
  deletionTimestamp, SIGTERM, after the grace period SIGKILL, and is gone; a pod that the kubelet
  evicts stays, Failed. A pod of a lost node keeps running for whoever looks.
- A Job whose pods failed more often than its backoffLimit (its default is 6) is Failed with
  BackoffLimitExceeded; below that its controller makes another pod.
- What runs out of memory ends with 137, OOMKilled. Images that cannot be pulled wait in
  ErrImagePull and ImagePullBackOff, and the Job does not fail of it.
- 401 for a token that is not valid any more; 403, 429 with Retry-After, 5xx, answers that never
  come and connections that break, as a test puts them in its way.

The containers are processes here that execute the real `dagster api`, without the image. It
validates no manifest, knows no GPU and no PodDisruptionBudget, and its back-offs are short.
"""

from tests.fakes.kubernetes.cluster import NAMESPACE, Cluster, Fault, failure
from tests.fakes.kubernetes.server import running

__all__ = ["NAMESPACE", "Cluster", "Fault", "failure", "running"]
