"""What may be shown and kept of a place of shards, in which user info, query and command may hold secrets.

    https://user:password@host/path?signature=1a2b    -->  https://***@host/path?***
    pipe:curl -H 'Authorization: 1a2b' host/{shard}   -->  pipe:***
    https://${USER}:${PASSWORD}@host/path             -->  the same: it only names variables of the environment

Whatever is kept or said goes through `shown` (a value) or `redacted` (a text that may quote one). Imports nothing of the
package: every error's text passes here.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
"""Stands where a secret stood."""
REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""A variable of the environment."""

_SAFE = rf"(?:{REFERENCE.pattern}|\*\*\*)"
_SAFE_USER = re.compile(rf"(?:{_SAFE}|:)*")
_SAFE_QUERY = re.compile(rf"(?:[\w.-]+=)?{_SAFE}(?:&(?:[\w.-]+=)?{_SAFE})*|")
_SAFE_COMMAND = re.compile(rf"(?:{_SAFE}|\{{shard\}}|\s)+|COMMAND")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://")
"""Bounded, so that a text of a megabyte is looked through in a moment; of a longer word the end is taken."""
_ADDRESS = re.compile(rf"{_SCHEME.pattern}[^\s'\"]*[^\s'\",;:.)]")
_QUOTED = re.compile(r"'([^'\n]*)'")
_COMMAND = re.compile(r"\s*(pipe:)", re.IGNORECASE)
_PIPE = re.compile(r"(?<!broken )(?<![\w/.-])pipe:", re.IGNORECASE)
"""Begins a command; a file of that name has a path before it."""
_SAFE_START = re.compile(
    rf"(?:\s*(?:{REFERENCE.pattern}|\{{shard\}}))+(?=$|[',;:)]| \(| ->)|\s*(?:\*\*\*|COMMAND)", re.MULTILINE
)
_CLOSING_QUOTE = re.compile(r"'(?=$|[\s,;:)\]}])", re.MULTILINE)
_WORD_ENDS = re.compile(r"[\s'\"=:;|&()<>@?,`$]+")
_PROGRAM = re.compile(r"(?:^|[|&;(`])\s*([\w./+-]+)(?=\s|$)")
_LONG = 6
"""Characters from which on a secret is looked for inside of words too."""
_SHORTEST, _SHORTEST_OF_COMMAND = 3, 4
"""Characters of what is taken for a secret: anything else would be found everywhere."""


def shown(place: str) -> str:
    """A place without what may be secret in it; other text stays as it is."""
    if pipe := _COMMAND.match(place):
        return place if _SAFE_COMMAND.fullmatch(place, pipe.end()) else f"{pipe[1]}{HIDDEN}"
    head, user, at, tail = _parts(place)
    if at and not head and ":" not in user:
        return place  # a directory with an @ in its name
    if at and not _SAFE_USER.fullmatch(user):
        user = HIDDEN
    if head:
        tail, mark, fragment = tail.partition("#")
        tail, question, query = tail.partition("?")
        tail += question + (query if _SAFE_QUERY.fullmatch(query) else HIDDEN)
        tail += mark + (HIDDEN if fragment else "")
    return head + user + at + tail


def redacted(text: str) -> str:
    """A text without the secrets of addresses and commands that it quotes."""
    text = _QUOTED.sub(lambda match: f"'{_shown_within(match[1])}'", _without_commands(text))
    return _ADDRESS.sub(lambda match: shown(match[0]), text)


def kept(plain: Any) -> Any:
    """A plain config as a run keeps it: every text in it as `shown` has it."""
    if isinstance(plain, dict):
        return {key: kept(item) for key, item in plain.items()}
    if isinstance(plain, list):
        return [kept(item) for item in plain]
    return shown(plain) if isinstance(plain, str) else plain


def is_hidden(place: str) -> bool:
    """Whether a place has lost its secrets, so that nothing can be fetched from it."""
    if place.startswith("pipe:"):
        return HIDDEN in place and bool(_SAFE_COMMAND.fullmatch(place.removeprefix("pipe:")))
    head, user, _, tail = _parts(place)
    return bool(head) and (HIDDEN in user or HIDDEN in tail.partition("?")[2])


def words_of(place: str, values: Iterable[str] = ()) -> tuple[str, ...]:
    """The secrets of a place, as others may repeat them in what they say; `values` are those of the variables it names."""
    found = set(values)
    if place.startswith("pipe:"):
        command = place.removeprefix("pipe:")
        words = {word for word in _WORD_ENDS.split(command) if len(word) >= _SHORTEST_OF_COMMAND}
        found |= words - set(_PROGRAM.findall(command)) - {"{shard}"}
        for address in _ADDRESS.findall(command):
            found.update(words_of(address))
    else:
        head, user, _, tail = _parts(place)
        user, tail = (user, tail) if head else ("", "")
        query = tail.partition("#")[0].partition("?")[2]
        pairs = query.split("&")
        found |= {user, *user.split(":", 1), query, *pairs, *(pair.partition("=")[2] for pair in pairs)}
        found.add(base64.b64encode(unquote(user).encode()).decode())
    found |= {unquote(word) for word in found}
    return tuple(sorted((word for word in found if len(word) >= _SHORTEST), key=len, reverse=True))


def without(text: str, words: Iterable[str]) -> str:
    """What somebody else said, without `words` of ours."""
    for word in words:
        pattern = re.escape(word)
        text = re.sub(pattern if len(word) >= _LONG else rf"(?<!\w){pattern}(?!\w)", HIDDEN, text)
    return text


def _parts(place: str) -> tuple[str, str, str, str]:
    """A place up to `scheme://`, if it has one, then user info, @ and the rest.

    An @ beyond the host may be one of a password with a / in it.
    """
    found = _SCHEME.search(place)
    head, rest = (place[: found.end()], place[found.end() :]) if found else ("", place)
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = (rest if "@" in rest[len(authority) :] else authority).rpartition("@")
    return head, user, at, rest[len(user) + len(at) :]


def _shown_within(value: str) -> str:
    """A quoted value, which may be `key=place`."""
    key, equals, place = value.partition("=")
    if equals and re.fullmatch(r"[\w.]+", key):
        return key + equals + shown(place)
    return shown(value)


def _without_commands(text: str) -> str:
    """Whatever follows `pipe:` goes: within quotes to the last one, which may be a quote of the command's, else the line."""
    last_quote = max((quote.start() for quote in _CLOSING_QUOTE.finditer(text)), default=-1)
    parts, done = [], 0
    while begin := _PIPE.search(text, done):
        safe = _SAFE_START.match(text, begin.end())
        line = max(done, text.rfind("\n", 0, begin.start()) + 1)
        is_quoted = text.count("'", line, begin.start()) % 2 == 1
        newline = text.find("\n", begin.end())
        end = newline if newline >= 0 else len(text)
        if safe:
            end = safe.end()
        elif is_quoted and last_quote >= begin.end():
            end = last_quote
        parts += [text[done : begin.end()], safe[0] if safe else HIDDEN]
        done = end
    return "".join(parts) + text[done:]
