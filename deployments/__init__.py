"""Deployments: prefect.yaml and recipes, bootstrap, the worker, a cluster of local processes."""

#: The work pool that deployments go to and workers poll.
POOL = "b3"
