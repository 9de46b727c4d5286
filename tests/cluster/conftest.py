"""The cluster of tests.cluster.running."""

from tests.cluster.running import adapters, cluster, referee, running  # noqa: F401  # fixtures
