"""A step that kills its process each time fails after its attempts, and harms nobody else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from durable_celery import StepLostError
from durable_celery.settings import Settings
from tests.sites import Site, check_history


def test_a_poison_step_fails_after_its_attempts_while_other_runs_complete(
    make_site: Callable[..., Site], broker: str
) -> None:
    site = make_site(broker=broker)
    worker = site.worker()
    by_default, by_policy = str(site.directory / "default"), str(site.directory / "policy")
    (site.directory / "default").mkdir()
    (site.directory / "policy").mkdir()

    poisoned = [site.start("poisoned", by_default, None), site.start("poisoned", by_policy, 3)]
    others = [site.start("sequence", str(site.directory), 6) for _ in range(10)]
    site.wait_all([*others, *poisoned], timeout=60)

    for handle, attempts in zip(poisoned, (Settings().lost_attempts, 3), strict=True):
        with pytest.raises(StepLostError, match=f"lost its process {attempts} times"):
            handle.get(timeout=1)
    assert len(site.notes("default/poison")) == Settings().lost_attempts
    assert len(site.notes("policy/poison")) == 3
    for handle in others:
        check_history(handle)
    assert worker.is_running
