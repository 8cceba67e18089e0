"""The Redis store and its server: connections, failures, restarts, and how the keys lie."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from durable_celery.errors import ConfigurationError, StoreError, StoreUnavailableError
from durable_celery.store.protocol import Timing
from durable_celery.store.redis import RedisStore
from tests.servers import RedisCluster, RedisServer, free_port
from tests.store.backends import server_client
from tests.store.invariants import check_invariants, raw_keys
from tests.store.moves import (
    begin,
    call,
    claim,
    close,
    deliver,
    end,
    execute,
    key,
    kinds,
    new,
    record,
    result,
    run_messages,
    signal,
    step,
    take,
    timer,
    turn,
)
from tests.waiting import wait_until

#: What a finished run of ten steps, and a sleeping one, may cost in bytes, all its keys and index entries counted.
CLOSED_RUN_BYTES = 2500
SLEEPING_RUN_BYTES = 1100


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    return redis_server.start().url


@pytest.fixture
def store(url: str) -> Iterator[RedisStore]:
    """A store in a namespace of its own; its invariants hold in the end, and it leaves nothing behind."""
    made = RedisStore(server_client(url), namespace=f"t-{uuid4().hex[:8]}")
    yield made
    check_invariants(made)
    server_client(url).delete(f"{made._server.namespace}:layout", *raw_keys(made))


@pytest.fixture
def sharded(url: str) -> Iterator[RedisStore]:
    """A store of several shards."""
    made = RedisStore(server_client(url), namespace=f"t-{uuid4().hex[:8]}", shards=5)
    yield made
    check_invariants(made)
    server_client(url).delete(*raw_keys(made))


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may maltreat."""
    with RedisServer(tmp_path, aof="always") as server:
        yield server


def impatient(server: RedisServer, **options: Any) -> RedisStore:
    """Return a store that says at once when the server does not answer."""
    client = redis.Redis(
        port=server.port, decode_responses=True, retry=Retry(NoBackoff(), 0), socket_timeout=0.5, **options
    )
    return RedisStore(client)


# -- connections -----------------------------------------------------------------------------------------------------


def test_store_is_made_without_a_connection() -> None:
    RedisStore.from_url(f"redis://127.0.0.1:{free_port()}/0")
    RedisStore.from_url(f"redis://127.0.0.1:{free_port()}/0", cluster=True)


def test_server_that_is_not_there_is_unavailable() -> None:
    store = RedisStore.from_url(f"redis://127.0.0.1:{free_port()}/0")

    with pytest.raises(StoreUnavailableError) as caught:
        store.start(new())

    assert isinstance(caught.value.__cause__, redis.ConnectionError)


def test_cluster_that_is_not_there_is_unavailable() -> None:
    store = RedisStore.from_url(f"redis://127.0.0.1:{free_port()}/0", cluster=True)

    with pytest.raises(StoreUnavailableError):
        store.get("w")


@pytest.mark.parametrize("decode", [False, True])
def test_client_may_decode_or_not(url: str, store: RedisStore, decode: bool) -> None:
    other = RedisStore(redis.Redis.from_url(url, decode_responses=decode), namespace=store._server.namespace)
    begin(other, step(1))

    assert execute(other).message is not None
    assert record(other) == record(store)
    assert other.history("w") == store.history("w")
    assert other.findings() == store.findings()


def test_url_names_the_database(url: str) -> None:
    store = RedisStore.from_url(f"{url.rpartition('/')[0]}/7", namespace=f"t-{uuid4().hex[:8]}")
    store.start(new())

    client: Any = store._server._connected()
    assert client.connection_pool.connection_kwargs["db"] == 7
    client.flushdb()


@pytest.mark.parametrize("scheme", ["unix://{path}?db=3", "redis+socket://{path}?virtual_host=3"])
def test_unix_sockets_are_spelled_in_either_way(tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "s.sock"
    with RedisServer(tmp_path / "server", extra_args=("--unixsocket", str(path))) as server:
        store = RedisStore.from_url(scheme.format(path=path))
        begin(store)

        assert record(store).length == 1
        assert server.client(database=3).dbsize() > 0


def test_unix_socket_with_a_password(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with RedisServer(tmp_path / "server", extra_args=("--unixsocket", str(path))) as server:
        server.client().config_set("requirepass", "secret")

        begin(RedisStore.from_url(f"redis+socket://:secret@{path}"))
        with pytest.raises(ConfigurationError):
            begin(RedisStore.from_url(f"redis+socket://:wrong@{path}"))
        redis.Redis(unix_socket_path=str(path), password="secret").config_set("requirepass", "")  # noqa: S106


def test_cluster_is_used_through_its_url(redis_cluster_servers: RedisCluster) -> None:
    namespace = f"t-{uuid4().hex[:8]}"
    store = RedisStore.from_url(redis_cluster_servers.url, namespace=namespace, shards=6, cluster=True)
    for number in range(12):
        begin(store, step(1), workflow_id=f"w-{number}")

    assert len(store.runs().runs) == 12
    assert store.findings()
    check_invariants(store)


def test_threads_share_a_store(store: RedisStore) -> None:
    begin(store, *map(step, range(1, 41)))
    threads = [threading.Thread(target=execute, args=(store, number)) for number in range(1, 41)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert kinds(store).count("StepCompleted") == 40


FORKS = """
import os, sys
from durable_celery.store.redis import RedisStore
from tests.store.moves import begin, execute, kinds, step

store = RedisStore.from_url(sys.argv[1], namespace=sys.argv[2], cluster=sys.argv[3] == "cluster", shards=6)
begin(store, *map(step, range(1, 61)))
children = []
for child in range(3):
    pid = os.fork()
    if pid == 0:
        for number in range(child * 20 + 1, child * 20 + 21):
            execute(store, number)
        os._exit(0)
    children.append(pid)
while any(os.waitpid(pid, os.WNOHANG)[0] == 0 for pid in children[-1:]):
    assert store.get("w").workflow_id == "w"
assert [os.waitpid(pid, 0)[1] for pid in children[:-1]] == [0, 0]
print(kinds(store).count("StepCompleted"))
"""


@pytest.mark.parametrize("kind", ["single", "cluster"])
def test_forked_children_use_connections_of_their_own(url: str, redis_cluster_servers: RedisCluster, kind: str) -> None:
    server = redis_cluster_servers.url if kind == "cluster" else url
    script = [sys.executable, "-c", FORKS, server, f"t-{uuid4().hex[:8]}", kind]

    done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)

    assert (done.stdout.strip(), done.stderr) == ("60", "")


# -- the server's clock ----------------------------------------------------------------------------------------------


def test_timer_waits_for_the_server_clock(url: str, store: RedisStore) -> None:
    store.start(new())
    taken = take(store)
    store.commit(taken.lease, [timer(1, taken.now + 150)], read=1, waiting="", hold=False)
    assert run_messages(store) == []

    assert wait_until(lambda: run_messages(store), 5) == ["w"]

    fired = store.history("w")[-1]
    assert fired.at >= taken.now + 150


def test_owner_dies_by_the_server_clock(url: str, store: RedisStore) -> None:
    hasty = RedisStore(server_client(url), namespace=store._server.namespace, timing=Timing(owner_ttl=0.1))
    begin(hasty, step(1))
    claim(hasty)

    wait_until(lambda: hasty.sweep().messages, 5)

    assert claim(store).lost == 1


# -- failures --------------------------------------------------------------------------------------------------------


def test_history_survives_the_death_of_the_server(own_server: RedisServer) -> None:
    store = RedisStore.from_url(own_server.url)
    begin(store, step(1), step(2))
    execute(store, 1)
    claim(store, 2)
    before = raw_keys(store)

    own_server.kill()
    own_server.start()

    assert raw_keys(store) == before
    assert kinds(store) == ["RunStarted", "StepScheduled", "StepScheduled", "StepCompleted"]
    check_invariants(store)


def test_store_goes_on_after_the_server_came_back(own_server: RedisServer) -> None:
    store = impatient(own_server)
    begin(store, step(1))
    own_server.kill()
    with pytest.raises(StoreUnavailableError):
        store.claim(key(1), call())

    own_server.start()

    execute(store)
    turn(store, end())
    assert kinds(store)[-1] == "RunCompleted"


def test_server_that_hangs_is_unavailable(own_server: RedisServer) -> None:
    store = impatient(own_server)
    begin(store)
    own_server.suspend()
    try:
        with pytest.raises(StoreUnavailableError):
            store.get("w")
    finally:
        own_server.resume()

    assert record(store).length == 1


def test_scripts_that_the_server_forgot_are_sent_again(own_server: RedisServer) -> None:
    store = RedisStore.from_url(own_server.url)
    begin(store)
    own_server.client().script_flush()

    assert signal(store).added


def test_connection_that_was_cut_is_made_again(own_server: RedisServer) -> None:
    store = RedisStore.from_url(own_server.url)
    begin(store)
    client = own_server.client()
    for number in range(20):
        client.client_kill_filter(_type="normal", skipme=True)
        assert signal(store, signal_key=str(number)).added

    assert kinds(store).count("SignalReceived") == 20


def test_full_memory_refuses_writes_and_leaves_nothing_half_done(own_server: RedisServer) -> None:
    store = RedisStore.from_url(own_server.url)
    begin(store, step(1))
    begun = claim(store)
    own_server.client().config_set("maxmemory", own_server.client().info("memory")["used_memory"] + 500_000)

    def fill() -> None:
        for number in range(1000):
            store.start(new(f"w-{number}", payload=f'"{"x" * 5000}"'))

    with pytest.raises(StoreUnavailableError, match="memory limit"):
        fill()

    refusals = [_is_refused_without_effect(store, act) for act in _writes(store, begun.token)]
    assert refusals[:2] == [True, True]
    check_invariants(store)
    own_server.client().config_set("maxmemory", 0)
    assert signal(store).added
    check_invariants(store)


def _writes(store: RedisStore, token: int) -> list[Callable[[], object]]:
    """Return verbs that write. Some begin by deleting, which a full server allows, and the rest of them then too."""
    return [
        lambda: store.start(new("more")),
        lambda: signal(store),
        lambda: store.take("w", "p1#a", known=0),
        lambda: store.release("w", "p1#a", delay=0.0),
        lambda: store.finish(key(1), result(1), token=token),
        lambda: store.renew(["p9"]),
        store.sweep,
    ]


def _is_refused_without_effect(store: RedisStore, act: Callable[[], object]) -> bool:
    before = raw_keys(store)
    try:
        act()
    except StoreError:
        assert raw_keys(store) == before
        return True
    return False


def test_replica_that_refuses_writes_is_unavailable_for_now(own_server: RedisServer) -> None:
    store = impatient(own_server)
    begin(store)
    client = own_server.client()
    client.replicaof("127.0.0.1", free_port())
    with pytest.raises(StoreUnavailableError, match="read only replica"):
        signal(store)
    client.replicaof("NO", "ONE")

    assert signal(store).added


def test_server_without_enough_replicas_is_unavailable_for_now(own_server: RedisServer) -> None:
    store = impatient(own_server)
    begin(store)
    own_server.client().config_set("min-replicas-to-write", 1)

    with pytest.raises(StoreUnavailableError, match="NOREPLICAS"):
        signal(store)


def test_server_that_is_busy_with_a_foreign_script_is_unavailable_for_now(own_server: RedisServer) -> None:
    store = impatient(own_server)
    begin(store)
    client = own_server.client()
    client.config_set("lua-time-limit", 20)
    endless = threading.Thread(target=_endless, args=(own_server,))
    endless.start()
    try:
        wait_until(lambda: _is_busy(own_server), 5)
        with pytest.raises(StoreUnavailableError):
            signal(store)
    finally:
        client.script_kill()
        endless.join()

    assert signal(store).added


def _endless(server: RedisServer) -> None:
    with pytest.raises(redis.ResponseError):
        server.client().eval("while true do end", 0)


def _is_busy(server: RedisServer) -> bool:
    try:
        server.client().ping()
    except redis.ResponseError:
        return True
    return False


def test_user_without_rights_is_told_so(own_server: RedisServer) -> None:
    own_server.client().acl_setuser("guest", enabled=True, nopass=True, keys=["other:*"], categories=["+@all"])
    store = impatient(own_server, username="guest", password="x")  # noqa: S106

    with pytest.raises(ConfigurationError, match="does not allow"):
        store.start(new())


def test_user_of_its_own_keys_alone_can_do_everything(own_server: RedisServer) -> None:
    own_server.client().acl_setuser(
        "app",
        enabled=True,
        nopass=True,
        keys=["durable:*"],
        categories=["+@all", "-@admin", "-@dangerous"],
        commands=["+info"],
    )
    store = impatient(own_server, username="app", password="x")  # noqa: S106
    begin(store, step(1))
    execute(store)
    close(store)
    deliver(store)
    store.renew(["p1"], gone=["p2"])
    store.sweep()

    assert store.runs().runs[0].delivered
    assert "appendfsync" in {finding.check for finding in store.findings()}


# -- how the keys lie ------------------------------------------------------------------------------------------------


def test_number_of_shards_is_fixed_at_first_use(url: str, store: RedisStore) -> None:
    store.start(new())
    other = RedisStore(server_client(url), namespace=store._server.namespace, shards=2)

    with pytest.raises(ConfigurationError, match=r"'shards': 1.*'shards': 2"):
        other.get("w")


@pytest.mark.parametrize(("namespace", "shards"), [("", 1), ("a{b}", 1), ("durable", 0)])
def test_impossible_layout_is_refused(namespace: str, shards: int) -> None:
    with pytest.raises(ConfigurationError):
        RedisStore.from_url("redis://127.0.0.1/0", namespace=namespace, shards=shards)


def test_namespaces_do_not_meet(url: str, store: RedisStore) -> None:
    other = RedisStore(server_client(url), namespace=f"{store._server.namespace}-b")
    begin(store, step(1))

    assert other.get("w") is None
    assert other.sweep().next_in is None
    assert other.start(new(digest="other")).created


def test_all_keys_of_a_run_stand_under_one_tag(sharded: RedisStore) -> None:
    for number in range(40):
        begin(sharded, step(1), timer(2, 9_000_000_000_000), workflow_id=f"w-{number}")
        signal(sharded, f"w-{number}")

    tags: dict[str, set[str]] = {}
    for name in raw_keys(sharded):
        tag, _, rest = name.partition("{")[2].partition("}:")
        kind, _, workflow_id = rest.partition(":")
        if kind in {"run", "log", "open", "keys"}:
            tags.setdefault(workflow_id, set()).add(tag)
    assert len(tags) == 40
    assert {len(found) for found in tags.values()} == {1}
    assert set.union(*tags.values()) == {"0", "1", "2", "3", "4"}


def test_no_shard_is_starved_by_the_limit_of_a_sweep(sharded: RedisStore) -> None:
    for number in range(40):
        begin(sharded, timer(1, 0), workflow_id=f"w-{number}")

    first = [name for _ in range(5) for name in run_messages_of(sharded, limit=1)]

    assert len({sharded._server.shard_of(name) for name in first}) == 5
    rest = [name for _ in range(40) for name in run_messages_of(sharded, limit=1)]
    assert sorted(first + rest) == sorted(f"w-{number}" for number in range(40))


def run_messages_of(store: RedisStore, limit: int) -> list[str]:
    return [getattr(message, "workflow_id", "") for message in store.sweep(limit=limit).messages]


def test_finished_run_is_small(store: RedisStore) -> None:
    before, runs = _bytes(store), 50
    for _ in range(runs):
        name = str(uuid4())
        store.start(new(name, name="bench.tasks.sequence", payload="[[10],{}]", digest="0123456789abcdef"))
        for number in range(1, 11):
            turn(store, step(number, cause=2 * number - 1), workflow_id=name)
            execute(store, number, workflow_id=name)
        close(store, name)
        deliver(store, name)

    assert (_bytes(store) - before) / runs < CLOSED_RUN_BYTES


def test_step_without_limits_has_no_fields_of_them(store: RedisStore) -> None:
    begin(store, step(1, options={"queue": "q"}), step(2, options={"timeout": 5}))
    claim(store)

    (entries,) = (value for name, value in raw_keys(store).items() if ":open:" in name)

    assert set(entries["1"]) == {"seq", "state", "sends", "owner", "attempt"}
    assert set(entries["2"]) == {"seq", "state", "sends", "limits", "ends"}


def test_sleeping_run_is_small(store: RedisStore) -> None:
    before, runs = _bytes(store), 50
    for _ in range(runs):
        name = str(uuid4())
        store.start(new(name, name="bench.tasks.sleeper", payload="[[10],{}]", digest="0123456789abcdef"))
        taken = take(store, name)
        store.commit(taken.lease, [timer(1, 9_000_000_000_000)], read=1, waiting="timer 1 until 2255", hold=False)

    assert (_bytes(store) - before) / runs < SLEEPING_RUN_BYTES


def _bytes(store: RedisStore) -> int:
    client: Any = store._server._connected()
    names = client.scan_iter(match=f"{store._server.namespace}:*")
    return sum(client.memory_usage(name, samples=0) or 0 for name in names)


def test_finished_run_keeps_nothing_but_its_record_and_its_log(store: RedisStore) -> None:
    begin(store, step(1, options={"timeout": 60}), step(2), timer(3, 9_000_000_000_000))
    execute(store, 1)
    execute(store, 2)
    close(store)
    deliver(store)
    store.renew([], gone=["p1"])
    store.sweep()

    names = {name.partition("}:")[2] for name in raw_keys(store)} - {""}
    assert names == {"agenda", "index:closed", "run:w", "log:w"}
