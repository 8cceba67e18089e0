"""The relay: in each worker, it takes starts and signals from the outboxes of the user's databases to the store."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from durable_celery.codec import Place
from durable_celery.engine.starting import start_run
from durable_celery.errors import (
    CodecError,
    DurableError,
    InboxFullError,
    StoreUnavailableError,
    WorkflowNotFoundError,
)
from durable_celery.outbox import Entry, Later, Parked
from durable_celery.outbox.entries import START
from durable_celery.outbox.shelves import shelves_of

if TYPE_CHECKING:
    from durable_celery.app import Binding
    from durable_celery.outbox import Verdict

__all__ = ["Relay"]

_log = logging.getLogger(__name__)
#: How many entries are relayed in one transaction.
_BATCH = 100
#: Longest wait between two tries of an entry, and for how long it is tried, in seconds.
_LONGEST_WAIT, _PATIENCE = 60.0, 86400.0


class Relay:
    """Relays for ever; any number of workers may do so at once."""

    def __init__(self, binding: Binding) -> None:
        """Serve the outboxes that the settings name.

        Raises:
            ConfigurationError: the setting names none.
        """
        self.binding, settings = binding, binding.settings
        self.interval = settings.sweep_interval
        self.shelves = shelves_of(settings.outbox, settings.outbox_prefix)

    def check(self) -> None:
        """Look whether each outbox has its table.

        Raises:
            ConfigurationError: one has not.
            StoreUnavailableError: a database does not answer; the others have their tables.
        """
        away = None
        for shelf in self.shelves:
            try:
                shelf.check()
            except StoreUnavailableError as error:
                away = error
        if away is not None:
            raise away

    def relay(self) -> float:
        """Relay what is due; return the seconds until the next look."""
        return 0.0 if self.look() >= _BATCH else self.interval

    def look(self) -> int:
        """Relay what is due, up to a batch from each outbox; return how much there was in the fullest."""
        return max((shelf.hand_out(self._take, _BATCH) for shelf in self.shelves), default=0)

    def _take(self, entry: Entry) -> Verdict:
        try:
            (self._start if entry.kind == START else self._signal)(entry)
        except StoreUnavailableError:
            # It is not the entry's fault, and all others would meet the same.
            raise
        except (WorkflowNotFoundError, InboxFullError, CodecError) as error:
            # Its run may be in a transaction that is still open; the run may make room; the key may come.
            if time.time() - entry.at / 1000 < _PATIENCE:
                return Later(min(0.25 * 2 ** min(entry.tries, 20), _LONGEST_WAIT), str(error))
            return self._park(entry, error)
        except DurableError as error:
            return self._park(entry, error)
        return None

    def _start(self, entry: Entry) -> None:
        binding, new = self.binding, entry.new_run()
        place = Place(new.workflow_id, "start")
        text = binding.codec.open(new.payload, place)
        started = start_run(binding.store, new, binding.codec.digests(text, place))
        if started.message is not None:
            binding.dispatcher.publish_first(started.message, producer=None)

    def _signal(self, entry: Entry) -> None:
        event, key = entry.signal()
        self.binding.client.add(entry.workflow_id, event, key)

    def _park(self, entry: Entry, error: Exception) -> Parked:
        what = f"a {entry.kind} of {entry.workflow_id}"
        _log.error("%s in the outbox cannot be relayed, and stays there: %s", what, error)
        return Parked(str(error))
