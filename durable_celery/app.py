"""The binding to a Celery app: its store, engine and client.

Importing this module binds every app of the process when it is finalized: the bootstep is added to its workers, and
nothing else happens until a durable task is used. A :class:`Binding` belongs to one app and is made on first use.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from celery._state import _get_active_apps, connect_on_app_finalize

from durable_celery.client import Client
from durable_celery.codec import Codec, chain_of
from durable_celery.dispatch import CeleryDispatcher
from durable_celery.engine import Engine, HistoryLimits, Patience
from durable_celery.errors import ConfigurationError, WorkflowCodeError
from durable_celery.handle import WorkflowHandle
from durable_celery.identity import process_name
from durable_celery.mail import PostOffice, check_place
from durable_celery.outbox.post import Post
from durable_celery.settings import Settings
from durable_celery.store.protocol import Timing
from durable_celery.versions import versions_of

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from celery import Celery

    from durable_celery.archive import Archive
    from durable_celery.pace import Pace
    from durable_celery.store.protocol import StepMessage, Store
    from durable_celery.workflow import Definition, Signal

__all__ = ["EAGER", "Binding", "binding_of", "bound", "timing_of"]


class Binding:
    """What one Celery app has of durable_celery: settings, store, engine and client."""

    def __init__(self, app: Celery, *, store: Store | None = None) -> None:
        """Bind an app; ``store`` is for tests, else the settings say where runs live.

        Raises:
            ConfigurationError: a setting is wrong, or no store can be found.
        """
        self.app, self.settings = app, Settings.of(app)
        chain = chain_of(self.settings.codec)
        self.codec = Codec(self.settings.payload_limit, chain, accepts_plain=self.settings.codec_plain)
        #: Whether Celery, its result backend and its monitors are kept from seeing how runs and steps end.
        self.hides_ends = self.codec.hides and not self.settings.reveal_results
        self.store = store or open_store(app, self.settings)
        self.dispatcher = CeleryDispatcher(app, self.codec, self._reject)
        self.engine = Engine(
            self.store,
            self.dispatcher,
            self.definition,
            process=process_name,
            codec=self.codec,
            cache_size=self.settings.cache_size,
            lost_attempts=self.settings.lost_attempts,
            patience=Patience(self.settings.patience),
        )
        #: Makes the messages that the store itself puts into the broker, if it does.
        self.post_office: PostOffice | None = None
        if self.settings.atomic_publish:
            check_place(app, self.settings.store)
            self.post_office = PostOffice(app, self.dispatcher)
            self.engine.mail_of = self.post_office.mail_of
        self.engine.limits = HistoryLimits(events=self.settings.history_limit, size=self.settings.history_bytes_limit)
        #: Where closed runs are kept for good, if anywhere. A test's store has none.
        self.archive = None if store is not None else archive_of(self.settings)
        self.client = Client(
            store=_seen_by_clients(self.store, self.archive, self.settings),
            engine=self.engine,
            codec=self.codec,
            inbox_limit=self.settings.inbox_limit,
            declared=self.declared_signals,
            post=Post(is_relayed=bool(self.settings.outbox), prefix=self.settings.outbox_prefix),
        )
        #: Whether this process belongs to a worker that was started with ``-E``.
        self.sends_events = False
        #: How far this process may run ahead, if it belongs to a worker.
        self.pace: Pace | None = None

    def definition(self, name: str, version: int) -> Definition:
        """Return the code of a version of a workflow.

        Raises:
            WorkflowCodeError: it is not registered here.
        """
        versions = versions_of(self.app, name)
        if not versions:
            msg = f"the workflow {name!r} is not registered in this process; import its module in the worker"
            raise WorkflowCodeError(msg)
        if version not in versions:
            known = ", ".join(map(str, sorted(versions)))
            msg = (
                f"version {version} of the workflow {name!r} is not registered in this process, only {known}; keep the "
                "code of a version until its last run has ended, or start a worker that has it"
            )
            raise WorkflowCodeError(msg)
        definition: Definition = versions[version].definition
        return definition

    def declared_signals(self) -> dict[str, Mapping[str, Signal[Any]]]:
        """Return what the app's workflows say that they take; those that say nothing are left out.

        A run may be of any version, so what one of them takes is not refused.
        """
        found: dict[str, Mapping[str, Signal[Any]]] = {}
        for name in self.app.tasks:
            takes = [task.takes for _, task in sorted(versions_of(self.app, name).items())]
            if takes and all(takes):
                found[name] = {signal: one for each in takes for signal, one in each.items()}
        return found

    def handle(self, workflow_id: str) -> WorkflowHandle[Any]:
        """Return the handle of a run, which need not exist."""
        return WorkflowHandle(workflow_id, client=self.client, app=self.app)

    def _reject(self, message: StepMessage, error: Exception) -> None:
        self.engine.revoke_step(message.key, error)


#: URL schemes of stores on Redis or Valkey, and what the client library calls them.
REDIS_SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "redis+socket": "redis+socket",
    "unix": "unix",
    "valkey": "redis",
    "valkeys": "rediss",
    "redis+cluster": "redis",
    "rediss+cluster": "rediss",
}

#: First parts of URL schemes of SQL databases; kombu's transport and Celery's backend put "sqla+" or "db+" before them.
SQL_DIALECTS = {"postgresql", "postgres", "mysql", "mariadb", "sqlite"}


def open_store(app: Celery, settings: Settings) -> Store:
    """Open the store that the settings name: ``durable_store``, else the broker or the result backend.

    Raises:
        ConfigurationError: none of them is a store that this release knows.
    """
    candidates = [settings.store, app.conf.broker_url or "", app.conf.result_backend or ""]
    for url in filter(None, candidates):
        first = url.split(";")[0] if isinstance(url, str) else url[0]
        scheme, _, place = first.partition("://")
        if scheme in REDIS_SCHEMES:
            from durable_celery.store.redis import RedisStore

            return RedisStore.from_url(
                f"{REDIS_SCHEMES[scheme]}://{place}",
                namespace=settings.namespace,
                shards=settings.shards,
                timing=timing_of(settings),
                cluster=scheme.endswith("+cluster"),
            )
        if scheme.removeprefix("sqla+").removeprefix("db+").partition("+")[0] in SQL_DIALECTS:
            from durable_celery.store.sql import SqlStore

            return SqlStore(first, namespace=settings.namespace, timing=timing_of(settings))
        if url == settings.store:
            break
    msg = (
        "durable_celery needs a store for its histories. Set durable_store to the URL of a Redis, Valkey or SQL "
        "database, such as redis://localhost:6379/0 or postgresql+psycopg://localhost/shop (the broker is "
        f"{app.connection_for_write().as_uri()})"
    )
    raise ConfigurationError(msg)


def archive_of(settings: Settings) -> Archive | None:
    """Return the archive that the settings name.

    Raises:
        ConfigurationError: they name one that cannot be.
    """
    if not settings.archive:
        return None
    # It brings SQLAlchemy along, which not every app needs.
    from durable_celery.archive import Archive

    return Archive(settings.archive, settings.namespace)


def _seen_by_clients(store: Store, archive: Archive | None, settings: Settings) -> Store:
    if archive is None:
        return store
    from durable_celery.archive import with_archive

    return with_archive(store, archive, settings.retention)


def timing_of(settings: Settings) -> Timing:
    """Return the store's waits from the settings."""
    return Timing(
        owner_ttl=settings.owner_ttl,
        resend_after=settings.resend_after,
        resend_limit=settings.resend_limit,
        retention=settings.retention,
    )


_bindings: WeakKeyDictionary[Celery, Binding] = WeakKeyDictionary()


def binding_of(app: Celery) -> Binding:
    """Return the binding of an app, making it on first use (client, worker).

    Raises:
        ConfigurationError: see :class:`Binding`.
    """
    app = app._get_current_object() if hasattr(app, "_get_current_object") else app  # noqa: SLF001 - Celery's proxy
    if app not in _bindings:
        _bindings[app] = Binding(app)
    return _bindings[app]


@contextmanager
def bound(binding: Binding) -> Generator[None, None, None]:
    """Let the app of a binding have it for a while, in the place of its own (tests)."""
    before = _bindings.get(binding.app)
    _bindings[binding.app] = binding
    try:
        yield
    finally:
        if before is None:
            del _bindings[binding.app]
        else:
            _bindings[binding.app] = before


EAGER = (
    "task_always_eager runs tasks inside the caller, where a workflow cannot wait, sleep or survive anything. "
    "Unset it, and test workflows with durable_celery.testing"
)


def _install(app: Celery) -> None:
    """Add the bootstep to an app's workers, by name: only a worker imports it."""
    steps: Any = app.steps
    steps["worker"].add("durable_celery.worker:DurableStep")


connect_on_app_finalize(_install)
for _app in _get_active_apps():
    if _app.finalized:
        _install(_app)
