"""Verbs of random programs, one class each. A new verb joins by a class here and a place in :data:`VERBS`.

A class says how a node is made, what workflow code does at it, what it may return, and which effects it must and must
not have. The code is written once for both forms: it yields each call of a verb as a function, which the form calls
(``def``) or calls and awaits (``async def``). The oldest verbs stand in :mod:`tests.simulation.programs` and
:mod:`tests.simulation.code`, where each form is written out as users write it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Generator as Play
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, ClassVar

from durable_celery.errors import StepLostError, WaitTimeoutError
from durable_celery.policy import RetryPolicy
from durable_celery.workflow import AsyncWorkflowContext, Tolerance, WorkflowContext

if TYPE_CHECKING:
    from tests.simulation.code import Code
    from tests.simulation.programs import Generator, Tree

__all__ = ["TWICE", "VERBS", "Verb", "play_awaiting", "play_blocking"]

Context = WorkflowContext | AsyncWorkflowContext
#: Workflow code of both forms: yields calls, is sent their results, returns its own.
Steps = Play[Callable[[], Any], Any, Any]

TWICE = RetryPolicy(initial_interval=0.5, maximum_attempts=2)


def play_blocking(steps: Steps) -> Any:
    """Run workflow code in its ``def`` form."""
    go: Callable[[], Any] = partial(next, steps)
    while True:
        try:
            call = go()
        except StopIteration as end:
            return end.value
        try:
            go = partial(steps.send, call())
        except BaseException as error:  # noqa: BLE001 - whatever it is, the code gets it
            go = partial(steps.throw, error)


async def play_awaiting(steps: Steps) -> Any:
    """Run workflow code in its ``async def`` form."""
    go: Callable[[], Any] = partial(next, steps)
    while True:
        try:
            call = go()
        except StopIteration as end:
            return end.value
        try:
            value = call()
            go = partial(steps.send, await value if isawaitable(value) else value)
        except BaseException as error:  # noqa: BLE001 - as above
            go = partial(steps.throw, error)


class Verb:
    """What programs may do at a node ``[kind, ...]``."""

    kind: ClassVar[str]
    #: How often it stands among the leaves, or the nodes, of which programs are made.
    weight: ClassVar[int] = 1
    #: Whether a node has trees below it: each list in it is one.
    is_node: ClassVar[bool] = False

    def make(self, generator: Generator, depth: int) -> Tree:
        """Return what follows the kind in a new node; ``depth`` is that of trees below it."""
        raise NotImplementedError

    def steps(self, code: Code, ctx: Context, tree: Tree) -> Steps:
        """Do it, in workflow code."""
        raise NotImplementedError

    def fits(self, tree: Tree, value: Any, fits: Callable[[Tree, Any], bool]) -> bool:
        """Tell whether a node may return this value; ``fits`` asks the same of a tree below it."""
        raise NotImplementedError

    def owed(self, tree: Tree) -> Iterator[int]:
        """Yield the tokens of the effects that it had, if its code ran to its end; trees below are asked by others."""
        yield from ()

    def barred(self, tree: Tree) -> Iterator[int]:
        """Yield the tokens of the effects that it cannot have had, if its code ran to its end."""
        yield from ()

    def is_certain(self, tree: Tree) -> bool:
        """Whether the trees below it run to their end if it does."""
        return True


def _result(ctx: Context, handle: Any) -> Callable[[], Any]:
    return handle.result if isinstance(ctx, WorkflowContext) else lambda: handle


def _tree(code: Code, ctx: Context, tree: Tree) -> Callable[[], Any]:
    return partial(code.blocking if isinstance(ctx, WorkflowContext) else code.awaiting, ctx, tree)  # type: ignore[arg-type]  # the form fits


def _branch(ctx: Context, steps: Callable[..., Steps], *args: Any) -> Any:
    """Start workflow code of both forms as a branch."""
    if isinstance(ctx, WorkflowContext):
        return ctx.spawn(lambda ctx: play_blocking(steps(ctx, *args)))

    async def branch(ctx: AsyncWorkflowContext) -> Any:
        return await play_awaiting(steps(ctx, *args))

    return ctx.spawn(branch)


class Map(Verb):
    """A batch of steps, some at a time."""

    kind = "map"
    weight = 2

    def make(self, generator: Generator, depth: int) -> Tree:
        return [generator.chance.pick((2, 1, 9)), *generator.some_tokens()]

    def steps(self, code: Code, ctx: Context, tree: Tree) -> Steps:
        _, limit, *tokens = tree
        return (yield lambda: ctx.map(code.plus, tokens, max_concurrency=limit)).results

    def fits(self, tree: Tree, value: Any, fits: Callable[[Tree, Any], bool]) -> bool:
        return bool(value == [token + 1 for token in tree[2:]])

    def owed(self, tree: Tree) -> Iterator[int]:
        yield from tree[2:]


class MapSome(Verb):
    """A batch that is decided when some of its items have succeeded."""

    kind = "map some"

    def make(self, generator: Generator, depth: int) -> Tree:
        tokens = generator.some_tokens()
        return [1 + generator.chance.below(len(tokens)), generator.chance.pick((2, 9)), *tokens]

    def steps(self, code: Code, ctx: Context, tree: Tree) -> Steps:
        _, enough, limit, *tokens = tree
        tolerance = Tolerance(successes=enough)
        batch = yield lambda: ctx.map(code.plus, tokens, max_concurrency=limit, tolerate=tolerance)
        return [[str(item.status), item.value] for item in batch.items]

    def fits(self, tree: Tree, value: Any, fits: Callable[[Tree, Any], bool]) -> bool:
        _, enough, _, *tokens = tree
        undone = (["cancelled", None], ["skipped", None])
        done = [item for item in value if item not in undone]
        allowed = ((*undone, ["completed", token + 1]) for token in tokens)
        return len(done) == enough and all(item in may for item, may in zip(value, allowed, strict=True))


class MapBranches(Verb):
    """A batch of branches."""

    kind = "map branches"
    is_node = True

    def make(self, generator: Generator, depth: int) -> Tree:
        return [generator.chance.pick((2, 1, 9)), *generator.some_trees(depth)]

    def steps(self, code: Code, ctx: Context, tree: Tree) -> Steps:
        _, limit, *trees = tree
        form: Any = code.blocking if isinstance(ctx, WorkflowContext) else code.awaiting
        return (yield lambda: ctx.map(form, trees, max_concurrency=limit)).raise_if_failed().results

    def fits(self, tree: Tree, value: Any, fits: Callable[[Tree, Any], bool]) -> bool:
        return len(value) == len(tree) - 2 and all(map(fits, tree[2:], value))


class Tolerant(Verb):
    """Steps that are waited for together, of which one fails."""

    kind = "tolerant gather"

    def make(self, generator: Generator, depth: int) -> Tree:
        return [generator.chance.pick((1, 0)), generator.token(), *generator.some_tokens()]

    def steps(self, code: Code, ctx: Context, tree: Tree) -> Steps:
        _, tolerated, broken, *tokens = tree
        handles: list[Any] = [ctx.start(code.plus, token) for token in tokens]
        handles.append(ctx.options(retry=TWICE).start(code.broken, broken))
        batch = yield lambda: ctx.gather(*handles, tolerate=tolerated)
        return [batch.is_successful, *(str(item.status) for item in batch.items)]

    def fits(self, tree: Tree, value: Any, fits: Callable[[Tree, Any], bool]) -> bool:
        _, tolerated, _, *tokens = tree
        *others, last = value[1:]
        allowed = {"completed"} if tolerated else {"completed", "cancelled"}
        is_right = len(others) == len(tokens) and allowed.issuperset(others)
        return bool(is_right and last == "failed" and value[0] == bool(tolerated))

    def owed(self, tree: Tree) -> Iterator[int]:
        _, tolerated, _, *tokens = tree
        yield from tokens if tolerated else ()


class Saga(Verb):
    """Steps with compensations, then a tree, then perhaps a failure."""

    kind = "saga"
    weight = 2
    is_node = True

    def make(self, generator: Generator, depth: int) -> Tree:
        tokens = generator.some_tokens()
        undo = [generator.token() for _ in tokens]
        return [generator.chance.below(2), generator.tree(depth), len(tokens), *tokens, *undo, generator.token()]

    def steps(self, code: Code, ctx: Context, tree: Tree) -> Steps:
        fails, part, tokens, undo, broken = self._read(tree)
        saga: Any = ctx.saga()
        try:
            for token, undone in zip(tokens, undo, strict=True):
                saga.compensate(code.undo, undone)
                yield _result(ctx, ctx.start(code.plus, token))
            value = yield _tree(code, ctx, part)
            if fails:
                yield _result(ctx, ctx.options(retry=TWICE).start(code.broken, broken))
        except BaseException as error:
            if not isinstance(error, GeneratorExit):
                yield partial(_leave, saga, error)
            if fails and isinstance(error, KeyError | StepLostError):
                return "undone"
            raise
        yield partial(_leave, saga, None)
        return value

    @staticmethod
    def _read(tree: Tree) -> tuple[int, Tree, list[int], list[int], int]:
        _, fails, part, count, *tokens = tree
        return fails, part, tokens[:count], tokens[count:-1], tokens[-1]

    def fits(self, tree: Tree, value: Any, fits: Callable[[Tree, Any], bool]) -> bool:
        fails, part, *_ = self._read(tree)
        return bool(value == "undone") if fails else fits(part, value)

    def owed(self, tree: Tree) -> Iterator[int]:
        fails, _, tokens, undo, _ = self._read(tree)
        yield from tokens
        yield from undo if fails else ()

    def barred(self, tree: Tree) -> Iterator[int]:
        fails, _, _, undo, broken = self._read(tree)
        yield from () if fails else (*undo, broken)


def _leave(saga: Any, error: BaseException | None) -> Any:
    """Leave the block of a saga, as ``with`` and ``async with`` do."""
    leave = saga.__exit__ if hasattr(saga, "__exit__") else saga.__aexit__
    return leave(error and type(error), error, error and error.__traceback__)


class Poll(Verb):
    """Ask a task, or a function, until its answer is enough."""

    kind = "poll"

    def make(self, generator: Generator, depth: int) -> Tree:
        pick = generator.chance.pick
        return [generator.token(), pick(("task", "local")), 1 + generator.chance.below(3), pick((None, 3))]

    def steps(self, code: Code, ctx: Context, tree: Tree) -> Steps:
        _, token, what, enough, limit = tree
        check: Any = code.asked if what == "task" else code.ask
        try:
            return (yield lambda: ctx.poll(check, token, every=0.5, until=lambda n: n >= enough, timeout=limit))
        except WaitTimeoutError:
            return "no answer"

    def fits(self, tree: Tree, value: Any, fits: Callable[[Tree, Any], bool]) -> bool:
        _, _, _, enough, limit = tree
        return value >= enough if isinstance(value, int) else bool(limit and value == "no answer")


class Condition(Verb):
    """Wait until all branches have said that they are done."""

    kind = "condition"
    is_node = True

    def make(self, generator: Generator, depth: int) -> Tree:
        return [generator.chance.pick((None, None, 3)), *generator.some_trees(depth)]

    def steps(self, code: Code, ctx: Context, tree: Tree) -> Steps:
        _, limit, *trees = tree
        done: list[Tree] = []

        def follow(ctx: Context, part: Tree) -> Steps:
            value = yield _tree(code, ctx, part)
            done.append(part)
            return value

        branches = [_branch(ctx, follow, part) for part in trees]
        try:
            yield lambda: ctx.wait_until(lambda: len(done) == len(trees), timeout=limit)
        except BaseException as error:
            # As a gather does: who is cancelled takes along what it waits for.
            for branch in branches:
                branch.cancel()
            if not isinstance(error, GeneratorExit):
                yield lambda: ctx.gather(*branches, return_exceptions=True)
            if isinstance(error, WaitTimeoutError):
                return "too late"
            raise
        return (yield lambda: ctx.gather(*branches))

    def fits(self, tree: Tree, value: Any, fits: Callable[[Tree, Any], bool]) -> bool:
        _, limit, *trees = tree
        if value == "too late":
            return limit is not None
        return len(value) == len(trees) and all(map(fits, trees, value))

    def is_certain(self, tree: Tree) -> bool:
        return tree[1] is None


class Shield(Verb):
    """Clean up in a branch that no cancel reaches."""

    kind = "shield"

    def make(self, generator: Generator, depth: int) -> Tree:
        return generator.some_tokens()

    def steps(self, code: Code, ctx: Context, tree: Tree) -> Steps:
        def clean(ctx: Context) -> Steps:
            for token in tree[1:]:
                yield _result(ctx, ctx.start(code.undo, token))
            return "clean"

        branch = _branch(ctx, clean)
        return (yield lambda: ctx.shield(branch))

    def fits(self, tree: Tree, value: Any, fits: Callable[[Tree, Any], bool]) -> bool:
        return bool(value == "clean")

    def owed(self, tree: Tree) -> Iterator[int]:
        yield from tree[1:]


class Kin(Verb):
    """Start a child whose fate at the end of its parent is said; see ``rest`` for what must become of it."""

    kind = "kin"
    weight = 2

    def make(self, generator: Generator, depth: int) -> Tree:
        fates = (("wait", "brief"), ("cancel", "idle"), ("cancel", "brief"), ("abandon", "brief"))
        return list(generator.chance.pick(fates))

    def steps(self, code: Code, ctx: Context, tree: Tree) -> Steps:
        _, fate, child = tree
        ctx.options(parent_close=fate).start(code.idle if child == "idle" else code.brief)
        yield from ()
        return "kin"

    def fits(self, tree: Tree, value: Any, fits: Callable[[Tree, Any], bool]) -> bool:
        return bool(value == "kin")


#: All verbs of this module, by kind.
VERBS: dict[str, Verb] = {
    verb.kind: verb
    for verb in (
        Map(),
        MapSome(),
        MapBranches(),
        Tolerant(),
        Saga(),
        Poll(),
        Condition(),
        Shield(),
        Kin(),
    )
}
