"""The Django app."""

from django.apps import AppConfig


class DurableCeleryConfig(AppConfig):
    """Has the tables."""

    name = "durable_celery.contrib.django"
    label = "durable_celery"
    verbose_name = "durable_celery"
