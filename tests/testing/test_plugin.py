"""The pytest plugin, as a user's test suite has it: installed with the library, and silent until it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

TASKS = """
from celery import Celery
from durable_celery import WorkflowContext, durable_task

app = Celery("{name}", broker="redis://nowhere.invalid:1/0", set_as_current={current})

@app.task(name="{name}.charge")
def charge(order_id: str, amount: int) -> str:
    return f"pay-{{order_id}}"

@durable_task(app=app, name="{name}.checkout")
def checkout(ctx: WorkflowContext, order_id: str, amount: int) -> str:
    return ctx.step(charge, order_id, amount)
"""


@pytest.fixture(autouse=True)
def settings(pytester: pytest.Pytester) -> None:
    """Keep the coverage, the timeouts and the paths of this suite out of the user's."""
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\npythonpath = .\n")


def write(pytester: pytest.Pytester, name: str, test: str, *, current: bool = False) -> None:
    pytester.makepyfile(**{name: TASKS.format(name=name, current=current), f"test_{name}": test})


def test_the_fixture_runs_a_workflow(pytester: pytest.Pytester) -> None:
    write(
        pytester,
        "corner",
        """
        from corner import charge, checkout
        from durable_celery.testing import fails

        def test_checkout(durable):
            assert durable.run(checkout, "o-1", 1200) == "pay-o-1"

        def test_checkout_with_a_stub(durable):
            assert durable.run(checkout, "o-1", 1200, steps={charge: "pay-7"}) == "pay-7"

        async def hidden(): ...
        """,
    )

    pytester.runpytest_subprocess().assert_outcomes(passed=2)


def test_the_app_is_the_current_one_before_anything_is_run(pytester: pytest.Pytester) -> None:
    write(
        pytester,
        "kiosk",
        """
        from kiosk import checkout

        def test_delay_first(durable):
            assert checkout.delay("o-1", 1200).get() == "pay-o-1"
        """,
        current=True,
    )

    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_the_app_may_be_named_in_the_settings(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\npythonpath = .\ndurable_app = market:app\n")
    write(
        pytester,
        "market",
        """
        def test_delay_first(durable, durable_app):
            from market import app, checkout
            assert durable_app is app
            assert checkout.delay("o-1", 1200).get() == "pay-o-1"
        """,
    )

    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_the_app_may_come_from_a_factory(pytester: pytest.Pytester) -> None:
    write(
        pytester,
        "stall",
        """
        import pytest
        from stall import app, checkout

        @pytest.fixture
        def durable_app():
            return app

        def test_delay_first(durable):
            assert checkout.delay("o-1", 1200).get() == "pay-o-1"
        """,
    )

    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_a_test_that_waits_for_ever_fails_with_the_story(pytester: pytest.Pytester) -> None:
    write(
        pytester,
        "booth",
        """
        from booth import app
        from durable_celery import durable_task

        @durable_task(app=app, name="booth.wait")
        def wait(ctx):
            return ctx.wait_signal("decision")

        def test_wait(durable):
            durable.run(wait)
        """,
    )

    result = pytester.runpytest_subprocess()

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *(booth.wait) waits for signal decision"])


def test_a_suite_that_does_not_use_it_loads_no_celery(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys

        def test_nothing_is_loaded():
            assert "durable_celery.testing.plugin" in sys.modules
            assert not {"celery", "kombu", "greenlet", "durable_celery.task"} & set(sys.modules)
        """)

    # pytest-celery, which is installed here, loads Celery itself.
    pytester.runpytest_subprocess("-p", "no:celery", "-p", "no:pytest_celery", "-p", "no:xdist").assert_outcomes(
        passed=1
    )


def test_loading_the_plugin_imports_pytest_alone() -> None:
    code = (
        "import durable_celery.testing.plugin, sys;"
        "print(sorted({'celery', 'kombu', 'greenlet', 'redis', 'sqlalchemy'} & set(sys.modules)))"
    )

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert shown.stdout.strip() == "[]"
