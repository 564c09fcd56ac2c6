"""Where in the user's files the words of a message stand.

The module system knows in which file an option is defined, and not in which line; of a package that nixpkgs refuses
Nix knows only places inside nixpkgs. What such a message names is written in one place of a small configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_QUOTED = re.compile(r"[`'‘“\"](?P<word>[^`'‘’“”\"\s]{2,200})['`’”\"]")
_VERSION = re.compile(r"-[0-9].*")
_DERIVATION = re.compile(r"/nix/store/[0-9a-z]{32}-(?P<name>.+)\.drv(?:\^\S+)?")
_SHORTEST = 3  # characters of a part of a longer word; `a` is everywhere


def words_of(message: str) -> list[str]:
    """What a message quotes, as it may be written in a configuration: option paths from the whole to the last name,
    packages and derivations without their version, files without their folder. The most telling first."""
    words: list[str] = []
    for match in _QUOTED.finditer(message):
        word = match["word"]
        shorter = [word]
        if (derivation := _DERIVATION.fullmatch(word)) is not None:
            shorter += [derivation["name"], _VERSION.sub("", derivation["name"])]
        elif word.startswith("/"):
            shorter += [word.rpartition("/")[2]]
        elif "/" not in word:
            shorter += [_VERSION.sub("", word)]
            shorter += [word.split(".", depth)[-1] for depth in range(1, word.count(".") + 1)]
        words += [each for each in shorter if each == word or len(each) >= _SHORTEST]
    return list(dict.fromkeys(words))


def place_of(words: Iterable[str], texts: Mapping[str, str]) -> tuple[str, int] | None:
    """Label and line of the first word that stands, as a word of its own, in exactly one line of all texts."""
    lines = [(label, number, line) for label, text in texts.items() for number, line in enumerate(text.split("\n"), 1)]
    for word in words:
        found = [(label, number) for label, number, line in lines if _holds(line, word)]
        if len(found) == 1:
            return found[0]
    return None


def _holds(line: str, word: str) -> bool:
    begin = line.find(word)
    while begin >= 0:
        before, after = line[begin - 1 : begin], line[begin + len(word) : begin + len(word) + 1]
        if not (_is_part(before) or _is_part(after)):
            return True
        begin = line.find(word, begin + 1)
    return False


def _is_part(character: str) -> bool:
    return character.isalnum() or character in ("_", "-")
