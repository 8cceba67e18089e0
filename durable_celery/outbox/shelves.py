"""The outboxes that are relayed, by the settings ``durable_outbox`` and ``durable_outbox_prefix``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import ArgumentError

from durable_celery.errors import ConfigurationError
from durable_celery.outbox.tables import SqlShelf, table_of

if TYPE_CHECKING:
    from durable_celery.outbox.entries import Shelf

__all__ = ["shelves_of"]

#: How ``durable_outbox`` names a database of Django's.
_DJANGO = "django:"


def shelves_of(setting: Any, prefix: str) -> list[Shelf]:
    """Return the outboxes that ``durable_outbox`` names.

    Args:
        setting: a URL, an engine, a function that returns one, its dotted path (``shop.db:engine``), or
            ``django:<alias>``; or a list of these.
        prefix: what the name of the table begins with.

    Raises:
        ConfigurationError: it is none of these.
    """
    sources = setting if isinstance(setting, list | tuple) else [setting]
    return [_shelf(source, prefix) for source in sources if source]


def _shelf(source: Any, prefix: str) -> Shelf:
    if isinstance(source, str) and source.startswith(_DJANGO):
        # By name: nothing below imports what belongs to a framework.
        django = import_module("durable_celery.contrib.django.outbox")
        shelf: Shelf = django.DjangoShelf(source.removeprefix(_DJANGO))
        return shelf
    return SqlShelf(_engine(source), table_of(prefix))


def _engine(source: Any) -> Engine:
    if isinstance(source, str):
        source = _named(source)
    made = source() if callable(source) and not isinstance(source, Engine) else source
    if not isinstance(made, Engine):
        raise ConfigurationError(
            f"durable_outbox takes the URL of an SQL database, an engine, or what makes one, not {source!r}"
        )
    return made


def _named(text: str) -> Any:
    """Return what a URL or a dotted path stands for."""
    if "://" in text:
        try:
            return create_engine(text, pool_pre_ping=True)
        except (ArgumentError, ImportError) as error:
            # Without the text, which may have a password.
            raise ConfigurationError(f"durable_outbox is no URL of a database: {type(error).__name__}") from error
    module, _, name = text.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"durable_outbox names {text!r}, which cannot be imported: {error}") from error
