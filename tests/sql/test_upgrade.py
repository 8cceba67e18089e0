"""A database with running workflows is upgraded, in two steps, under workers that live through both."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect, text

from durable_celery.store.sql.schema import SCHEMA, VERSIONS, migrate
from tests.databases import Database, tables_at
from tests.sites import Site, check_history
from tests.waiting import wait_until

#: A pair of revisions of a release to come.
BEFORE = """
from alembic import op
import sqlalchemy as sa

revision, down_revision, branch_labels, depends_on = "durable_0002", "durable_0001", None, None


def upgrade():
    namespace = op.get_context().opts["durable_namespace"]
    op.add_column(f"{namespace}_runs", sa.Column("region", sa.String(16)))
    op.execute(f"UPDATE {namespace}_schema SET version = 2")
"""
AFTER = """
from alembic import op
import sqlalchemy as sa

revision, down_revision, branch_labels, depends_on = "durable_0002_post", "durable_0002", None, None
phase = "post"


def upgrade():
    namespace = op.get_context().opts["durable_namespace"]
    op.execute(f"UPDATE {namespace}_runs SET region = 'eu' WHERE region IS NULL")
    if op.get_bind().dialect.name != "sqlite":
        op.alter_column(
            f"{namespace}_runs", "region", existing_type=sa.String(16), nullable=False, server_default="eu"
        )
"""


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def tables(request: pytest.FixtureRequest) -> Iterator[Database]:
    shared: Database = request.getfixturevalue(f"{request.param}_tables")
    with tables_at(shared.url) as tables:
        yield tables


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    """The revisions of a release to come."""
    folder = tmp_path / "versions"
    shutil.copytree(VERSIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "durable_0002.py").write_text(BEFORE)
    (folder / "durable_0002_post.py").write_text(AFTER)
    return folder


def upgrade(tables: Database, versions: Path, *, post: bool) -> tuple[int, dict[str, Any]]:
    """Run the revisions; return the schema's number, and what the database knows of the new column."""
    engine = create_engine(tables.url)
    with engine.begin() as connection:
        migrate(connection, tables.namespace, post=post, versions=versions)
    with engine.connect() as connection:
        number = connection.execute(text(f"SELECT MAX(version) FROM {tables.namespace}_schema")).scalar_one()  # noqa: S608 - ours
        columns = {column["name"]: column for column in inspect(connection).get_columns(f"{tables.namespace}_runs")}
    engine.dispose()
    return number, dict(columns.get("region", {}))


def test_workflows_go_on_before_between_and_after(
    make_site: Callable[..., Site], tables: Database, versions: Path, rabbitmq_url: str
) -> None:
    site = make_site(tables, rabbitmq_url)
    site.worker()
    directory = str(site.directory)
    handle = site.start("rounds", directory, 3)
    site.wait_for_notes("effects", 2)

    number, column = upgrade(tables, versions, post=False)
    assert (number, column["nullable"]) == (SCHEMA + 1, True)
    # Nothing is left to be done before the deploy.
    assert upgrade(tables, versions, post=False)[0] == SCHEMA + 1
    handle.signal("round", 1)
    site.wait_for_notes("effects", 4)

    number, column = upgrade(tables, versions, post=True)
    assert (number, column["nullable"]) == (SCHEMA + 1, tables.url.startswith("sqlite"))
    handle.signal("round", 2)
    site.wait_for_notes("effects", 6)
    late = site.start("fan_out", 3)
    handle.signal("round", 3)

    assert handle.get(timeout=40) == [0, 10, 1, 0, 10, 2, 0, 10, 3]
    assert late.get(timeout=40) == 6
    check_history(handle)
    wait_until(lambda: handle.describe().delivered, 30, site.story)
    assert "ERROR" not in site.workers[0].log
