"""Runs and steps as Kubernetes Jobs, of which none starts that is not pinned."""
