"""A mistake as a row of a table, and what must happen: one line, status 2, nothing left over."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil

import command
from breakage import Break, write


@dataclasses.dataclass(frozen=True)
class Row:
    """One mistake.

    Attributes:
        name: of the test.
        words: what the error line must have; {} stands for the project's folder.
        flags: behind the usual ones; {} as above.
        breaks: what is done to the project first.
        alone: run as its own process, with this many devices; 0: inside this one.
        bare: without the usual config file, workdir and overrides.
        early: refused before anything is written.
        loads: refused when weights are loaded; the config and the history are there.
        again: whether a mistake in a file is put right and the command run again.
    """

    name: str
    words: tuple[str, ...]
    flags: tuple[str, ...] = ()
    breaks: Break | None = None
    alone: int = 0
    bare: bool = False
    early: bool = True
    loads: bool = False
    again: bool = True


def flag(name, words, *flags, **more) -> Row:
    return Row(name, words, flags, **more)


def file(name, words, breaks, *flags, **more) -> Row:
    return Row(name, words, flags or ("--stages=embed",), breaks, **more)


def config(name, words, content, **more) -> Row:
    flags = ("--config={}/c.py", "--workdir={}/w")
    return Row(name, words, flags, write("c.py", content), bare=True, **more)


def arguments(row: Row, project: pathlib.Path) -> list[str]:
    given = [flag.replace("{}", str(project)) for flag in row.flags]
    if row.bare:
        return given
    return [command.CONFIG, f"--workdir={project / 'w'}", *command.flags_of(project), *given]


def check(row: Row, pristine: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Runs one mistake in a copy of `pristine`, and the command again once it is put right."""
    project = tmp_path / "project"
    shutil.copytree(pristine, project)
    if row.breaks:
        row.breaks(project)
    before = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    existed = (project / "w").exists()
    argv = arguments(row, project)
    result = command.alone(*argv, devices=row.alone) if row.alone else command.inside(*argv)

    for words in row.words:
        assert words.replace("{}", str(project)) in result.error, result.error
    workdir = project / "w"
    after = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    changed = {p for p in before | after if before.get(p) != after.get(p)}
    assert all(workdir in p.parents for p in changed)
    if row.early:
        assert result.stderr == result.error + "\n"  # the one line is all
        if row.loads:
            names = {p.relative_to(workdir).as_posix() for p in changed}
            assert names <= {"config.json", "config.json.sum", "history.jsonl"}
        else:
            assert not changed
            assert workdir.exists() is existed
    command.assert_only_whole_artefacts(workdir)

    if row.breaks and row.again and not row.bare:
        shutil.rmtree(project / "data")
        shutil.rmtree(project / "model")
        shutil.copytree(pristine, project, dirs_exist_ok=True)
        again = command.inside(*arguments(row, project))
        assert again.status == 0, again.stderr[-2000:]
        assert not [p for p in workdir.rglob("*.partial")]
        command.assert_only_whole_artefacts(workdir)
