"""Frozen keyword-only values that cost nothing to import.

``dataclasses`` costs a fresh interpreter 20 ms and ``typing`` 12 ms: more than a whole container
launch. Classes on the path of ``run`` derive from Value instead; type checkers see a frozen
dataclass.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_):
        return lambda cls: cls


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Value:
    """Fields are the class's annotations, in order; a class attribute is a field's default."""

    _fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        own = tuple(name for name in cls.__annotations__ if name[0] != "_")
        cls._fields = cls._fields + own

    # Any: the field types are the subclass's; a type checker sees its own signature.
    def __init__(self, **given: Any) -> None:
        for name in self._fields:
            if name not in given and not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} needs {name}")
        for name in given:
            if name not in self._fields:
                raise TypeError(f"{type(self).__name__} has no field {name}")
        self.__dict__.update(given)
        self.check()

    def check(self) -> None:
        """Raises when the fields contradict each other; subclasses say when."""

    # Any: as in __init__.
    def replace(self, **changes: Any) -> Self:
        """The same value with some fields changed."""
        return type(self)(**{name: getattr(self, name) for name in self._fields} | changes)

    def __setattr__(self, name: str, _: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} is frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} is frozen")

    def _key(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self._fields)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._key() == self._key()

    def __hash__(self) -> int:
        return hash((type(self), self._key()))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({shown})"
