"""A shop. `create_app` makes it, for production and for tests alike."""

import os

from celery import Celery

from shop import models


def create_app(database: str | None = None, broker: str | None = None) -> Celery:
    """Set up the database and return the Celery app."""
    celery = Celery("shop", broker=broker or os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
    celery.conf.task_default_queue = "shop"
    celery.conf.imports = ["shop.tasks", "shop.workflows"]
    celery.conf.shop_database = database or os.environ.get("SHOP_DATABASE", "shop.db")
    celery.set_default()
    models.create_tables()
    return celery
