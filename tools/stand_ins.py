# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Empty classes and modules that take the place of what vLLM's sources import and an extraction does not need."""

from __future__ import annotations

import abc
import importlib.abc
import importlib.machinery
import types
from collections.abc import Iterator, Sequence
from typing import Any


class StandInType(abc.ABCMeta):
    """A class that lets itself be called, subscripted, combined and asked for any public attribute."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") or name == "_abc_impl":
            raise AttributeError(name)
        value = stand_in(name)
        setattr(cls, name, value)
        return value

    def __getitem__(cls, item: object) -> Any:
        return cls

    def __or__(cls, other: object) -> Any:
        return cls

    def __ror__(cls, other: object) -> Any:
        return cls

    def __iter__(cls) -> Iterator[Any]:
        return iter(())

    def __contains__(cls, item: object) -> bool:
        return False

    def register(cls, *args: Any, **kwargs: Any) -> Any:
        return cls


def stand_in(name: str) -> Any:
    """Return an empty class that can take the place of a class, a function, a decorator or a constant.

    Called, it is itself, or as a decorator what it decorates. Classes of the sources that derive from it are made as
    usual, and keep the first thing that they are given as C(moe).
    """

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        if cls.__dict__.get("is_stand_in"):
            return args[0] if len(args) == 1 and not kwargs and callable(args[0]) else cls
        return object.__new__(cls)

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        self.moe = args[0] if args else None

    body = {"__new__": new, "__init__": init, "is_stand_in": True}
    return StandInType(name, (), {**body, "__init_subclass__": classmethod(lambda cls, **kwargs: None)})


class StandInModule(types.ModuleType):
    """A module that has whatever public name it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = stand_in(name)
        setattr(self, name, value)
        return value


class StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stand-ins for the modules that `stands_in` names."""

    module: type[StandInModule] = StandInModule

    def stands_in(self, fullname: str) -> bool:
        """Return whether a module is replaced."""
        raise NotImplementedError

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return where a module that is replaced comes from."""
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if self.stands_in(fullname) else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Return an empty module."""
        return self.module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Give the module the version that some ask for."""
        module.__version__ = "0.0.0"  # type: ignore[attr-defined]
