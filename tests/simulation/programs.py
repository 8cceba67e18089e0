"""Random programs: trees of JSON lists, what each must return, and which effects it must have.

A tree is data, so it travels as the argument of a run, and a story can print it. Each node that has an effect has a
number of its own, its *token*: the effects of a step are counted by token and idempotency key. What reads a tree as
workflow code stands in :mod:`tests.simulation.code`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.simulation.chance import Stream

Tree = list[Any]

#: Nodes whose children all run to their end.
SERIAL = ("series", "parallel", "group", "queue", "event")
#: The program of a workflow that goes on as a new run after each of its parts.
LIVES = "lives"
#: Nodes whose child may be given up before its end.
HASTY = ("race branch", "timeout", "wait for")


class Generator:
    """Makes program trees."""

    def __init__(self, chance: Stream) -> None:
        self.chance, self.tokens, self.signals = chance, 0, 0
        #: Signals are sent to the outer run only.
        self.is_child = False

    def program(self) -> Tree:
        """Make a program: most are small, some are large."""
        size = self.chance.below(20)
        if size < 9:
            return self.leaf()
        if size < 12:
            return self.lives(2)
        return self.tree(2 if size < 15 else 1 if size < 18 else 0)

    def lives(self, depth: int) -> Tree:
        """Make the program of a whole workflow: only its own function may continue as new."""
        return [LIVES, *(self.tree(depth) for _ in range(1 + self.chance.below(3)))]

    def tree(self, depth: int) -> Tree:
        if depth > 2 or self.chance.below(10) < 4:
            return self.leaf()
        return self.chance.pick(_NODES)(self, depth + 1)

    def leaf(self) -> Tree:
        return self.chance.pick(_LEAVES)(self)

    def token(self) -> int:
        self.tokens += 1
        return self.tokens

    # -- leaves ------------------------------------------------------------------------------------------------------

    def step(self) -> Tree:
        return ["step", self.token()]

    def flaky(self) -> Tree:
        return ["flaky", self.token(), self.chance.below(3)]

    def broken(self) -> Tree:
        return ["broken", self.token()]

    def again(self) -> Tree:
        return ["again", self.token()]

    def revocable(self) -> Tree:
        return ["revocable", self.token(), self.chance.below(3)]

    def late(self) -> Tree:
        return ["late", self.token(), self.chance.pick((30, 1, 8))]

    def handles(self) -> Tree:
        return ["handles", *(self.token() for _ in range(1 + self.chance.below(4)))]

    def local(self) -> Tree:
        return ["local", self.token(), self.chance.below(2)]

    def sleep(self) -> Tree:
        return [self.chance.pick(("sleep", "until")), self.chance.pick((0, 0.5, 2, 7))]

    def draw(self) -> Tree:
        return ["draw", self.token()]

    def patched(self) -> Tree:
        return ["patched", self.chance.below(2)]

    def signal(self) -> Tree:
        if self.is_child:
            return self.step()
        self.signals += 1
        return ["signal", f"s{self.signals}", self.chance.pick((0, 1, 20))]

    def maybe(self) -> Tree:
        if self.is_child:
            return self.step()
        self.signals += 1
        return ["maybe", f"s{self.signals}", self.chance.pick((3, 1)), self.chance.pick((0, 1, 2, None))]

    def race(self) -> Tree:
        return ["race", self.token(), self.chance.pick((0.5, 3))]

    def dropped_step(self) -> Tree:
        return ["dropped step", self.token(), self.chance.pick((0, 0.5))]

    def dropped_child(self) -> Tree:
        return ["dropped child", self.chance.pick(("idle", "brief")), self.chance.pick((0, 0.5, 4))]

    def forgotten(self) -> Tree:
        """Start something that nobody waits for; it may still go on when the run ends."""
        return [self.chance.pick(("forgotten step", "forgotten child")), self.token()]

    # -- nodes -------------------------------------------------------------------------------------------------------

    def serial(self, depth: int) -> Tree:
        kind = self.chance.pick(SERIAL)
        return [kind, *(self.tree(depth) for _ in range(1 + self.chance.below(3)))]

    def hasty(self, depth: int) -> Tree:
        kind = self.chance.pick(HASTY)
        return [kind, self.tree(depth), self.chance.pick((20, 0.5, 3))]

    def guarded(self, depth: int) -> Tree:
        return ["guarded", self.tree(depth), self.token()]

    def child(self, depth: int) -> Tree:
        before, self.is_child = self.is_child, True
        tree = self.lives(depth) if self.chance.below(4) == 3 else self.tree(depth)
        self.is_child = before
        return ["child", tree, self.chance.pick(("same", "other"))]


_Leaf = Callable[[Generator], Tree]
_LEAVES: tuple[_Leaf, ...] = (
    *[Generator.step] * 4,
    *[Generator.flaky, Generator.local, Generator.sleep, Generator.signal, Generator.handles] * 2,
    *[Generator.broken, Generator.again, Generator.revocable, Generator.late, Generator.draw, Generator.patched],
    *[Generator.maybe, Generator.race, Generator.dropped_step, Generator.dropped_child, Generator.forgotten],
)
_NODES: tuple[Callable[[Generator, int], Tree], ...] = (
    *[Generator.serial] * 4,
    *[Generator.child] * 2,
    Generator.hasty,
    Generator.guarded,
)


def nodes(tree: Tree) -> Iterator[Tree]:
    """Yield all nodes of a tree."""
    yield tree
    for part in children(tree):
        yield from nodes(part)


def children(tree: Tree) -> list[Tree]:
    return [part for part in tree[1:] if isinstance(part, list)]


def owed(tree: Tree) -> Iterator[int]:
    """Yield the tokens of the effects that a program which ran to its end must have had."""
    match tree:
        case ["step" | "flaky" | "again" | "draw" | "local", token, *_]:
            yield token
        case ["handles", *tokens]:
            yield from tokens
        case ["guarded" | "child", part, _]:
            yield from owed(part)
        case [kind, *parts] if kind in (LIVES, *SERIAL):
            for part in parts:
                yield from owed(part)
        case _:
            pass


def fits(tree: Tree, value: Any) -> bool:  # noqa: C901, PLR0911, PLR0912 - one case for each kind of node
    """Tell whether a program may return this value."""
    match tree:
        case ["step" | "flaky" | "again", token, *_]:
            return bool(value == token + 1)
        case ["broken", _]:
            return bool(value == "gave up")
        case ["revocable", token, _]:
            return value in {token + 1, "revoked"}
        case ["late", token, _]:
            return value in {token + 1, "late"}
        case ["handles", *tokens]:
            return bool(value == [token + 1 for token in tokens])
        case ["local" | "draw", token, *_]:
            return bool(value == token)
        case ["signal", name, _]:
            return bool(value == f"value of {name}")
        case ["maybe", name, _, sent]:
            return value == "none" or (sent is not None and bool(value == f"value of {name}"))
        case ["race", token, _]:
            return value in (["step", token + 1], ["alarm", None])
        case ["patched", _]:
            return value is True
        case ["guarded" | "child", part, _]:
            return fits(part, value)
        case [kind, part, _] if kind in HASTY:
            return bool(value == "too late") or fits(part, value)
        case [kind, *parts] if kind in (LIVES, *SERIAL):
            return len(value) == len(parts) and all(map(fits, parts, value))
        case [kind, *_]:
            return bool(value == kind)
        case _:
            return False
