"""Signals with a type: what a sender is refused, what a workflow gets, what becomes of a value that nobody checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any, Literal
from uuid import UUID

import pydantic
import pytest

from durable_celery.codec import Codec, rebuild
from durable_celery.errors import InvalidRequestError, InvalidSignalError, PayloadError, WaitTimeoutError
from durable_celery.events import RunFailed
from durable_celery.workflow import AsyncWorkflowContext, Signal, WorkflowContext
from durable_celery.workflow.typed_signal import declared, signal_for
from tests.workflow.log import CODEC, Run

Code = Callable[..., Any]
Begin = Callable[..., Run]


def forms(*codes: Code) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("code", codes, ids=["def", "async def"])


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Approval:
    by: str
    amount: int = 0
    at: datetime | None = None


@dataclass
class Tree:
    name: str
    children: list[Tree] = field(default_factory=list)
    size: int = field(default=1, init=False)


@dataclass
class Refusal:
    by: str


class Payment(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    id: UUID
    amount: Decimal = pydantic.Field(alias="Amount")
    at: datetime
    parts: tuple[int, ...] = ()

    @pydantic.computed_field
    def twice(self) -> Decimal:
        return self.amount * 2


class Secret(pydantic.BaseModel):
    word: pydantic.SecretStr


NOON = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
ID = UUID("12345678-1234-5678-1234-567812345678")
PAID = Payment(id=ID, Amount=Decimal("12.50"), at=NOON, parts=(1, 2))


def sent(signal: Signal[Any], value: object) -> Any:
    """Return what comes out at the workflow's side of a value that went in at the sender's."""
    return signal.received(CODEC.decode(signal.dumps(value, CODEC)))


# --------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (None, None),
        (bool, True),
        (int, 3),
        (float, 2.5),
        (str, "x"),
        (bytes, b"\x00\xff"),
        (dict, {"a": [1, None]}),
        (list, [1, "a"]),
        (tuple, (1, "a")),
        (datetime, NOON),
        (date, date(2026, 11, 22)),
        (time, time(12, 30)),
        (Decimal, Decimal("1.10")),
        (UUID, ID),
        (Colour, Colour.RED),
        (list[int], [1, 2]),
        (dict[str, Approval], {"a": Approval("ann")}),
        (tuple[int, str], (1, "a")),
        (tuple[int, ...], (1, 2, 3)),
        (int | None, None),
        (Approval | Refusal, Approval("bob")),
        (Tree | Approval, Approval("bob")),
        (Literal["yes", "no"], "yes"),
        (Approval, Approval("ann", 12, NOON)),
        (Tree, Tree("root", [Tree("leaf")])),
        (Payment, PAID),
        (list[Payment], [PAID]),
        (Any, {"what": "ever"}),
    ],
    ids=str,
)
def test_a_value_comes_as_it_was_sent(kind: Any, value: Any) -> None:
    came = sent(Signal("s", kind), value)

    assert came == value
    assert type(came) is type(value)


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (float, 3, 3.0),
        (datetime, "2026-11-22T12:30:00+00:00", NOON),
        (date, "2026-11-22", date(2026, 11, 22)),
        (time, "12:30", time(12, 30)),
        (Decimal, "1.10", Decimal("1.10")),
        (UUID, str(ID), ID),
        (Colour, "red", Colour.RED),
        (tuple[int, str], [1, "a"], (1, "a")),
        (Approval, {"by": "ann"}, Approval("ann")),
        (Approval, {"by": "ann", "at": "2026-11-22T12:30:00+00:00"}, Approval("ann", at=NOON)),
        (Tree, {"name": "a", "children": [{"name": "b"}]}, Tree("a", [Tree("b")])),
        (Payment, {"id": str(ID), "Amount": "12.50", "at": "2026-11-22T12:30:00Z", "parts": [1, 2]}, PAID),
        (Payment, {"id": ID, "Amount": Decimal("12.50"), "at": NOON, "parts": (1, 2)}, PAID),
    ],
    ids=str,
)
def test_what_json_has_instead_builds_the_value(kind: Any, given: Any, value: Any) -> None:
    assert sent(Signal("s", kind), given) == value


@pytest.mark.parametrize(
    ("kind", "value", "story"),
    [
        (None, 0, "it is of type int in place of None"),
        (int, True, "it is of type bool in place of int"),
        (int, "3", "it is of type str in place of int"),
        (str, 3, "it is of type int in place of str"),
        (float, True, "bool in place of float"),
        (date, NOON, "datetime in place of date"),
        (datetime, "yesterday", "str in place of datetime"),
        (Decimal, "a lot", "str in place of Decimal"),
        (bytes, "text", "str in place of bytes"),
        (Colour, "blue", "'blue' is not a valid Colour"),
        (list[int], [1, "2"], r"\[1\] is of type str in place of int"),
        (list[int], {"a": 1}, "dict in place of list"),
        (tuple[int, str], [1], "1 items in place of 2"),
        (dict[str, int], {"a": None}, r"\['a'\] is of type NoneType in place of int"),
        (dict[str, int], {1: 1}, "int in place of str"),
        (int | None, "x", "str in place of int and it is of type str in place of None"),
        (Literal["yes", "no"], "maybe", "in place of typing.Literal"),
        (Literal[1], True, "bool in place of typing.Literal"),
        (Approval, {}, "Approval lacks by"),
        (Approval, {"by": "ann", "buy": 1}, "Approval has no field buy; it has by, amount, at"),
        (Approval, {"by": None}, "by is of type NoneType in place of str"),
        (Approval, Approval(by=3), "by is of type int in place of str"),  # type: ignore[arg-type]  # that is the point
        (Approval, Refusal("ann"), "Refusal in place of Approval"),
        (Tree, {"name": "a", "children": [{"name": 1}]}, r"children\[0\].name is of type int"),
        (Payment, {"Amount": "1"}, "Field required"),
        (Payment, Secret(word="x"), "valid dictionary or instance of Payment"),  # type: ignore[arg-type]  # a text will do
        (Secret, Secret(word="x"), "SecretStr"),  # type: ignore[arg-type]  # the same
        (Approval | Refusal, Refusal("ann"), "would be another value at the receiver"),
        (list[Approval | Refusal], [Refusal("ann")], "would be another value at the receiver"),
        (Any, object(), "cannot be recorded"),
        (list, [object()], "cannot be recorded"),
    ],
    # Workers of one test run must give the same names, and some values are written with their address.
    ids=lambda one: re.sub(" at 0x[0-9a-f]+", "", str(one)),
)
def test_a_value_of_another_type_is_refused_at_the_sender(kind: Any, value: Any, story: str) -> None:
    with pytest.raises(PayloadError, match=story) as refused:
        Signal("paid", kind).dumps(value, CODEC)

    assert "signal 'paid'" in str(refused.value)


def test_the_payload_limit_holds_for_typed_values() -> None:
    with pytest.raises(PayloadError, match="durable_payload_limit"):
        Signal("s", str).dumps("x" * 20, Codec(limit=10))


class Plain:
    """Neither a dataclass nor a model."""


class Shade(Enum):
    DARK = object()


@dataclass
class Holder:
    held: set[int]


@pytest.mark.parametrize(
    "kind", [Plain, Shade, set, set[int], Holder, dict[int, str], list[Plain], object(), "Approval"]
)
def test_a_type_whose_values_cannot_be_carried_is_refused_where_the_signal_is_made(kind: Any) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be the type of a signal"):
        Signal("s", kind)


@pytest.mark.parametrize("name", ["", "durable:update:x", "durable:", "a\nb", "x" * 256, 3])
def test_a_name_that_cannot_be_one_is_refused_where_the_signal_is_made(name: Any) -> None:
    with pytest.raises(InvalidRequestError, match="name of a signal"):
        Signal(name)


# --------------------------------------------------------------------------- what a workflow declares


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    takes = declared([Signal("approved", Approval), "paid"])

    assert signal_for("paid", takes, "shop.checkout").name == "paid"
    with pytest.raises(InvalidRequestError) as refused:
        signal_for("aproved", takes, "shop.checkout")
    assert str(refused.value) == (
        "workflow shop.checkout takes no signal 'aproved', but 'approved', 'paid'; was 'approved' meant?"
    )


def test_two_signals_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="two signals of one workflow are called 'paid'"):
        declared(["paid", Signal("paid", int)])


# --------------------------------------------------------------------------- workflow code

approved = Signal("approved", Approval)
counted = Signal("approved", int)


def wait_sync(ctx: WorkflowContext, count: int, limit: float | None = None) -> Any:
    seen: list[Any] = []
    for _ in range(count):
        try:
            seen.append(ctx.wait_signal(approved, limit).by)
        except (InvalidSignalError, WaitTimeoutError) as error:
            seen.append(str(error))
    return seen


async def wait_async(ctx: AsyncWorkflowContext, count: int, limit: float | None = None) -> Any:
    seen: list[Any] = []
    for _ in range(count):
        try:
            seen.append((await ctx.wait_signal(approved, limit)).by)
        except (InvalidSignalError, WaitTimeoutError) as error:
            seen.append(str(error))
    return seen


@forms(wait_sync, wait_async)
def test_typed_signals_come_in_order_early_and_repeated_ones_too(code: Code, begin: Begin) -> None:
    run = begin(code, 3)
    for name in ("ann", "bob", "ann"):
        run.signal("approved", {"by": name})

    assert run.result == ["ann", "bob", "ann"]


def late_sync(ctx: WorkflowContext) -> Any:
    ctx.sleep(60)
    return [ctx.wait_signal(approved).by, ctx.wait_signal("approved"), ctx.signal(approved).result().by]


async def late_async(ctx: AsyncWorkflowContext) -> Any:
    await ctx.sleep(60)
    return [(await ctx.wait_signal(approved)).by, await ctx.wait_signal("approved"), (await ctx.signal(approved)).by]


@forms(late_sync, late_async)
def test_a_name_and_a_typed_signal_take_from_one_letter_box(code: Code, begin: Begin) -> None:
    run = begin(code)
    for name in ("ann", "bob", "tom"):
        run.signal("approved", {"by": name})
    run.fire(1)

    assert run.result == ["ann", {"by": "bob"}, "tom"]


@forms(wait_sync, wait_async)
def test_what_nobody_checked_fails_the_wait_that_gets_it_and_is_used_up(code: Code, begin: Begin) -> None:
    run = begin(code, 2)
    run.signal("approved", {"buy": "ann"})
    run.signal("approved", {"by": "bob"})

    problem, name = run.result
    assert problem.startswith("signal 'approved' came with a value that is not of type Approval: ")
    assert "Approval has no field buy; it has by, amount, at" in problem
    assert name == "bob"


@forms(wait_sync, wait_async)
def test_a_typed_wait_has_a_timeout_like_any_other(code: Code, begin: Begin) -> None:
    run = begin(code, 1, 60)
    run.fire(1)

    assert run.result == ["no signal 'approved' came within 60 s"]


def uncaught(ctx: WorkflowContext) -> Any:
    return ctx.wait_signal(approved)


def test_a_run_that_does_not_expect_it_fails_and_says_why() -> None:
    run = Run(uncaught).start()
    run.signal("approved", 12)

    assert isinstance(run.last, RunFailed)
    error = rebuild(run.last.payload, CODEC)
    assert isinstance(error, InvalidSignalError)
    assert "int in place of Approval" in str(error)


def test_a_typed_signal_that_lost_a_race_is_still_there(begin: Begin) -> None:
    def race(ctx: WorkflowContext) -> Any:
        first, second = ctx.signal("other"), ctx.signal(approved)
        ctx.sleep(60)
        won = ctx.race(first=first, second=second)
        return [won.value, ctx.wait_signal("approved")]

    run = begin(race)
    run.signal("other", 1)
    run.signal("approved", {"by": "ann"})
    run.fire(1)

    assert run.result == [1, {"by": "ann"}]


def test_one_that_was_of_the_wrong_type_and_lost_a_race_is_there_for_a_wait_of_its_own_type() -> None:
    def race(ctx: WorkflowContext) -> Any:
        first, second = ctx.signal("other"), ctx.signal(approved)
        ctx.sleep(60)
        won = ctx.race(first=first, second=second)
        return [won.value, ctx.wait_signal(counted)]

    run = Run(race).start()
    run.signal("other", 1)
    run.signal("approved", 12)
    run.fire(1)

    assert run.result == [1, 12]
