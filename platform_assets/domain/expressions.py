"""The expressions of a spec: columns, numbers, operators, and calls that pandas can evaluate."""

import ast

FUNCTIONS = frozenset(
    {
        *("abs", "ceil", "exp", "expm1", "floor", "log", "log10", "log1p", "sqrt"),
        *("sin", "cos", "arcsin", "arccos", "arctan", "arctan2"),
        *("sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh"),
    }
)
"""What may be called by name; each works on every row for itself."""

METHODS = frozenset(
    {
        *("abs", "add", "astype", "between", "clip", "div", "eq", "fillna", "floordiv", "ge"),
        *("gt", "isin", "isna", "isnull", "le", "lt", "mask", "mod", "mul", "ne", "notna"),
        *("notnull", "pow", "round", "sub", "truediv", "where"),
    }
)
"""Methods of a column, as in `a.clip(lower=0)`: those whose result in a row is of that row alone.

`a.mean()` or `a.shift(-1)` would carry what other rows know, those of later hours too, into a row.
"""

ACCESSORS = {
    "dt": frozenset(
        {
            *("ceil", "day", "day_of_week", "day_of_year", "dayofweek", "dayofyear", "days"),
            *("days_in_month", "floor", "hour", "is_leap_year", "is_month_end", "is_month_start"),
            *("is_quarter_end", "is_quarter_start", "is_year_end", "is_year_start", "minute"),
            *("month", "normalize", "quarter", "round", "second", "seconds", "strftime"),
            *("total_seconds", "tz_convert", "weekday", "year"),
        }
    ),
    "str": frozenset(
        {
            *("capitalize", "contains", "count", "endswith", "find", "fullmatch", "isalnum"),
            *("isalpha", "isdigit", "islower", "isnumeric", "isupper", "len", "lower", "lstrip"),
            *("match", "pad", "removeprefix", "removesuffix", "replace", "rstrip", "slice"),
            *("startswith", "strip", "title", "upper", "zfill"),
        }
    ),
}
"""What follows `.dt` on a timestamp, `.str` on a string."""

_ALLOWED = (
    ast.Expression, ast.BoolOp, ast.boolop, ast.BinOp, ast.operator, ast.UnaryOp, ast.unaryop,
    ast.Compare, ast.cmpop, ast.Call, ast.keyword, ast.Attribute, ast.Name, ast.Load,
    ast.Constant, ast.List, ast.Tuple,
)  # fmt: skip
_ACROSS_ROWS = ("axis", "inplace", "limit", "method")
_REFUSED = (ast.MatMult, ast.LShift, ast.RShift, ast.BitXor, ast.Is, ast.IsNot)


def names_in(expression: str) -> frozenset[str]:
    """The column names that an expression reads.

    Raises:
        ValueError: it is not one Python expression, it reaches beyond its columns, or it holds
            what could not be evaluated on columns.
    """
    text = expression.strip()
    if "\n" in text:
        raise ValueError(f"{expression!r} has several lines; an expression is one line")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError) as error:
        why = error.msg if isinstance(error, SyntaxError) else error
        raise ValueError(f"{expression!r} is not an expression: {why}") from error
    called: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, _REFUSED) or not isinstance(node, _ALLOWED):
            raise ValueError(
                f"{expression!r} contains {type(node).__name__}; allowed are columns, constants, "
                "arithmetic, comparisons, and calls"
            )
        if isinstance(node, ast.Attribute):
            _require_row_by_row(node, expression)
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            _require_constants(node.comparators, expression)
        if isinstance(node, ast.Call):
            _require_plain_arguments(node, expression)
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
            if name not in FUNCTIONS:
                raise ValueError(
                    f"{expression!r} calls {name!r}; allowed are methods of a column and "
                    f"{', '.join(sorted(FUNCTIONS))}"
                )
            called.add(id(node.func))
    return frozenset(
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called
    )


def _require_row_by_row(node: ast.Attribute, expression: str) -> None:
    """Refuse whatever looks at other rows than its own, or beyond the columns."""
    parent = node.value.attr if isinstance(node.value, ast.Attribute) else None
    allowed = ACCESSORS.get(parent or "", METHODS)
    if node.attr in allowed or (node.attr in ACCESSORS and parent not in ACCESSORS):
        return
    where = f"after .{parent} are" if parent in ACCESSORS else "are .dt, .str and"
    raise ValueError(
        f"{expression!r} uses .{node.attr}; allowed {where} {', '.join(sorted(allowed))}: what "
        "looks at one row at a time, since other rows may know what this one cannot yet"
    )


def _require_plain_arguments(call: ast.Call, expression: str) -> None:
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in _ACROSS_ROWS:
            raise ValueError(
                f"{expression!r} passes {keyword.arg or '**'}=; arguments that reach across rows, "
                f"or change a column in its place, are refused: {', '.join(_ACROSS_ROWS)}"
            )
    if isinstance(call.func, ast.Attribute) and call.func.attr == "isin":
        _require_constants([*call.args, *(k.value for k in call.keywords)], expression)


def _require_constants(values: list[ast.expr], expression: str) -> None:
    """Refuse a search among the values of a column: they are those of other rows."""
    for value in values:
        items = value.elts if isinstance(value, ast.List | ast.Tuple) else []
        if not items or not all(isinstance(item, ast.Constant) for item in items):
            raise ValueError(
                f"{expression!r} searches in {ast.unparse(value)}; allowed is a list of constants, "
                "such as ['a', 'b']"
            )
