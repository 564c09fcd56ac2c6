"""From what a failed evaluation says to one message for people, in the user's own file names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nixops_operator.nix.internal_json import errors, event, text_of
from nixops_operator.nix.mentions import place_of, words_of
from nixops_operator.nix.texts import cut, plain

MESSAGE_LIMIT = 400
_USED = re.compile(r"^(?:trace: )?@nixops-used (?P<path>\S{1,400})$")
_UNKNOWN = re.compile(r"^@nixops-unknown (?P<path>\S{1,400})$")
# Every pattern is linear: no two quantifiers beside each other could take the same characters, and what stands between
# two signs is bounded, because a tenant may write the first sign a thousand times and never the second.
_QUOTED = r"[`'‘“\"](?P<path>/nix/store/[^'’”\"]{1,400})['’”\"]"
# How the module system names a file (nixpkgs, lib/modules.nix and lib/options.nix); it knows no lines.
_NAMED_FILE = re.compile(rf"(?:\b[Ii]n|definitions from) {_QUOTED}")
_STORE_FILE = re.compile(r"/nix/store/[0-9a-z]{32}-[A-Za-z0-9+._?=-]+(?:/[^\s'’`\"”:,;)]*)?")
_MISSING = re.compile(r"attribute '(?P<name>[^']{1,200})' missing")
_OPTION = re.compile(r"while evaluating the option [`'‘](?P<option>[^'’]{1,300})['’]")

_PLAIN_ERROR = "error: "
_TOO_DEEP = "max-call-depth exceeded"
_STACK_OVERFLOW = "stack overflow (possible infinite recursion)"
_IMPURE = " (use '--impure' to override)"
_NO_NETWORK = (
    "an evaluation has no network: name a tree of modules in spec.configuration.source.archive (url, hash), "
    "and put single files into the source"
)
_NIXPKGS_URL = re.compile(r"github\.com/nixos/nixpkgs|nixos\.org/channels/|channels\.nixos\.org/", re.IGNORECASE)
_NO_OTHER_NIXPKGS = (
    "an evaluation has no network: name this nixpkgs in spec.configuration.nixpkgs (url, hash); "
    "<nixpkgs>, `pkgs` and `lib` are of that one"
)
_NO_FLAKES = "flakes are not supported, nor builtins.getFlake and fetchTree"
_BY_CALL_PACKAGE = "not known to files that callPackage reads: take `pkgs` or `lib` as an argument there"
_RELATIVE = "put the file into spec.configuration.source and name it relative to the module"
_NO_IMPORT_FROM_DERIVATION = "'allow-import-from-derivation' is disabled"
_NOT_BUILT = (
    "what a configuration reads must be there before anything is built (no import from derivation): name its tree in "
    "spec.configuration.source.archive (url, hash), or put the finished file into the source"
)
_ADVICE = (
    # part of what Nix says → what to do instead of the switch that nobody has here
    ("has an unfree license", "to allow it, set nixpkgs.config.allowUnfree = true in a module"),
    ("because it has an unfree license", "to allow it, set nixpkgs.config.allowUnfree = true in a module"),
    ("marked as broken", "to try it all the same, set nixpkgs.config.allowBroken = true in a module"),
    ("marked as insecure", "to allow it, name it in nixpkgs.config.permittedInsecurePackages in a module"),
    (_NO_IMPORT_FROM_DERIVATION, _NOT_BUILT),
    # Files of the configuration know it (own_files.nix), but where pkgs.callPackage reads them.
    ("cannot look up '<nixpkgs>'", _BY_CALL_PACKAGE),
    ("cannot look up '<nixpkgs/", _BY_CALL_PACKAGE),
    (
        "cannot look up '<",
        "only <nixpkgs> is known: put its files into spec.configuration.source, and import them by their path",
    ),
    ("access to absolute path '", _RELATIVE),
    ("access to URI '", _NO_NETWORK),
    ("fetch unlocked input '", _NO_NETWORK),
    ("attribute 'fetchTree' missing", _NO_FLAKES),
    ("'builtins.storePath' is not allowed", _RELATIVE),
    (
        "attribute 'currentSystem' missing",
        "only files of the configuration have builtins.currentSystem: give `system` as an argument",
    ),
    ("attribute 'currentTime' missing", "builtins.currentTime does not exist here: one input has one result"),
    ("attribute 'getFlake' missing", _NO_FLAKES),
    ("feature 'flakes' is disabled", _NO_FLAKES),
)
_NO_SUCH_FILE = ("does not exist", "No such file or directory")
_BESIDE_TEXT = (
    "a module given as text lies in a folder of its own: put it into the source, too, or name files of the source in "
    "modules[].path"
)
_NO_SUCH_OPTION = re.compile(r"The option [`'‘](?P<option>[^'’.]{1,200})['’](?: defined in .{1,400})? does not exist")
# Such files have attributes of their own beside the names of machines (NixOps manual, "Network special attributes";
# colmena manual, "Deployment options"; Nix manual, "nix flake", "Flake format").
_NETWORK = re.compile(
    r"^[ \t]*(?:network|network\.[A-Za-z]+|resources\.[A-Za-z0-9]+\S*|meta|meta\.nixpkgs)[ \t]*=", re.MULTILINE
)
_IS_NETWORK = (
    "this file looks like a whole network (NixOps, colmena), and a module is one machine: make each of its machines an "
    "entry of spec.machines of a NixDeployment"
)
_FLAKE = re.compile(r"^[ \t]*outputs[ \t]*=", re.MULTILINE)
_IS_FLAKE = (
    "this file looks like a flake, which is no module: name the files that its nixosConfigurations list, and its "
    "nixpkgs in spec.configuration.nixpkgs"
)
_SWITCH = re.compile(r"; (?:add|use) '--extra-experimental-features [a-z -]{1,60}'[^;]{0,30}")


@dataclass(frozen=True)
class Names:
    """What people call the files of an evaluation."""

    user_files: Mapping[str, str]  # store path of a file → the label of the module that it is
    source: str | None = None  # store path of the machine's source: its files go by their relative path
    inline: str | None = None  # store path of the folder that holds the modules given as text
    nixpkgs: str | None = None  # folder of nixpkgs, which may lie in the source
    texts: Callable[[], Mapping[str, str]] = dict  # label → content of the user's files; read only for an error

    def of_user_file(self, path: str) -> str | None:
        """The user's name of a file of theirs; None for any other."""
        if path in self.user_files:
            return self.user_files[path]
        if self.nixpkgs is not None and path.startswith(f"{self.nixpkgs}/"):
            return None
        if self.source is not None and path.startswith(f"{self.source}/"):
            return path[len(self.source) + 1 :]
        return None

    def of_any(self, path: str) -> str:
        """A name for any store file: the user's, `nixpkgs/…`, or the path without its hash."""
        if (own := self.of_user_file(path)) is not None:
            return own
        if self.nixpkgs is not None and path.startswith(self.nixpkgs):
            return f"nixpkgs{path[len(self.nixpkgs) :]}"
        if self.inline is not None and path.startswith(f"{self.inline}/"):
            return path[len(self.inline) + 1 :]
        return path.removeprefix("/nix/store/")[33:]


def used_fact(line: str) -> str | None:
    """The path of the fact that was read, if this line of stderr says that one was (see entry.nix)."""
    if "@nixops-used " not in line or (found := event(line)) is None:
        return None
    match = _USED.match(text_of(found))
    return match["path"] if match is not None else None


def unknown_fact(lines: Iterable[str]) -> str | None:
    """The path of the fact for whose sake the evaluation ended, if it did for one. As `evaluation_message`."""
    found = list(errors(lines))
    match = _UNKNOWN.match(text_of(found[-1])) if found else None
    return match["path"] if match is not None else None


def evaluation_message(lines: Iterable[str], names: Names) -> str:
    """`web.nix:3:5: syntax error, unexpected '='`; at most 400 characters, one line. Empty if no error was reported.

    `lines`: stderr of Nix with internal-json messages and traces. May read files: not for the event loop's thread.
    """
    said = list(lines)
    found = list(errors(said))
    if not found:
        # What comes from a signal handler of Nix, or from a program that does not write such messages.
        text = next((line for line in reversed(said) if line.startswith(_PLAIN_ERROR)), "")
        return cut(plain(text).removeprefix(_PLAIN_ERROR), MESSAGE_LIMIT)
    error = found[-1]
    raw = text_of(error)
    text = _with_advice(" ".join(_said(raw, error).split()), error)
    place = _place(error, names) or _mentioned(raw, error, names)
    if (other := _another_kind_of_file(text, place, names)) is not None:
        text = f"{text.rstrip('.')}; {other}"
    elif names.inline is not None and f"'{names.inline}/" in raw and any(words in raw for words in _NO_SUCH_FILE):
        text = f"{text.rstrip('.')}; {_BESIDE_TEXT}"
    text = _STORE_FILE.sub(lambda match: names.of_any(match[0]), text)
    return cut(f"{place}: {text}" if place else text, MESSAGE_LIMIT)


def _said(raw: str, error: dict[str, Any]) -> str:
    """The part of the message that helps."""
    if "Failed assertions:" in raw:
        return _assertions(raw)
    if (missing := _MISSING.search(raw)) is not None and any(
        f"module argument `{missing['name']}'" in _text(frame) for frame in _frames(error)
    ):
        return f"there is no module argument `{missing['name']}'"
    if "infinite recursion" in raw:
        option = next((match["option"] for frame in _frames(error) if (match := _OPTION.search(_text(frame)))), None)
        return f"infinite recursion encountered while evaluating the option `{option}'" if option else raw
    first = _first_paragraph(raw)
    # What follows repeats the user's value at length; the file is named in front.
    for repeated in ("Definition values:", "Definition value:"):
        first = first.partition(repeated)[0].rstrip()
    first = first.replace(":\n- ", ": ", 1).replace("\n- ", "; ")
    suggestion = _suggestion(plain(str(error.get("msg") or "")))
    if suggestion and suggestion not in first:
        return f"{first}{'' if first.endswith('.') else '.'} {suggestion}"
    return first


def _first_paragraph(text: str) -> str:
    """The lines up to the first blank one."""
    return "\n".join(itertools.takewhile(str.strip, text.strip().split("\n")))


def _suggestion(text: str) -> str:
    """`Did you mean …?`; empty if there is none."""
    _, opening, rest = text.partition("Did you mean ")
    found, question, _ = rest.partition("\n")[0].rpartition("?")
    return f"{opening}{found}{question}" if question else ""


def _with_advice(text: str, error: dict[str, Any]) -> str:
    """What to do, where Nix' own advice is none: there is no command line here."""
    if _TOO_DEEP in text:
        return _STACK_OVERFLOW
    text = _SWITCH.sub("", text.replace(_IMPURE, ""))
    if "unexpected invalid token" in text and (error.get("line"), error.get("column")) == (1, 1):
        return f"{text}: perhaps a byte-order mark; save the file as UTF-8 without one"
    advice = next((advice for said, advice in _ADVICE if said in text), None)
    if advice is _NO_NETWORK and _NIXPKGS_URL.search(text):
        advice = _NO_OTHER_NIXPKGS
    return f"{text.rstrip('.')}: {advice}" if advice else text


def _another_kind_of_file(text: str, place: str | None, names: Names) -> str | None:
    """What the user's file is instead of a module, where it defines an option of one word that there is not: such a
    file has the names of its machines there."""
    if _NO_SUCH_OPTION.match(text) is None:
        return None
    texts = names.texts()
    label = place.partition(":")[0] if place is not None else ""
    signs = ((_NETWORK, _IS_NETWORK), (_FLAKE, _IS_FLAKE))
    return next((words for sign, words in signs if sign.search(texts.get(label, ""))), None)


def _assertions(raw: str) -> str:
    listed = raw.split("Failed assertions:", 1)[1].strip().split("\n\n", 1)[0]
    items: list[str] = []
    for line in listed.split("\n"):
        said = line.strip()
        if said.startswith("- "):
            items.append(said[2:].strip())
        elif said:
            items[-1:] = [f"{items[-1]} {said}" if items else said]
    return f"Failed assertions: {'; '.join(items)}"


def _place(error: dict[str, Any], names: Names) -> str | None:
    """Where in the user's files, if Nix knows the line."""
    for frame in (error, *_frames(error)):
        line = frame.get("line")
        if line and (own := names.of_user_file(_file(frame))) is not None:
            return f"{own}:{line}:{frame.get('column')}"
    return None


def _mentioned(raw: str, error: dict[str, Any], names: Names) -> str | None:
    """The user's file that the module system names, or that alone names what the message does; with the line if that
    is one line."""
    if "conflicting definition" in raw or "Failed assertions:" in raw:
        return None  # it names several files itself, or says what its author found useful
    options = [match["option"] for frame in _frames(error) if (match := _OPTION.search(_text(frame)))]
    said = raw.partition(" is not of type ")[0]  # the type that it should have been is no word of the user's
    words = [*words_of(said), *words_of("".join(f"`{option}' " for option in options[:1]))]
    label = _named_file(raw, error, names)
    texts = names.texts()
    found = place_of(words, texts if label is None else {label: texts[label]} if label in texts else {})
    if found is not None:
        return f"{found[0]}:{found[1]}"
    if label is None and _NO_IMPORT_FROM_DERIVATION in raw and len(texts) == 1:
        return next(iter(texts))  # nixpkgs' own files never do it
    return label


def _named_file(raw: str, error: dict[str, Any], names: Names) -> str | None:
    for frame in (error, *_frames(error)):
        if (own := names.of_user_file(_file(frame))) is not None:
            return own
    for text in (raw, *map(_text, _frames(error))):
        for match in _NAMED_FILE.finditer(text):
            if (own := names.of_user_file(match["path"])) is not None:
                return own
    return None


def _frames(error: dict[str, Any]) -> list[dict[str, Any]]:
    """The trace, innermost frame first."""
    trace = error.get("trace")
    return [frame for frame in trace if isinstance(frame, dict)] if isinstance(trace, list) else []


def _file(frame: dict[str, Any]) -> str:
    """Its path, empty if there is none; newer versions say line and column there, too."""
    return str(frame.get("file") or "").removesuffix(f":{frame.get('line')}:{frame.get('column')}")


def _text(frame: dict[str, Any]) -> str:
    return plain(str(frame.get("raw_msg") or ""))
