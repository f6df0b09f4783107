"""Wrong use of a command: one sentence and exit code 2, whatever the parser itself refuses."""

import pytest

from platform_assets.cli import main


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nosuch"], "nosuch"),
        (["status", "--nope"], "--nope"),
        (["land"], "--from"),
        (
            ["land", "--from", "2013-01-01", "--to", "2013-01-01", "--until-hour", "x"],
            "--until-hour",
        ),
        (["explain"], "asset"),
    ],
    ids=["command", "option", "missing option", "no number", "missing argument"],
)
def test_what_the_parser_refuses_is_one_sentence(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert named in err
    assert err.startswith("signalbox: ")
    assert err.count("\n") == 1
