"""The table of commands, and the one parser that reads all command lines."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import re
import time

import command
import pytest

from nvret_jax import commands
from nvret_jax.commands import parser
from nvret_jax.errors import InputError
from nvret_jax.options import block, choice, flag, many, number, option, text, whole
from nvret_jax.processes import log

ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Inner:
    deep: int = option(1, whole(0, 9), "Inside.")


@dataclasses.dataclass(frozen=True)
class Options:
    depth: int = option(10, whole(1, 100), "How deep.")
    share: float = option(0.5, number(0, 1), "A share.")
    name: str = option("", text("a name", empty=True), "A name.")
    form: str | None = option(None, choice("a", "b", unset=True), "A form.")
    stages: tuple = option((), many(text("a stage")), "Stages.")
    sizes: tuple = option((1,), many(whole(0, 9)), "Sizes.")
    web: bool = option(False, flag(), "A page.")
    inner: Inner = block(Inner)

    @staticmethod
    def conflicts(values):
        if values["depth"] == 13:
            yield [("depth", "an unlucky number")]


COMMAND = parser.Command(
    "Does something.",
    (parser.Word("MODEL", "A model."), parser.Word("DATA", "Data.", many=True)),
    Options,
    lambda asked: 0,
    config=True,
)


def parse(*argv):
    return parser.parse("do", COMMAND, argv)


def test_words_and_options_in_any_order_and_form():
    asked = parse("m", "--depth=3", "-share", "0.25", "d1", "--web", "--name=a b", "--", "--d2")
    assert asked.words == ("m", "d1", "--d2")
    assert asked.options == Options(depth=3, share=0.25, name="a b", web=True)
    assert asked.given == {"depth": 3, "share": 0.25, "name": "a b", "web": True}
    asked = parse("m", "d", "--noweb", "--stages=x,y", "--sizes=(2,3)", "--inner.deep=7")
    assert asked.options == Options(stages=("x", "y"), sizes=(2, 3), inner=Inner(7))
    assert parse("m", "d", "--sizes=4,5", "--form=b").options == Options(sizes=(4, 5), form="b")
    assert parse("m", "d", "--form=None", "--stages=").options == Options()


def test_what_belongs_to_a_config_is_handed_on():
    config = ["--config", "c.py:smoke", "--config.seed=3", "--noconfig.download", "--config.x", "1"]
    asked = parse("m", *config, "--depth=2", "d")
    assert asked.config == tuple(config)
    assert (asked.words, asked.options.depth) == (("m", "d"), 2)
    plain = dataclasses.replace(COMMAND, config=False)
    with pytest.raises(InputError, match="unknown option --config"):
        parser.parse("do", plain, ["m", "d", "--config=c.py"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "do: MODEL and DATA missing (see do --help)"),
        (("m",), "do: DATA missing"),
        (("m", "d", "--dept=3"), "unknown option --dept; did you mean --depth?"),
        (("m", "d", "--depth=x"), "--depth='x': expected a whole number from 1 to 100"),
        (("m", "d", "--depth=1_0"), "--depth='1_0': expected a whole number"),
        (("m", "d", "--depth=0x10"), "--depth='0x10': expected a whole number"),
        (("m", "d", "--depth=2.0"), "--depth='2.0': expected a whole number"),
        (("m", "d", "--share=nan"), "--share=nan: expected a number from 0 to 1"),
        (("m", "d", "--depth"), "--depth: no value; give one, as in --depth=VALUE"),
        (("m", "d", "--depth", "--web"), "--depth: no value"),
        (("m", "d", "--web=perhaps"), "--web='perhaps': expected True or False"),
        (("m", "d", "--name=None", "--form=c"), "--form='c': expected one of a, b, or None"),
        (("m", "d", "--sizes=1,x"), "item 1 is 'x'"),
        (("m", "d", "--inner.deep=10"), "--inner.deep=10: expected"),
        (("m", "d", "--depth=13"), "--depth=13: an unlucky number"),
    ],
)
def test_mistakes_are_named(argv, said):
    with pytest.raises(InputError) as caught:
        parse(*argv)
    assert said in str(caught.value)


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(InputError) as caught:
        parse("m", "--depth=0", "--share=2", "--wrong")
    for said in ("--depth=0", "--share=2:", "--wrong", "DATA missing"):
        assert said in str(caught.value)


def test_each_command_is_a_file_with_help_of_80_columns(capsys):
    files = {path.stem for path in (ROOT / "nvret_jax/commands").glob("*.py")}
    assert {row.module for row in commands.COMMANDS.values()} <= files
    assert commands.run("help", []) == 0
    listed = capsys.readouterr().out
    for name, row in commands.COMMANDS.items():
        assert f"  {name} " in listed
        assert row.about in listed
        assert commands.run(name, ["--help"]) == 0
        own = capsys.readouterr().out
        assert own.startswith(f"usage: python -m nvret_jax {name}")
        assert commands.run("help", [name]) == 0
        assert capsys.readouterr().out == own
        assert max(map(len, own.splitlines())) <= 80, max(own.splitlines(), key=len)
        for line in ("--quiet", "--log_file=FILE", "--help"):
            assert f"  {line} " in own


def test_a_word_that_is_no_command_is_named_and_so_is_the_nearest_one():
    assert "unknown command 'evalute'; did you mean evaluate?" in command.inside("evalute").error
    assert command.inside("evaluate", "--dpth=3").error.startswith("error: evaluate: unkn")


def test_no_arguments_list_the_commands():
    result = command.inside()
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout == f"{commands.listing()}\n"


def test_flag_files_are_read(tmp_path):
    (tmp_path / "flags.txt").write_text("--word\n")
    assert "--word" in command.inside("options", f"--flagfile={tmp_path}/flags.txt").error
    assert "flags: " in command.inside(f"--flagfile={tmp_path}/none.txt").error


def test_options_are_found_by_word():
    result = command.inside("options", "softmax")
    assert result.status == 0
    assert result.stdout.startswith("mining.sampling = 'top'\n")
    assert max(map(len, command.inside("options").stdout.splitlines())) <= 80
    assert "no option, block or word" in command.inside("options", "qwertz").error


def test_quiet_and_the_log_file(tmp_path, capsys):
    file = tmp_path / "log.txt"
    log.configure(quiet=True, file=file)
    try:
        from absl import logging as absl_logging

        log.say("a line")
        absl_logging.warning("a warning")
        log.error("error: wrong")
    finally:
        log.close()
    log.say("after")
    said = capsys.readouterr()
    assert said.out == "after\n"
    assert "error: wrong" in said.err
    lines = [line.split(" ", 2)[2] for line in file.read_text().splitlines()]
    assert "Logging before flag parsing" not in said.err
    assert lines == ["INFO a line", "WARNING a warning", "ERROR error: wrong"]
    files = [getattr(h, "baseFilename", "") for h in logging.getLogger("nvret_jax").handlers]
    assert str(file) not in files
    with pytest.raises(InputError, match=r"--log_file=.*: cannot be written"):
        log.configure(file=tmp_path / "none" / "log.txt")


def test_quiet_leaves_out_bars(monkeypatch, capsys):
    from nvret_jax.processes import progress

    monkeypatch.setattr(progress, "_redraws", lambda: True)
    for quiet in (True, False):
        log.configure(quiet=quiet)
        try:
            for _ in progress.bar(range(3), desc="work", unit="step"):
                pass
        finally:
            log.close()
        assert ("work" in capsys.readouterr().err) is not quiet


def test_the_log_file_gets_lines_in_the_place_of_bars(monkeypatch, tmp_path, capsys):
    from nvret_jax.processes import progress

    monkeypatch.setattr(progress, "EVERY", 0.0)
    for turn, (quiet, redraws) in enumerate(((False, True), (True, True), (True, False))):
        monkeypatch.setattr(progress, "_redraws", lambda redraws=redraws: redraws)
        file = tmp_path / f"log{turn}.txt"
        log.configure(quiet=quiet, file=file)
        try:
            for _ in progress.bar(range(3), desc="loop", unit="step"):
                time.sleep(0.06)  # tqdm draws ten times per second
            with progress.bar(total=4, initial=1, desc="work", unit="step") as bar:
                bar.set_postfix_str("loss 2")
                bar.update(3)
            with progress.bar(total=2, desc="hidden", unit="step", show=False) as bar:
                bar.update(2)
        finally:
            log.close()
        text = file.read_text()
        assert "INFO loop: 3/3 step" in text
        assert re.search(r"INFO work: 4/4 step, .* per second, loss 2", text)
        assert "hidden" not in text
        assert ("work" in capsys.readouterr().err) is not quiet
