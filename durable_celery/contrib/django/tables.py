"""What is said where a Django database has not our tables."""

from __future__ import annotations

__all__ = ["missing"]


def missing(using: str, table: str) -> str:
    """Return the message."""
    return (
        f'database "{using}" has no table {table}: add "durable_celery.contrib.django" to INSTALLED_APPS and run '
        "manage.py migrate"
    )
