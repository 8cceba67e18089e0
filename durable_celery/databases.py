"""The user's databases, as settings name them."""

from __future__ import annotations

import os
from functools import partial
from importlib import import_module
from typing import Any

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import ArgumentError

from durable_celery.errors import ConfigurationError

__all__ = ["engine_of"]


def engine_of(source: Any, setting: str) -> Engine:
    """Return the engine that a setting names.

    Args:
        source: the URL of an SQL database, an engine, a function that returns one, or its dotted path
            (``shop.db:engine``).
        setting: the setting's name, for the error.

    Raises:
        ConfigurationError: it is none of these.
    """
    if isinstance(source, str):
        source = _named(source, setting)
    made = source() if callable(source) and not isinstance(source, Engine) else source
    if not isinstance(made, Engine):
        raise ConfigurationError(
            f"{setting} takes the URL of an SQL database, an engine, or what makes one, not {source!r}"
        )
    # A child of this process may use the same engine, and must not talk on our connections.
    os.register_at_fork(after_in_child=partial(made.dispose, close=False))
    return made


def _named(text: str, setting: str) -> Any:
    """Return what a URL or a dotted path stands for."""
    if "://" in text:
        try:
            return create_engine(text, pool_pre_ping=True)
        except (ArgumentError, ImportError) as error:
            # Without the text, which may have a password.
            raise ConfigurationError(f"{setting} is no URL of a database: {type(error).__name__}") from error
    module, _, name = text.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"{setting} names {text!r}, which cannot be imported: {error}") from error
