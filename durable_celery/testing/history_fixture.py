"""The pytest fixture ``durable_histories``: one test for each saved history.

A test that takes the fixture is repeated for each history of the folder that the marker ``durable_histories`` or the
ini option of the same name gives, and fails if it ends without having replayed it. What replays them is started once in
a session. As in :mod:`durable_celery.testing.plugin`, Celery is loaded only when the fixture is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from celery import Celery

    from durable_celery.errors import DurableError
    from durable_celery.testing.histories import HistoryReplay, SavedHistory

__all__ = ["HistoryCase", "durable_histories"]

#: The fixture, the marker and the ini option.
_NAME = "durable_histories"
_FOLDER = "tests/histories"


class HistoryCase:
    """One saved history, to be replayed by the test that was given it."""

    def __init__(self, saved: SavedHistory | DurableError, replays: Callable[[], HistoryReplay]) -> None:
        #: Where it is; or why there are no histories.
        self.saved = saved
        self.is_replayed = False
        self._replays = replays

    def replay(self) -> None:
        """Replay it against today's code.

        Raises:
            pytest.fail.Exception: the code does not do what the history says, the history cannot be read, its workflow
                is not known, or there are no histories. The message is all that is shown.
        """
        from durable_celery.testing.histories import HistoryFileError, ReplayError

        __tracebackhide__ = True
        self.is_replayed = True
        try:
            if isinstance(self.saved, Exception):
                raise self.saved
            self._replays().replay(self.saved)
        except (ReplayError, HistoryFileError) as error:
            pytest.fail(str(error), pytrace=False)


class _AllReplays:
    """What replays histories, by app."""

    def __init__(self) -> None:
        self._by_app: dict[Any, HistoryReplay] = {}

    def of(self, app: Celery | str, place: str) -> HistoryReplay:
        from durable_celery.testing.histories import HistoryReplay

        if app not in self._by_app:
            self._by_app[app] = HistoryReplay(app, place=place)
        return self._by_app[app]

    def close(self) -> None:
        for replays in self._by_app.values():
            replays.close()


@pytest.fixture(scope="session")
def durable_history_replays() -> Iterator[_AllReplays]:
    """Keep what replays histories for the whole session."""
    replays = _AllReplays()
    yield replays
    replays.close()


@pytest.fixture
def durable_histories(request: pytest.FixtureRequest, durable_history_replays: _AllReplays) -> HistoryCase:
    """Give a saved history; ``durable_histories.replay()`` replays it."""
    return HistoryCase(request.param, lambda: durable_history_replays.of(*_app(request)))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option."""
    parser.addini(_NAME, "folder of saved histories, from the root directory", default=_FOLDER)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", f"{_NAME}(folder=None, app=None): where the saved histories are, and their app (or its place)"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat a test for each saved history."""
    if _NAME not in metafunc.fixturenames:
        return
    from durable_celery.testing.histories import HistoryFileError, find_histories

    folder = metafunc.config.rootpath / str(_given(metafunc.definition, "folder") or metafunc.config.getini(_NAME))
    try:
        found: list[SavedHistory | DurableError] = [*find_histories(folder)]
    except HistoryFileError as error:
        # At the time of collection this would stop all tests of the module.
        found = [error]
    metafunc.parametrize(_NAME, found, indirect=True, ids=[_id(saved, folder) for saved in found])


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Fail a test that took a history and did not replay it: it would prove nothing."""
    result = yield
    case = pyfuncitem.funcargs.get(_NAME)
    if isinstance(case, HistoryCase) and not case.is_replayed:
        pytest.fail(f"the test ended without {_NAME}.replay()", pytrace=False)
    return result


def _app(request: pytest.FixtureRequest) -> tuple[Celery | str, str]:
    """Return the app, and where other processes find it, or nothing where that is to be found out."""
    from celery import current_app

    given: Celery | str | None = _given(request.node, "app")
    if given:
        return given, ""
    proxy: Any = current_app
    return request.getfixturevalue("durable_app") or proxy, str(request.config.getini("durable_app"))


def _given(node: Any, name: str) -> Any:
    """Return what the marker says of the folder or the app."""
    marker: pytest.Mark | None = node.get_closest_marker(_NAME)
    if marker is None:
        return None
    return {"folder": marker.args[0] if marker.args else None, **marker.kwargs}.get(name)


def _id(saved: SavedHistory | DurableError, folder: Path) -> str:
    if isinstance(saved, Exception):
        return "no-histories"
    name = saved.path.relative_to(folder) if saved.path != folder else Path(saved.path.name)
    text = name.with_suffix("").as_posix()
    return text if saved.line is None else f"{text}:{saved.line}"
