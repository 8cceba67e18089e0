"""Settings are Celery settings; a wrong one is refused with a text that says what to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from durable_celery import ConfigurationError, durable_task
from durable_celery.app import binding_of, open_store
from durable_celery.settings import Settings
from durable_celery.store.protocol import NewRun
from durable_celery.store.redis import RedisStore
from durable_celery.store.sql import SqlStore
from tests.servers import RedisCluster


def _app(**settings: Any) -> Celery:
    app = Celery("settings", set_as_current=False, broker="memory://")
    app.conf.update(settings)
    return app


def test_settings_have_defaults_and_are_read_with_their_prefix() -> None:
    settings = Settings.of(_app(durable_namespace="mine", durable_shards=3, durable_allow=["eager"]))

    assert (settings.namespace, settings.shards, settings.allow) == ("mine", 3, ("eager",))
    assert settings.owner_ttl == 10.0


def test_settings_are_read_in_the_apps_namespace() -> None:
    app = Celery("django-like", set_as_current=False)
    app.config_from_object(
        SimpleNamespace(CELERY_BROKER_URL="memory://", CELERY_DURABLE_STORE="redis://h/3", OTHER=1), namespace="CELERY"
    )

    assert Settings.of(app).store == "redis://h/3"


@pytest.mark.parametrize("namespaced", [False, True])
def test_an_unknown_setting_is_refused_with_the_known_ones(namespaced: bool) -> None:
    app = _app(durable_stor="redis://h/3")
    if namespaced:
        app = Celery("namespaced", set_as_current=False)
        app.config_from_object(SimpleNamespace(CELERY_DURABLE_STOR="redis://h/3"), namespace="CELERY")

    with pytest.raises(ConfigurationError, match=r"no setting 'durable_stor'.*durable_store"):
        Settings.of(app)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shards", 0),
        ("shards", 1.5),
        ("shards", True),
        ("owner_ttl", "10"),
        ("owner_ttl", 0),
        ("retention", -1),
        ("cache_size", -1),
        ("namespace", "a b"),
        ("namespace", ""),
        ("store", 5),
        ("allow", "pickle"),
        ("allow", [1]),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"durable_{name}"):
        Settings.of(_app(**{f"durable_{name}": value}))


def test_without_any_redis_the_missing_store_is_named() -> None:
    with pytest.raises(ConfigurationError, match="Set durable_store"):
        binding_of(_app())


@pytest.mark.parametrize("name", ["broker_url", "result_backend", "durable_store"])
def test_the_store_is_the_setting_or_else_whichever_is_redis(redis_url: str, name: str) -> None:
    assert isinstance(binding_of(_app(**{name: redis_url})).store, RedisStore)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("broker_url", "sqla+"), ("result_backend", "db+"), ("durable_store", ""), ("durable_store", "db+")],
)
def test_the_store_may_be_an_sql_database(tmp_path: Path, name: str, prefix: str) -> None:
    app = _app(durable_namespace="mine", **{name: f"{prefix}sqlite:///{tmp_path}/x.db"})

    store = binding_of(app).store

    assert isinstance(store, SqlStore)
    store.start(NewRun(workflow_id="w", name="flow", payload="[[],{}]", digest="d"))
    assert {table.name for table in store._server.tables.metadata.sorted_tables} >= {"mine_runs", "mine_events"}


@pytest.mark.parametrize("namespace", ["Shop", "shop-1"])
def test_a_namespace_that_names_no_tables_is_refused_for_an_sql_database(tmp_path: Path, namespace: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot name tables"):
        binding_of(_app(durable_namespace=namespace, durable_store=f"sqlite:///{tmp_path}/x.db"))


def test_eager_mode_is_refused_at_a_start(redis_url: str) -> None:
    app = _app(task_always_eager=True, durable_store=redis_url)

    @durable_task(app=app)
    def flow(ctx: Any) -> None: ...

    with pytest.raises(ConfigurationError, match="task_always_eager"):
        flow.delay()


def test_options_that_belong_to_steps_are_refused() -> None:
    with pytest.raises(TypeError, match="autoretry_for"):

        @durable_task(app=_app(), autoretry_for=(ValueError,))
        def flow(ctx: Any) -> None: ...


def test_a_workflow_of_one_app_is_not_in_another() -> None:
    app, other = _app(), _app()

    @durable_task(app=app, name="only.here")
    def flow(ctx: Any) -> None: ...

    app.finalize()
    other.finalize()
    assert "only.here" in app.tasks
    assert "only.here" not in other.tasks


def test_a_workflow_needs_a_context() -> None:
    with pytest.raises(TypeError, match="context"):

        @durable_task(app=_app())  # type: ignore[arg-type] # the mistake that is tested
        def flow() -> None: ...


def test_a_cluster_url_opens_the_store_on_redis_cluster(redis_cluster: RedisCluster) -> None:
    app = _app(durable_store=redis_cluster.url.replace("redis://", "redis+cluster://"), durable_shards=6)
    store = open_store(app, Settings.of(app))

    for number in range(12):
        store.start(NewRun(workflow_id=f"w-{number}", name="flow", payload="[[],{}]", digest="d"))

    assert {run.workflow_id for run in store.runs().runs} == {f"w-{number}" for number in range(12)}
