"""The pytest plugin: the fixtures of ``durable_celery.testing``.

It is loaded in every test session of an environment that has this library, also in those that do not use it. So nothing
is imported here but what pytest itself has: Celery is loaded, and an app is looked at, when a fixture is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from durable_celery.testing.environment import Environment

__all__ = ["durable", "durable_app", "pytest_addoption"]

#: The fixture ``durable_histories``.
pytest_plugins = ("durable_celery.testing.history_fixture",)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the settings of the fixtures."""
    parser.addini("durable_app", "The Celery app under test, as for `celery -A`: the `durable` fixture binds to it.")


@pytest.fixture
def durable_app(request: pytest.FixtureRequest) -> Celery | None:
    """Give the app under test: the setting ``durable_app``, else None.

    A test suite that makes its app in a factory overrides this fixture and returns the app. Without an app, the
    ``durable`` fixture takes the process's current one, or that of the first workflow that is run.
    """
    name = str(request.config.getini("durable_app"))
    if not name:
        return None
    from celery.app.utils import find_app

    app: Celery = find_app(name)
    return app


@pytest.fixture
def durable(durable_app: Celery | None) -> Iterator[Environment]:
    """Run the app's workflows in this process, without a server: see :class:`durable_celery.testing.Environment`."""
    from durable_celery.testing.environment import Environment

    with Environment(durable_app) as environment:
        yield environment
