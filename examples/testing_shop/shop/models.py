"""The shop's database: payments and parcels, each written at most once for each idempotency key."""

import sqlite3

from celery import current_app

SCHEMA = """
CREATE TABLE IF NOT EXISTS payments (key TEXT PRIMARY KEY, order_id TEXT, amount INTEGER, refunded INTEGER DEFAULT 0);
CREATE TABLE IF NOT EXISTS parcels (key TEXT PRIMARY KEY, order_id TEXT);
CREATE TABLE IF NOT EXISTS mails (order_id TEXT, text TEXT);
"""


def create_tables() -> None:
    with _database() as database:
        database.executescript(SCHEMA)


def add_payment(key: str, order_id: str, amount: int) -> None:
    with _database() as database:
        database.execute(
            "INSERT OR IGNORE INTO payments (key, order_id, amount) VALUES (?, ?, ?)", (key, order_id, amount)
        )


def refund(order_id: str) -> None:
    with _database() as database:
        database.execute("UPDATE payments SET refunded = 1 WHERE order_id = ?", (order_id,))


def add_parcel(key: str, order_id: str) -> None:
    with _database() as database:
        database.execute("INSERT OR IGNORE INTO parcels VALUES (?, ?)", (key, order_id))


def add_mail(order_id: str, text: str) -> None:
    with _database() as database:
        database.execute("INSERT INTO mails VALUES (?, ?)", (order_id, text))


def rows(table: str) -> list[tuple[object, ...]]:
    """Return everything in a table, for tests and for the curious."""
    with _database() as database:
        return database.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()  # noqa: S608 - our own names


def empty() -> None:
    with _database() as database:
        database.executescript("DELETE FROM payments; DELETE FROM parcels; DELETE FROM mails;")


def _database() -> sqlite3.Connection:
    # Each task has a connection of its own, which ends with it.
    return sqlite3.connect(current_app.conf.shop_database)
