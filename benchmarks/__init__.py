"""How fast durable_celery is, against raw Celery tasks, ``chain`` and ``chord`` in the same run.

Real worker processes on a Redis server of their own. Absolute times mean little on a shared machine, so each figure is
measured next to its rival, A B A B, and what counts is the ratio. ``python -m benchmarks --help`` says the rest.
"""
