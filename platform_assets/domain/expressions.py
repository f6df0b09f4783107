"""The expressions of a spec: columns, numbers, operators, and calls that pandas can evaluate."""

import ast

FUNCTIONS = frozenset(
    {
        *("abs", "ceil", "exp", "expm1", "floor", "log", "log10", "log1p", "sqrt"),
        *("sin", "cos", "arcsin", "arccos", "arctan", "arctan2"),
        *("sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh"),
    }
)
"""What may be called by name; methods of a column, as in `a.clip(lower=0)`, come on top."""

_ALLOWED = (
    ast.Expression, ast.BoolOp, ast.boolop, ast.BinOp, ast.operator, ast.UnaryOp, ast.unaryop,
    ast.Compare, ast.cmpop, ast.Call, ast.keyword, ast.Attribute, ast.Name, ast.Load,
    ast.Constant, ast.List, ast.Tuple,
)  # fmt: skip
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
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            raise ValueError(f"{expression!r} reads {node.attr!r}; only public names are allowed")
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
