"""As much of CEL as the rendered policy uses, evaluated after the language's definition.

Literals (texts, raw texts, lists, null), fields, values of maps by key, `has`, the macros `map`,
`filter` and `all` (of a map they go over its keys), the method `matches`, `==`, `!=`, `in`, `!`,
`&&`, `||`, `+` and `?:`. A field that is not there is an error, as in CEL; `&&` and `||` do not
evaluate their right side where the left one decides. It is no proof that an API server takes the
text, only of what it decides if it does.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

_TOKEN = re.compile(
    r"""\s*(?:(?P<raw>r'[^']*')|(?P<text>'[^']*'|"[^"]*")|(?P<name>[A-Za-z_][A-Za-z_0-9]*)"""
    r"""|(?P<sign>&&|\|\||==|!=|[()\[\].,?:!+]))""",
    re.VERBOSE,
)


class CelError(Exception):
    """The expression has no value: a field is not there, or a type is wrong."""


class Expression:
    """A parsed expression: nested tuples, the operator first."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._place = 0
        self.tree = self._ternary()
        if self._place != len(self._tokens):
            raise ValueError(f"{self._tokens[self._place]} stands behind the end")

    def value(self, variables: Mapping[str, Any]) -> Any:
        """What it comes to.

        Raises:
            CelError: it has no value.
        """
        return _value(self.tree, variables)

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._place] if self._place < len(self._tokens) else ("end", "")

    def _take(self, sign: str = "") -> tuple[str, str]:
        found = self._peek()
        if sign and found != ("sign", sign):
            raise ValueError(f"{sign} is wanted, found {found}")
        self._place += 1
        return found

    def _is(self, sign: str) -> bool:
        if self._peek() != ("sign", sign):
            return False
        self._place += 1
        return True

    def _ternary(self) -> Any:
        test = self._either()
        if not self._is("?"):
            return test
        then = self._ternary()
        self._take(":")
        return ("?", test, then, self._ternary())

    def _either(self) -> Any:
        left = self._both()
        while self._is("||"):
            left = ("||", left, self._both())
        return left

    def _both(self) -> Any:
        left = self._relation()
        while self._is("&&"):
            left = ("&&", left, self._relation())
        return left

    def _relation(self) -> Any:
        left = self._sum()
        while self._peek() in (("sign", "=="), ("sign", "!="), ("name", "in")):
            left = (self._take()[1], left, self._sum())
        return left

    def _sum(self) -> Any:
        left = self._not()
        while self._is("+"):
            left = ("+", left, self._not())
        return left

    def _not(self) -> Any:
        return ("!", self._not()) if self._is("!") else self._member()

    def _member(self) -> Any:
        found = self._primary()
        while self._peek() in (("sign", "."), ("sign", "[")):
            if self._take() == ("sign", "["):
                found = ("index", found, self._ternary())
                self._take("]")
                continue
            name = self._take()[1]
            if self._is("("):
                found = ("call", name, found, *self._arguments(")"))
            else:
                found = (".", found, name)
        return found

    def _primary(self) -> Any:
        kind, text = self._take()
        if kind == "raw":
            return ("literal", text[2:-1])
        if kind == "text":
            return ("literal", text[1:-1])
        if text == "(":
            inner = self._ternary()
            self._take(")")
            return inner
        if text == "[":
            return ("list", *self._arguments("]"))
        if text == "null":
            return ("literal", None)
        if kind == "name" and self._is("("):
            return ("call", text, None, *self._arguments(")"))
        return ("name", text)

    def _arguments(self, end: str) -> list[Any]:
        found: list[Any] = []
        while not self._is(end):
            if found:
                self._take(",")
            found.append(self._ternary())
        return found


def _tokens(text: str) -> Any:
    place = 0
    while text[place:].strip():
        found = _TOKEN.match(text, place)
        if found is None:
            raise ValueError(f"{text[place : place + 20]!r} is not known here")
        place = found.end()
        assert found.lastgroup is not None
        yield found.lastgroup, found[found.lastgroup]


def _value(tree: Any, names: Mapping[str, Any]) -> Any:
    kind, *parts = tree
    if kind == "literal":
        return parts[0]
    if kind == "list":
        return [_value(part, names) for part in parts]
    if kind == "name":
        return names[parts[0]]
    if kind == ".":
        return _field(_value(parts[0], names), parts[1])
    if kind == "index":
        return _field(_value(parts[0], names), _value(parts[1], names))
    if kind == "call":
        return _call(parts[0], parts[1], parts[2:], names)
    if kind == "?":
        return _value(parts[1] if _flag(parts[0], names) else parts[2], names)
    if kind == "!":
        return not _flag(parts[0], names)
    if kind == "&&":
        return _flag(parts[0], names) and _flag(parts[1], names)
    if kind == "||":
        return _flag(parts[0], names) or _flag(parts[1], names)
    left, right = (_value(part, names) for part in parts)
    if kind == "+":
        return left + right
    if kind == "in":
        return left in right
    return (left == right) is (kind == "==")


def _flag(tree: Any, names: Mapping[str, Any]) -> bool:
    found = _value(tree, names)
    if not isinstance(found, bool):
        raise CelError(f"{json.dumps(found)} is no boolean")
    return found


def _field(holder: Any, name: Any) -> Any:
    if not isinstance(holder, Mapping) or name not in holder:
        raise CelError(f"no such key: {name}")
    return holder[name]


def _call(name: str, target: Any, arguments: Any, names: Mapping[str, Any]) -> Any:
    if name == "has":
        ((_, holder, field),) = arguments
        found = _value(holder, names)
        if not isinstance(found, Mapping):
            raise CelError(f"no such key: {field}")
        return field in found
    if name == "matches":
        text, pattern = _value(target, names), _value(arguments[0], names)
        if not isinstance(text, str):
            raise CelError("no such overload: matches")
        # RE2's $ is the end of the text and nothing else.
        return re.search(pattern.replace("$", r"\Z"), text) is not None
    items = _value(target, names)
    if isinstance(items, Mapping):
        items = list(items)
    if not isinstance(items, list):
        raise CelError(f"no such overload: {name}")
    (_, variable), body = arguments
    each = [(item, _value(body, {**names, variable: item})) for item in items]
    if name == "map":
        return [result for _, result in each]
    if name == "filter":
        return [item for item, result in each if result is True]
    if name == "all":
        return all(result is True for _, result in each)
    raise ValueError(f"{name} is not known here")


class Policy:
    """A ValidatingAdmissionPolicy as its expressions."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._variables = [(v["name"], Expression(v["expression"])) for v in spec["variables"]]
        self._validations = [
            (Expression(v["expression"]), v["message"]) for v in spec["validations"]
        ]

    def refusals(
        self, document: Mapping[str, Any], before: Mapping[str, Any] | None = None
    ) -> list[str]:
        """The messages of the validations that do not hold; an error is one, as with `Fail`."""
        found = []
        variables: dict[str, Any] = {}
        names = {"object": document, "oldObject": before, "variables": variables}
        try:
            for name, expression in self._variables:
                variables[name] = expression.value(names)
        except (CelError, TypeError) as error:
            return [f"error: {error}"]
        for expression, message in self._validations:
            try:
                if expression.value(names) is not True:
                    found.append(message)
            except (CelError, TypeError) as error:
                found.append(f"error: {error}")
        return found
