"""Transactional steps, starts and signals with Django's ORM.

Add ``"durable_celery.contrib.django"`` to ``INSTALLED_APPS`` and run ``manage.py migrate``: it has two tables,
``durable_outcomes`` and ``durable_outbox``.
"""

from durable_celery.contrib.django.outbox import outbox
from durable_celery.contrib.django.steps import transactional_step

__all__ = ["outbox", "transactional_step"]
