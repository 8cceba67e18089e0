"""Mail: Redis puts messages into queues of the same database in the transaction that makes them due."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis

from durable_celery.errors import StaleLeaseError, WorkflowConflictError
from durable_celery.store.protocol import Committed, Finishing, Lease, Mail, Turn
from durable_celery.store.redis import RedisStore
from tests.servers import RedisServer
from tests.store.backends import server_client
from tests.store.invariants import check_invariants
from tests.store.moves import again, begin, call, claim, end, new, record, result, signal, step, sweep, take

MAIL = (Mail("queue", "one"), Mail("queue:3", "two"))


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    client = server_client(redis_server.start().url)
    yield client
    client.delete("queue", "queue:3")


@pytest.fixture
def store(client: redis.Redis) -> Iterator[RedisStore]:
    made = RedisStore(client, namespace=f"t-{uuid4().hex[:8]}")
    yield made
    check_invariants(made)


def queued(client: redis.Redis) -> list[Any]:
    return [item for queue in ("queue", "queue:3") for item in client.lrange(queue, 0, -1)]


def commit(store: RedisStore, taken: Turn, *outputs: Any, mail: tuple[Mail, ...] = MAIL) -> Committed:
    return store.commit(taken.lease, outputs, read=taken.run.length, waiting="", hold=False, mail=mail)


def test_a_commit_puts_its_mail_into_the_queues(store: RedisStore, client: redis.Redis) -> None:
    store.start(new())
    assert commit(store, take(store), step(1), step(2)).mailed

    assert queued(client) == ["one", "two"]
    # The agenda repeats what is lost, as it does for all messages.
    assert sweep(store).messages == ()
    assert [step.number for step in record(store).steps] == [1, 2]


def test_what_was_published_first_comes_first(store: RedisStore, client: redis.Redis) -> None:
    store.start(new())
    commit(store, take(store), step(1), mail=(Mail("queue", "a"), Mail("queue", "b")))

    assert [client.rpop("queue"), client.rpop("queue")] == ["a", "b"]


def test_a_commit_without_mail_says_so(store: RedisStore) -> None:
    store.start(new())
    assert not commit(store, take(store), step(1), mail=()).mailed


def test_a_refused_commit_sends_nothing(store: RedisStore, client: redis.Redis) -> None:
    store.start(new())
    taken = take(store)
    commit(store, taken, step(1), mail=())
    with pytest.raises(StaleLeaseError):
        commit(store, taken, step(2))

    assert queued(client) == []


def test_a_commit_that_comes_again_sends_its_mail_once(store: RedisStore, client: redis.Redis) -> None:
    store.start(new())
    taken = take(store)
    assert commit(store, taken, step(1)).mailed
    assert commit(store, taken, step(1)).mailed

    assert queued(client) == ["one", "two"]


def test_a_run_that_goes_on_as_another_is_told_by_its_own_message(store: RedisStore, client: redis.Redis) -> None:
    store.start(new())
    assert not commit(store, take(store), again()).mailed

    assert queued(client) == []


@pytest.mark.parametrize("is_disturbed", [False, True])
def test_mail_goes_with_an_outcome_and_what_follows_from_it(
    store: RedisStore, client: redis.Redis, is_disturbed: bool
) -> None:
    begin(store, step(1))
    claimed = claim(store, 1)
    at, lease = store.history("w")[-1].at, Lease(workflow_id="w", token=2, owner=call())
    if is_disturbed:
        signal(store)
    finishing = Finishing(key=claimed.key, token=1, outcome=result(1), at=at)

    def finish() -> bool:
        return store.commit(lease, [step(2)], read=3, waiting="", hold=False, finishing=finishing, mail=MAIL).mailed

    if is_disturbed:
        with pytest.raises(StaleLeaseError):
            finish()
        assert queued(client) == []
    else:
        assert finish()
        assert finish()
        assert queued(client) == ["one", "two"]


def test_where_a_message_cannot_be_put_the_caller_publishes_all(store: RedisStore, client: redis.Redis) -> None:
    client.set("queue", "no queue")
    store.start(new())
    answer = commit(store, take(store), step(1), step(2))

    assert (answer.mailed, answer.length) == (False, 3)
    assert [step.number for step in record(store).steps] == [1, 2]


def test_a_start_puts_the_first_message_into_its_queue(store: RedisStore, client: redis.Redis) -> None:
    started = store.start(new(mail=MAIL[0]))

    assert (started.created, started.message) == (True, None)
    assert queued(client) == ["one"]
    assert sweep(store).messages == ()
    commit(store, take(store), end(), mail=())


def test_a_start_that_comes_again_gives_its_message_to_the_caller(store: RedisStore, client: redis.Redis) -> None:
    store.start(new(mail=MAIL[0]))
    again = store.start(new(mail=MAIL[0]))

    assert not again.created
    assert again.message is not None
    assert queued(client) == ["one"]


def test_a_refused_start_sends_nothing(store: RedisStore, client: redis.Redis) -> None:
    store.start(new())
    with pytest.raises(WorkflowConflictError):
        store.start(new(digest="another", mail=MAIL[0]))

    assert queued(client) == []


def test_a_start_whose_message_cannot_be_put_gives_it_to_the_caller(store: RedisStore, client: redis.Redis) -> None:
    client.set("queue", "no queue")

    assert store.start(new(mail=MAIL[0])).message is not None


@pytest.mark.parametrize("waits", [{"delay": 60.0}, {"unsent": True}])
def test_a_start_that_the_agenda_sends_has_no_use_for_mail(
    store: RedisStore, client: redis.Redis, waits: dict[str, Any]
) -> None:
    store.start(new(mail=MAIL[0], **waits))

    assert queued(client) == []
