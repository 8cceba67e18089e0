"""One app for all tests, from the factory that production uses; an empty database for each test."""

import os
from pathlib import Path

import pytest
from celery import Celery
from shop import create_app, models


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Celery:
    path: Path = tmp_path_factory.mktemp("shop") / "shop.db"
    # Other processes make the app anew: real workers, and those that replay histories.
    os.environ["SHOP_DATABASE"] = str(path)
    return create_app()


@pytest.fixture
def durable_app(shop: Celery) -> Celery:
    """Tell the `durable` fixture which app is under test."""
    return shop


@pytest.fixture(autouse=True)
def empty_database(shop: Celery) -> None:
    models.empty()
