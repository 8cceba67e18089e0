"""Mistakes in the Lua of the Redis store: text of its scripts with something else in its place."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["OF_THE_LUA", "LuaMutant"]


@dataclass(frozen=True, slots=True)
class LuaMutant:
    """One mistake in the script of a verb, or in what all scripts share."""

    #: What goes wrong, in plain words.
    name: str
    #: The rule of the protocol, or the invariant, that it breaks.
    rule: str
    #: What is right, in each script that has it.
    right: str
    #: What stands there instead.
    wrong: str = ""

    def edit(self, script: str) -> str:
        """Return a script with the mistake, if it has the place for it."""
        return script.replace(self.right, self.wrong)


#: All of them.
OF_THE_LUA: tuple[LuaMutant, ...] = (
    LuaMutant(
        "a commit does not look for inputs that came meanwhile",
        "rule 4, I6",
        "local held = hold or (base > read and not is_closed(run))",
        "local held = hold",
    ),
    LuaMutant(
        "a step that is finished with its turn stays open",
        "rule 6, I2",
        "  forget_step(id, place, finished)\n  if hold",
        "  if hold",
    ),
    LuaMutant(
        "a lease that is not kept stays with the run",
        "rule 3, I6",
        "run.owner = nil else give_back(id)",
        "run.owner = owner else give_back(id)",
    ),
    LuaMutant(
        "the end of a run wakes nobody",
        "rule 1, I6",
        "  if is_closed(run) then wake(id) end\n",
    ),
    LuaMutant(
        "a wake-up has no agenda entry",
        "rule 1, I6",
        "  if not is_woken then arm(id, NOW + wait_after(0), 1) end\n",
    ),
    LuaMutant(
        "a scheduled step has no agenda entry",
        "rule 1, I5",
        "  redis.call('ZADD', AGENDA, NOW + wait_after(0), step_member(id, place))\n",
    ),
    LuaMutant(
        "a finished step stays open",
        "rule 6, I2",
        "tonumber(token))) then\n  forget_step(id, place, step)\n",
        "tonumber(token))) then\n",
    ),
    LuaMutant(
        "a dead owner is forgotten with all that it held",
        "rule 7, I5",
        "  count('o')\n  free_process(process)",
        "  count('o')\n  redis.call('DEL', held_key(process))\n  redis.call('ZREM', OWNERS, process)",
    ),
    LuaMutant(
        "a cancelled child is forgotten, and not told",
        "rule 1, I13",
        "  if step.child then\n    step.state, step.sends = 'cancelling', 0",
        "  if false then\n    step.state, step.sends = 'cancelling', 0",
    ),
    LuaMutant(
        "an outcome of the old run is recorded in the next one",
        "I3",
        "return execution == newest(id) and not is_closed(run_of(id))",
        "return not is_closed(run_of(id))",
    ),
    LuaMutant(
        "what the old run kept is left behind",
        "I10",
        "ipairs(told.kept or {})",
        "ipairs({})",
    ),
    LuaMutant(
        "an input is accepted after the end",
        "I9",
        "if is_closed(run) then return { -2, run.status } end",
        "",
    ),
)
