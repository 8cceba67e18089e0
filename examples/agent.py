"""Agent: a language model that uses tools, and a person who has the last word.

The loop is the workflow; each call of the model and each tool is a step. A crash in the middle repeats no call that
was paid for, and the agent may wait for its person for days without a process. What it thinks can be followed while it
thinks (a stream), where it stands can be asked (a query), and its person approves what costs money (an update with a
validator, so that a second click is refused with a reason).

    python examples/agent.py

The model here is a stand-in with fixed answers. In your project it is the task that calls your provider, with a
retry policy for "too many requests".
"""

import os
from typing import Any

from celery import Celery

from durable_celery import RetryPolicy, WorkflowContext, durable_task

app = Celery("agent", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"))
app.conf.task_default_queue = "agent"
app.conf.durable_store = os.environ.get("DURABLE_STORE_URL", "")

MODEL_RETRY = RetryPolicy(initial_interval=0.5, maximum_attempts=6)


@app.task
def ask_model(conversation: list[dict[str, Any]]) -> dict[str, Any]:
    """Stand in for a model: what it says follows from how far the conversation has come."""
    results = {message["tool"]: message["result"] for message in conversation if message["role"] == "tool"}
    if "search_flights" not in results:
        return {"thought": "First I need to know which flights there are.", "tool": "search_flights", "args": ["ROM"]}
    if "book_flight" not in results:
        flight = min(results["search_flights"], key=lambda offer: offer["price"])
        return {"thought": f"{flight['number']} is the cheapest.", "tool": "book_flight", "args": [flight["number"]]}
    if results["book_flight"] is None:
        return {"thought": "I am not allowed to book it.", "answer": "No flight was booked."}
    return {"thought": "All is done.", "answer": f"You fly with {results['book_flight']}."}


@app.task
def search_flights(to: str) -> list[dict[str, Any]]:
    return [{"number": f"{to}-7", "price": 180}, {"number": f"{to}-3", "price": 95}]


@app.task
def book_flight(number: str) -> str:
    return f"ticket {number}"


TOOLS = {"search_flights": search_flights, "book_flight": book_flight}
COSTS_MONEY = {"book_flight"}


@durable_task
def travel_agent(ctx: WorkflowContext, goal: str) -> str:
    ctx.state.phase, ctx.state.proposal, ctx.state.decision = "thinking", None, None
    thoughts = ctx.stream("thoughts")
    conversation: list[dict[str, Any]] = [{"role": "user", "text": goal}]
    while True:
        move = ctx.options(retry=MODEL_RETRY).step(ask_model, conversation)
        thoughts.append(move["thought"])
        if "answer" in move:
            ctx.state.phase = "done"
            return move["answer"]
        allowed = move["tool"] not in COSTS_MONEY or ask_person(ctx, f"{move['tool']}({', '.join(move['args'])})")
        ctx.state.phase = "working"
        result = ctx.step(TOOLS[move["tool"]], *move["args"]) if allowed else None
        conversation.append({"role": "tool", "tool": move["tool"], "result": result})


def ask_person(ctx: WorkflowContext, proposal: str) -> bool:
    """Show a proposal and wait, for as long as it takes, until the update has decided."""
    ctx.state.phase, ctx.state.proposal, ctx.state.decision = "waiting for a person", proposal, None
    ctx.wait_until(lambda: ctx.state.decision is not None)
    ctx.state.proposal = None
    return ctx.state.decision


@travel_agent.query
def status(state: Any) -> str:
    return f"{state.phase}: {state.proposal}" if state.proposal else state.phase


@travel_agent.update
def decide(ctx: WorkflowContext, *, by: str, approved: bool) -> str:
    ctx.state.decision = approved
    ctx.publish("decided by", by)
    return f"{ctx.state.proposal} {'approved' if approved else 'refused'} by {by}"


@decide.validator
def is_asked(state: Any, **_: Any) -> None:
    if state.proposal is None:
        raise ValueError(f"there is nothing to decide: the agent is {state.phase}")


def main() -> None:
    from stage import Stage, wait_until

    with Stage(app, "agent") as stage:
        stage.start_worker()

        agent = travel_agent.delay("a cheap flight to Rome")
        wait_until(lambda: "waiting" in agent.query(status), "the agent to ask its person")
        print("the agent is", agent.query(status))
        print("maria clicks:    ", agent.update(decide, by="maria", approved=True, key="click-1", timeout=60))
        print("her click, again:", agent.update(decide, by="maria", approved=True, key="click-1", timeout=60))
        for _, thought in agent.stream("thoughts", timeout=60):
            print("  it thinks:", thought)
        print("the agent says:  ", agent.get(timeout=60))
        print("decided by:      ", agent.published("decided by"))

        careful = travel_agent.delay("a cheap flight to Rome")
        wait_until(lambda: "waiting" in careful.query(status), "the agent to ask its person")
        # All workers may be away meanwhile: a query needs none, and what is decided is kept.
        stage.stop_workers()
        print("without a worker:", careful.query(status))
        refusal = careful.start_update(decide, by="tom", approved=False)
        stage.start_worker("B")
        print("tom decides:     ", refusal.result(timeout=60))
        print("the agent says:  ", careful.get(timeout=60))


if __name__ == "__main__":
    main()
