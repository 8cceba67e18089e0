"""Signatures as they look in JSON, without Celery."""

from __future__ import annotations

from typing import Any

Signature = dict[str, Any]


def sig(
    task: str, *args: Any, immutable: bool = False, kwargs: dict[str, Any] | None = None, **options: Any
) -> Signature:
    return {
        "task": task,
        "args": list(args),
        "kwargs": kwargs or {},
        "options": options,
        "subtask_type": None,
        "immutable": immutable,
    }


def chain(*tasks: Signature, **options: Any) -> Signature:
    return sig("celery.chain", kwargs={"tasks": list(tasks)}, **options)


def group(*tasks: Signature, **options: Any) -> Signature:
    return sig("celery.group", kwargs={"tasks": list(tasks)}, **options)


def chord(header: Any, body: Signature | None, **options: Any) -> Signature:
    return sig("celery.chord", kwargs={"kwargs": {}, "header": header, "body": body}, **options)
