"""Workers that end in good order, and pool children that are replaced while they work, lose and repeat nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from tests.sites import Site, check_history, repeats


def test_a_warm_shutdown_under_load_loses_and_repeats_nothing(make_site: Callable[..., Site], broker: str) -> None:
    site = make_site(broker=broker, durable_resend_after=2.0, durable_resend_limit=4.0)
    leaving, _ = site.worker(), site.worker()
    handles = [site.start("sequence", str(site.directory), 5, 0.02) for _ in range(20)]
    site.wait_for_notes("effects", 10)

    # Celery itself may not come to its end here, when a message arrives in the very moment; nothing may depend on it.
    os.kill(leaving.pid, signal.SIGTERM)
    site.wait_all(handles, timeout=60)

    for handle in handles:
        check_history(handle)
    assert repeats(site.notes("effects")) == {}
    assert "Warm shutdown" in leaving.log


def test_recycled_pool_children_lose_and_repeat_nothing(make_site: Callable[..., Site], broker: str) -> None:
    site = make_site(broker=broker, worker_max_tasks_per_child=5)
    site.worker()
    handles = [site.start("sequence", str(site.directory), 5) for _ in range(12)]

    site.wait_all(handles, timeout=90)

    for handle in handles:
        check_history(handle)
    effects = site.notes("effects")
    assert repeats(effects) == {}
    assert len({pid for _, _, pid in effects}) >= 60 // 5
