"""The fake cluster, by the name that tests know it by."""

from tests.fakes.kubernetes import NAMESPACE, Cluster, Fault, failure, running

__all__ = ["NAMESPACE", "Cluster", "Fault", "failure", "running"]
