"""Records: the small classes without behaviour that the parts hand to each other.

For type checkers a record is a frozen dataclass. At run time nothing enforces it: that would cost as much again, when
the package is imported and with each event of a history that is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:
    from dataclasses import dataclass

    def record(*, frozen: bool, **options: Any) -> Any:
        """Make a dataclass with a hash. ``frozen`` is for type checkers."""
        return dataclass(unsafe_hash=frozen, **options)


__all__ = ["record"]
