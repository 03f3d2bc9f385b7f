"""Parses the words of a command by its table, as docker and Click do, without importing either."""

from __future__ import annotations

from layerstore.cli.options import Command, Option, Parsed
from layerstore.errors import UsageError


def parse(command: Command, words: list[str]) -> Parsed | None:
    """What was given, or None if help was asked for. Raises UsageError."""
    parser = _Parser(command)
    try:
        parser.parse(words)
    except _HelpWanted:
        return None
    parser.check_arguments()
    return Parsed(
        flags=frozenset(parser.flags),
        values={key: tuple(texts) for key, texts in parser.values.items()},
        arguments=tuple(parser.arguments),
    )


class _HelpWanted(Exception):
    pass


class _Parser:
    def __init__(self, command: Command) -> None:
        self._command = command
        self._options = {name: option for option in command.options for name in option.names}
        self._rest: list[str] = []
        self.flags: set[str] = set()
        self.values: dict[str, list[str]] = {}
        self.arguments: list[str] = []

    def parse(self, words: list[str]) -> None:
        self._rest = words[::-1]
        while self._rest:
            word = self._rest.pop()
            if word == "--":
                break
            if word == "--help" or (word == "-h" and word not in self._options):
                raise _HelpWanted
            if word.startswith("--"):
                self._long(word)
            elif word.startswith("-") and word != "-":
                self._cluster(word)
            else:
                self.arguments.append(word)
                if self._command.ends_at_argument:
                    break
        self.arguments += self._rest[::-1]

    def _long(self, word: str) -> None:
        name, equals, value = word.partition("=")
        option = self._find(name)
        if option.metavar is None:
            if equals:
                raise self._wrong(f"the option {name} takes no value")
            self.flags.add(option.key)
        else:
            self._store(option, name, value if equals else None)

    def _cluster(self, word: str) -> None:
        """``-it``, ``-eA=B``: flags up to an option with a value, which may be the rest."""
        for at, letter in enumerate(word[1:], 2):
            option = self._find("-" + letter)
            if option.metavar is not None:
                self._store(option, "-" + letter, word[at:] or None)
                return
            self.flags.add(option.key)

    def _store(self, option: Option, name: str, value: str | None) -> None:
        if value is None:
            if not self._rest:
                raise self._wrong(f"the option {name} needs a value: {option.metavar}")
            value = self._rest.pop()
        if option.repeats:
            self.values.setdefault(option.key, []).append(value)
        else:
            self.values[option.key] = [value]

    def _find(self, name: str) -> Option:
        option = self._options.get(name)
        if option is None:
            raise self._wrong(f"there is no option {name!r}", near=name)
        return option

    def check_arguments(self) -> None:
        """Raises UsageError for a missing argument, or one too many."""
        expected = self._command.arguments
        required = [argument for argument in expected if argument.is_required]
        if len(self.arguments) < len(required):
            raise self._wrong(f"{required[len(self.arguments)].metavar} is missing")
        if not any(argument.repeats for argument in expected):
            for word in self.arguments[len(expected) :]:
                raise self._wrong(f"{word!r} is one argument too many")

    def _wrong(self, brief: str, *, near: str = "") -> UsageError:
        hint = f"layerstore {self._command.name} --help lists what it takes"
        if len(near) > 3:
            from difflib import get_close_matches

            for name in get_close_matches(near, self._options, 1):
                hint = f"did you mean {name}? {hint}"
        return UsageError(brief, hint=hint)
