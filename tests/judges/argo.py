"""Argo CD's judgement, by its own Lua files, as its controller runs them (argo-cd, util/lua/lua.go)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lupa import lua51  # Argo CD's interpreter speaks Lua 5.1

CUSTOMIZATIONS = Path(__file__).parents[2] / "docs/reference/argocd/resource_customizations/nixops.dev"
_LIBRARIES = "for name in pairs(_G) do if not kept[name] then _G[name] = nil end end"
# Of the base library, `package`, `table`, and an `os` with two functions; there is no `string` and no `math`.
_KEPT = (
    *("_G", "assert", "error", "getmetatable", "ipairs", "next", "pairs", "pcall", "rawequal", "rawget", "rawset"),
    *("require", "select", "setmetatable", "tonumber", "tostring", "type", "unpack", "table", "package"),
)


def health(thing: Mapping[str, Any], script: str | None = None) -> tuple[str, str]:
    """(status, message) of the kind's health.lua, or of another script."""
    if script is None:
        script = _text(thing["kind"], "health.lua")
    told = _run(script, thing)
    return told["status"], told["message"]


def actions(thing: Mapping[str, Any]) -> dict[str, bool]:
    """Action → whether it is disabled."""
    found = _run(_text(thing["kind"], "actions/discovery.lua"), thing)
    return {name: bool(each.get("disabled", False)) if each else False for name, each in found.items()}


def act(thing: Mapping[str, Any], action: str) -> dict[str, Any]:
    """The object as the action leaves it."""
    return dict(_cleaned(_run(_text(thing["kind"], f"actions/{action}/action.lua"), thing), thing))


@functools.cache
def _text(kind: str, name: str) -> str:
    return (CUSTOMIZATIONS / kind / name).read_text()


def _run(script: str, thing: Mapping[str, Any]) -> Any:
    """What it returns, as its JSON would be: an empty table is an empty list (layeh.com/gopher-json)."""
    lua = lua51.LuaRuntime(register_eval=False, register_builtins=False, unpack_returned_tuples=True)
    given = lua.globals()
    given.kept = lua.table_from(dict.fromkeys((*_KEPT, "kept", "obj", "os"), True))
    given.obj = lua.table_from(thing, recursive=True)
    lua.execute("local date, time = os.date, os.time; os = {date = date, time = time}; package.loaded.os = os")
    lua.execute(_LIBRARIES)
    return _value(lua.execute(script))


def _value(value: Any) -> Any:
    if lua51.lua_type(value) != "table":
        return value
    keys = list(value.keys())
    if keys == list(range(1, len(keys) + 1)):
        return [_value(value[key]) for key in keys]
    return {key: _value(value[key]) for key in keys}


def _cleaned(new: Any, old: Any) -> Any:
    """An empty list where a map was is taken for that map, unchanged (cleanReturnedObj): who empties a map has changed
    nothing."""
    if isinstance(old, Mapping) and new == []:
        return dict(old)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {key: _cleaned(value, old.get(key)) for key, value in new.items()}
    if isinstance(old, Sequence) and not isinstance(old, str) and isinstance(new, list):
        return [_cleaned(value, old[place] if place < len(old) else None) for place, value in enumerate(new)]
    return new
