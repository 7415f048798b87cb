"""Names for plug-ins: which methods exist, what they declare, and how they are built from text.

A method is a class with fields as its hyper-parameters and a declaration of what its scores are::

    @register("rollout", signed=False, total="one", needs={"attention"}, citation="...")
    @dataclass(frozen=True)
    class Rollout: ...

The built-in ones are found by listing the package ``xattn.methods``, third-party ones through the
entry-point group of the same name.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import warnings
from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, fields
from importlib.metadata import entry_points
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from xattn.errors import InputError, UnknownNameError, XattnError

if TYPE_CHECKING:
    from torch import Tensor

    from xattn.model import Model
    from xattn.types import Batch, Target

Total = Literal["one", "difference", "free"]
Need = Literal["attention", "gradients"]


@dataclass(frozen=True)
class Declaration:
    """What a method promises about its scores; the conformance suite holds it to this."""

    signed: bool
    """Whether a negative score means that the token speaks against the target."""
    total: Total
    """What the scores sum to: 1 (``"one"``), the method's `difference` (``"difference"``), or
    nothing in particular (``"free"``)."""
    citation: str
    """Authors, year and title of the source."""
    needs: Collection[Need] = ()
    """What the model must offer."""
    units: int | None = None
    """The most units that a text may have; None for any number."""


class Method(Protocol):
    """An explanation method: a frozen dataclass whose fields are its hyper-parameters."""

    name: ClassVar[str]
    declaration: ClassVar[Declaration]

    def __call__(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return the scores, ``[batch, token]``; what stands at padding is ignored."""
        ...


class Completeness(Method, Protocol):
    """A method whose scores must sum to a known difference of the target."""

    def difference(self, model: Model, batch: Batch, target: Target) -> Tensor:
        """Return what the scores of each example must sum to, ``[batch]``."""
        ...


Class = TypeVar("Class", bound=type)
Plugin = TypeVar("Plugin")
Declared = ParamSpec("Declared")


class Registry(Generic[Plugin]):
    """Classes by name, for one plug-in group.

    Parameters
    ----------
    group : str
        The entry-point group under which others offer their plug-ins.
    kind : str
        What a plug-in is called in messages.
    package : str, optional
        The package that holds the built-in plug-ins; called as the group by default.
    """

    def __init__(self, group: str, kind: str, package: str | None = None) -> None:
        self.group, self.kind, self.package = group, kind, package or group
        self._classes: dict[str, type[Plugin]] = {}
        self._broken: dict[str, str] = {}
        self._discovered = False

    def registering(
        self, declare: Callable[Declared, Any]
    ) -> Callable[Concatenate[str, Declared], Callable[[Class], Class]]:
        """Return ``register(name, ...)``, which takes what `declare` takes beside the name.

        That returns a class decorator, which adds the class under the name with its declaration.
        """

        def register(
            name: str, /, *args: Declared.args, **declared: Declared.kwargs
        ) -> Callable[[Class], Class]:
            return self._adding(name, declare(*args, **declared))

        return register

    def _adding(self, name: str, declaration: Any) -> Callable[[Class], Class]:
        """Return a class decorator; it raises `XattnError` if another object has the name."""

        def add(cls: Class) -> Class:
            # a plug-in that is none would break whatever lists the fields of all
            if not hasattr(cls, "__dataclass_fields__"):
                raise XattnError(
                    f"the {self.kind} {name!r} is not a dataclass",
                    got=f"{cls.__module__}.{cls.__qualname__}",
                    remedy="put @dataclass(frozen=True) under @register(...)",
                )
            known = self._classes.get(name)
            if known is not None and known is not cls:
                raise XattnError(
                    f"two {self.kind}s are called {name!r}",
                    got=f"{cls.__module__}.{cls.__qualname__}",
                    expected=f"only {known.__module__}.{known.__qualname__}",
                    remedy="register one of them under another name",
                )
            cls.name = name  # type: ignore[attr-defined]
            cls.declaration = declaration  # type: ignore[attr-defined]
            self._classes[name] = cls
            return cls

        return add

    def discover(self) -> None:
        """Import the built-in plug-ins and those of installed packages, once."""
        if self._discovered:
            return
        self._discovered = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__, prefix=f"{self.package}."):
            importlib.import_module(module.name)
        for point in entry_points(group=self.group):
            # A stranger's broken package must not take the built-in ones down with it.
            try:
                point.load()
            except Exception as error:  # whatever a plug-in's import may raise
                self._broken[point.name] = f"{type(error).__name__}: {error}"
                warnings.warn(
                    f"the {self.kind} {point.name!r} of {point.value} cannot be loaded: "
                    f"{self._broken[point.name]}",
                    stacklevel=2,
                )

    def names(self) -> list[str]:
        """Return the names of all plug-ins, sorted."""
        self.discover()
        return sorted(self._classes)

    def get(self, name: str) -> type[Plugin]:
        """Return the class called `name`.

        Raises
        ------
        UnknownNameError
            With the known names and the nearest of them.
        """
        self.discover()
        if name in self._broken and name not in self._classes:
            raise XattnError(f"the {self.kind} {name!r} cannot be loaded", got=self._broken[name])
        if name not in self._classes:
            raise UnknownNameError(self.kind, name, self._classes)
        return self._classes[name]

    def build(self, spec: str) -> Plugin:
        """Return an instance from text: ``NAME`` or ``NAME:field=value,field=value``.

        Examples
        --------
        >>> methods.build("rollout:residual=0.3")
        Rollout(residual=0.3)
        """
        name, _, options = spec.partition(":")
        cls = self.get(name.strip())
        known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
        values: dict[str, Any] = {}
        for option in filter(None, (part.strip() for part in options.split(","))):
            key, equals, text = (part.strip() for part in option.partition("="))
            if key not in known:
                raise UnknownNameError(f"option of {name}", key, known)
            if not equals:
                raise InputError(f"option of {name}", got=repr(option), expected=f"{key}=VALUE")
            values[key] = _parse(name, key, text, get_type_hints(cls)[key])
        return cls(**values)


def _parse(name: str, key: str, text: str, hint: Any) -> Any:
    """Return the value that `text` stands for, if it is of the field's type."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    allowed = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    for kind in allowed:
        if get_origin(kind) is Literal:
            if value in get_args(kind):
                return value
        elif kind is float and type(value) is int:
            return float(value)
        elif type(value) is kind:
            return value
    wanted = " or ".join(
        ", ".join(map(repr, get_args(kind))) if get_origin(kind) is Literal else kind.__name__
        for kind in allowed
        if kind is not NoneType
    )
    raise InputError(f"{key} of {name}", got=repr(text), expected=wanted)


def defaults(cls: type[Any]) -> dict[str, Any]:
    """Return the hyper-parameters of a plug-in class with their default values."""
    return {f.name: None if f.default is MISSING else f.default for f in fields(cls)}


methods: Registry[Method] = Registry("xattn.methods", "method")
register = methods.registering(Declaration)


def family(label: str) -> Literal["attention", "gradients", "other"]:
    """Return what a method reads: gradients if it needs any, else attention; or neither.

    Parameters
    ----------
    label : str
        Its name, with or without options.
    """
    try:
        needs = methods.get(label.partition(":")[0]).declaration.needs
    except XattnError:  # of a plug-in that is no longer there
        return "other"
    if "gradients" in needs:
        return "gradients"
    return "attention" if "attention" in needs else "other"
