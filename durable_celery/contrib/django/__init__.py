"""Transactional steps with Django's ORM.

Add ``"durable_celery.contrib.django"`` to ``INSTALLED_APPS`` and run ``manage.py migrate``: it has one table,
``durable_outcomes``.
"""

from durable_celery.contrib.django.steps import transactional_step

__all__ = ["transactional_step"]
