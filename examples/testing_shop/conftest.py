"""Real workers for tests. They need `pip install "durable-celery[nodes]"`."""

pytest_plugins = ["durable_celery.testing.nodes"]
