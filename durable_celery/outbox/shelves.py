"""The outboxes that are relayed, by the settings ``durable_outbox`` and ``durable_outbox_prefix``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from durable_celery.databases import engine_of
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
    return SqlShelf(engine_of(source, "durable_outbox"), table_of(prefix))
