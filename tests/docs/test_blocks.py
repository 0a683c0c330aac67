"""Every block of code in README.md and docs/ does what it says.

Blocks run as they are written, with placeholders filled, on a tiny model and data set. What cannot
run here is listed in `ELSEWHERE` with the reason, and checked as far as it goes.
"""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import tomllib

import doc_blocks
import pytest
from doc_blocks import ROOT, blocks, filled, pattern, run_shell, shell_commands

from nvret_jax import commands, main
from nvret_jax import config as config_lib
from nvret_jax.commands import parser
from nvret_jax.config import checks, overrides

SCALING, EVALUATION = "docs/scaling.md", "docs/evaluation.md"
TRAINING = "docs/training.md"
COMMANDS = "docs/commands.md"
# (page, first line) -> why the block itself does not run in these tests.
ELSEWHERE = {
    ("README.md", "make quickstart"): "minutes: checked with make -n, and its ':smoke' runs",
    ("README.md", "runs/quickstart/"): "a listing: every path is looked for after a run",
    ("README.md", "pip install -e ."): "installs: extras and versions are checked",
    ("README.md", "mine/corpus.jsonl"): "a listing: the data used here have this layout",
    ("README.md", "texts     teacher: mine passages"): "output, compared with a run's",
    ("README.md", "launch/local.sh"): "a listing: files exist, scripts parse",
    ("README.md", "nvret_jax/"): "a listing: folders exist",
    ("README.md", "data → models"): "the order of packages, compared with the imports' order",
    ("docs/architecture.md", "        data            models"): "a drawing",
    ("docs/architecture.md", "mine      making"): "output, compared with a run's",
    ("docs/data.md", "DIR/corpus.jsonl"): "a listing: the data used here have this layout",
    (EVALUATION, "texts     student before training"): "output, compared in test_before.py",
    (TRAINING, "dev       training did not help"): "output, in test_own_data.py",
    ("docs/audit.md", "mine      teacher:"): "output, compared with that of an estimate",
    ("docs/export.md", "text-embeddings-router"): "a server that is not a Python package",
    ("docs/benchmarks.md", "make accelerator"): "needs an accelerator: checked with make -n",
    ("docs/benchmarks.md", "python benchmarks/bench_search.py"): "minutes: flags are checked",
    ("docs/benchmarks.md", "python benchmarks/bench_scale.py"): "minutes: flags are checked",
    ("docs/benchmarks.md", "python benchmarks/bench_encode.py"): "minutes: flags are checked",
    ("docs/benchmarks.md", "python benchmarks/bench_mine.py"): "minutes: flags are checked",
    ("docs/benchmarks.md", "python benchmarks/bench_train.py"): "minutes: flags are checked",
    ("docs/lab.md", "export NVRET_DATA"): "needs data: words are parsed, benchmarks/test_lab.py",
    ("docs/lab.md", "python -m benchmarks.lab rules --student"): "likewise",
    (
        "docs/lab.md",
        "python -m benchmarks.lab.cross_encoder",
    ): "likewise; benchmarks/test_lab_cross.py",
    ("docs/paper.md", "export NVRET_DATA"): "likewise",
    ("README.md", "python -m nvret_jax search runs/mine"): "serves a page: its words are parsed",
    (COMMANDS, "python -m nvret_jax search runs/quickstart"): "likewise",
    (
        SCALING,
        "$ python -m nvret_jax.plan --topology",
    ): "needs libtpu: config and flags are checked",
    (SCALING, "$ python -m nvret_jax.main --config=e5_large.py"): "needs libtpu; likewise",
    (SCALING, "$ python -m nvret_jax.main --config=configs/nv_ret"): "needs libtpu; likewise",
}
# Blocks of their own tests below, because they take long or another package.
APART = {
    ("README.md", "from sentence_transformers"),
    ("README.md", "python -m nvret_jax.main --config=configs/nv_retriever_v1.py"),
    ("README.md", "import nvret_jax\n"),
    ("docs/export.md", "from sentence_transformers"),
}


def kind(block) -> str:
    """'elsewhere', 'apart' or 'here'."""
    found = {
        name
        for name, table in (("elsewhere", ELSEWHERE), ("apart", APART))
        for page, start in table
        if block.page == page and block.text.startswith(start)
    }
    assert len(found) <= 1, block.key
    return found.pop() if found else "here"


def the(page: str, start: str) -> str:
    """The text of the one block of a page that begins so."""
    (found,) = [b.text for b in blocks(page) if b.text.startswith(start)]
    return found


def own_command() -> str:
    """README's command for a reader's own data, the first of its blocks with that config."""
    found = [c for b in blocks("README.md") for c in shell_commands(b.text) if "own.py" in c]
    assert "--dry_run" not in found[0]
    return found[0]


def test_the_tables_name_blocks_that_exist():
    for page, start in [*ELSEWHERE, *APART]:
        assert the(page, start).startswith(start)


@pytest.fixture
def place(tmp_path, monkeypatch, compiled):
    """The working folder of a user with data and a model."""
    doc_blocks.make_place(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tiny(place: pathlib.Path, line: str) -> list[str]:
    """Flags that give a command a model of this size; lengths and all else stay as written."""
    model = place / "model"
    flags = ["--config.train.chunk_tokens=-1"]  # compiles in half the time
    if "evaluate.py" not in line and "teacher.model" not in line:
        flags.append(f"--config.teacher.model={model}")
    if "student.model" not in line:
        flags.append(f"--config.student.model={model}")
    return flags


def places(place: pathlib.Path) -> dict[str, str]:
    """What placeholders stand for."""
    return {
        "beir:DIR": "beir:mine",
        "beir:/data/scifact": "beir:mine",
        "/data/mine": "mine",
        "CROSS_ENCODER": str(place / "cross"),
        "FOLDER": str(place / "model"),
        "/models/e5-large-v2": str(place / "model"),
        "num_distilled=28": "num_distilled=2",
        "runs/quickstart": "runs/mine",
        "--workdir=W": "--workdir=runs/w",
    }


def perform(block, place: pathlib.Path, namespace: dict) -> str:
    """Runs one block; returns what it printed."""
    text = filled(block.text, places(place))
    if block.language == "python":
        exec(compile(text, f"{block.page}: {block.key[1]}", "exec"), namespace)
        return ""
    more = []
    if block.page in ("docs/recipes.md", TRAINING):  # at least 100 steps otherwise
        more = ["--config.train.min_steps=3", "--config.train.max_steps=3"]

    def flags(line: str) -> list[str]:
        return tiny(place, line) + more * ("own.py" in line)

    return "".join(run_shell(line, flags(line)) for line in shell_commands(text))


def test_the_readme_and_the_pages_that_use_its_run(place, capsys):
    printed, namespace = [], {}
    for block in blocks("README.md"):
        if kind(block) != "here" or block.text.startswith("--config."):
            continue
        printed.append((block.text, perform(block, place, namespace)))
    # What the run printed, and what it left.
    own = next(output for text, output in printed if "own.py" in text)
    (line,) = the("README.md", "texts     teacher: mine").splitlines()
    assert re.search(pattern(line), own), own
    listing = the("README.md", "runs/quickstart/")
    for row in listing.splitlines()[1:]:
        for name in row[2:32].split(","):
            name = name.strip().replace("pydocs", "mine").replace("<stage>", "train")
            assert (place / "runs/mine" / name).exists(), name
    assert (place / "runs/base/evaluation/mine.json").exists()
    assert (place / "runs/base/evaluation/mine.trec").exists()
    assert (place / "train.jsonl").exists()
    # The Python example: shapes as its comments say.
    assert namespace["passages_nd"].shape == (3, 384)
    assert namespace["rows_qk"].shape == (2, 2)
    assert 0 <= namespace["result"].metrics["ndcg_cut_10"] <= 1
    # The config file that a reader would write.
    config = namespace["get_config"]()
    checks.validate(config)
    assert (config.mining.rule, config.train.batch_size) == ("margin_pos", 256)

    # docs/architecture.md: what a change of a value says.
    changed = (
        f"{filled(own_command(), places(place))} --config.mining.percent=0.9 --stages=mine,train"
    )
    said = run_shell(changed, tiny(place, changed))
    for line in the("docs/architecture.md", "mine      making").splitlines():
        assert re.search(f"^{re.escape(line).replace('…', '.*')}$", said, re.MULTILINE), said

    # docs/export.md and docs/interchange.md, on the same run.
    for block in blocks("docs/export.md"):
        if kind(block) == "here":
            perform(block, place, {})
    shutil.copy(place / "runs/mine/evaluation/mine.trec", place / "run.trec")
    run_shell("python -m nvret_jax convert workdir:runs/mine nemo:data", [])
    for block in blocks("docs/interchange.md"):
        perform(block, place, {})
    lost = capsys.readouterr().out  # `convert.convert` prints
    assert (place / "converted/corpus.jsonl").exists(), lost
    page = (ROOT / "docs/interchange.md").read_text()
    (line,) = re.findall(r"`(out\.parquet: this format has no place for [^`]*)`", page)
    said = run_shell("python -m nvret_jax convert workdir:runs/mine st-triplet:out.parquet", [])
    assert re.search(pattern(line), said), said


@pytest.mark.parametrize("page", [EVALUATION, "docs/mining.md", "docs/recipes.md", TRAINING])
def test_pages_of_commands_and_configs(place, page):
    for block in blocks(page):
        namespace = {}
        if kind(block) == "here":
            perform(block, place, namespace)
        if "config" in namespace:
            checks.validate(namespace["config"])
            assert namespace["config"] != config_lib.base()


def test_the_page_of_commands(place):
    printed = "".join(
        perform(block, place, {}) for block in blocks(COMMANDS) if kind(block) == "here"
    )
    assert max(map(len, printed.splitlines())) < 200
    for name in ("scores/mine.json", "corpus.parquet", "found.jsonl", "negatives.parquet"):
        assert (place / name).exists(), name
    text = (ROOT / COMMANDS).read_text()
    for name in commands.COMMANDS:
        assert f"| `{name}` |" in text
    statuses = re.findall(r"^    (128 \+ n|\d+) ", main.__doc__, re.MULTILINE)
    assert re.findall(r"^\| (128 \+ n|\d+) \|", text, re.MULTILINE) == statuses


def test_commands_that_serve_take_their_words():
    for page in ("README.md", COMMANDS):
        for block in blocks(page):
            for line in shell_commands(block.text):
                if "--web" in line:
                    _, _, _, name, *words = line.split()
                    assert parser.parse(name, commands.load(name), words).options.web


def test_the_audit_runs_on_several_positives(place):
    judged = place / "mine/qrels/train.tsv"
    lines = judged.read_text().splitlines()
    more = [re.sub(r"\tp(\d+)\t", lambda m: f"\tp{int(m[1]) + 3}\t", line) for line in lines[1:]]
    judged.write_text("\n".join(dict.fromkeys(lines + more)) + "\n")
    for page in ("README.md", "docs/audit.md"):
        (block,) = [b for b in blocks(page) if "configs/audit.py" in b.text]
        assert "perc_pos" in perform(block, place, {})


def test_the_estimate_of_false_negatives_is_worded_as_shown():
    from nvret_jax.mining.audit.estimate import Estimate

    (block,) = [b for b in blocks("docs/audit.md") if b.text.startswith("mine ")]
    found = Estimate(0.124, 0.087, 0.16, "labels", 130)
    assert f"mine      teacher: {found}\n" == block.text


def test_overrides_that_are_listed_are_accepted():
    listed = [b for b in blocks("README.md") if b.text.startswith("--config.")]
    for block in listed:
        for line in shell_commands(block.text):
            config = f"--config={ROOT / 'configs/own.py'}"
            overrides.check(["main", config, *line.split()])
    assert len(listed) == 1


def test_the_page_of_python_from_its_first_block_to_its_last(place):
    namespace = {}
    for block in blocks("docs/python.md"):
        perform(block, place, namespace)
    assert list(namespace["data"].qrels) == ["train", "dev", "test"]
    assert len(namespace["trained"].history.series("loss")[1]) == 2
    assert namespace["many"].shape == (40, 32)
    assert (place / "my-model" / "modules.json").exists()


def test_labelled_rows_are_read(tmp_path):
    from nvret_jax.data.load import load_dataset

    (block,) = blocks("docs/labelled.md")
    file = tmp_path / "rows.jsonl"
    file.write_text(block.text + '{"text": "I lost my card.", "label_text": "lost card"}\n')
    assert len(load_dataset(f"labels:{file}").corpus) == 2
    assert kind(block) == "here"


def test_the_remaining_pages_have_no_block_that_would_run():
    seen = ["README.md", "docs/architecture.md", "docs/export.md", "docs/interchange.md"]
    seen += ["docs/evaluation.md", "docs/mining.md", "docs/recipes.md", "docs/audit.md"]
    seen += ["docs/labelled.md", "docs/python.md", COMMANDS, TRAINING]
    for page in doc_blocks.PAGES:
        if page not in seen:
            assert [b.key for b in blocks(page) if kind(b) == "here"] == []


# --- what runs elsewhere, as far as it goes ---


def test_make_targets_do_what_the_readme_says():
    lines = shell_commands(the("README.md", "make quickstart"))
    for line in [*lines, *shell_commands(the("docs/benchmarks.md", "make accelerator"))]:
        done = subprocess.run([*line.split(), "-n"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        does = {"test": "pytest", "quickstart": "--workdir=runs/quickstart"}
        assert does.get(line.split()[1], "-m benchmarks.accelerator") in done.stdout


def test_installs_name_extras_and_versions_that_exist():
    text = the("README.md", "pip install -e .")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = extras["optional-dependencies"]
    for name, what in re.findall(r"'\.\[(\w+)\]'\s+#.*?(jax\[\w+\])", text):
        assert extras[name] == [what]
    (pinned,) = re.findall(r"--no-deps (\S+)", text)
    assert f"WEIGHTS := {pinned}" in (ROOT / "Makefile").read_text()


def test_listed_folders_and_launch_files_exist():
    for line in the("README.md", "nvret_jax/").splitlines():
        assert (ROOT / line.split()[0]).is_dir(), line
    for name in the("README.md", "data → models").strip().split(" → "):
        assert (ROOT / "nvret_jax" / name / "__init__.py").exists(), name
    for line in the("README.md", "launch/local.sh").splitlines():
        file = ROOT / line.split()[0]
        assert file.exists(), line
        if file.suffix in (".sh", ".sbatch"):
            subprocess.run(["bash", "-n", str(file)], check=True)
    usage = subprocess.run(
        ["bash", str(ROOT / "launch/local.sh"), "--help"], capture_output=True, text=True
    )
    for flag in re.findall(r"--[a-z-]+", the("README.md", "launch/local.sh")):
        assert flag in usage.stdout


def test_benchmarks_take_the_flags_they_are_shown_with():
    for block in blocks("docs/benchmarks.md"):
        (line,) = shell_commands(block.text)
        if line.startswith("make "):
            continue
        script = (ROOT / line.split()[1]).read_text()
        for flag in re.findall(r"--(\w+)", line):
            assert re.search(rf"[\"']--{flag}[\"']|DEFINE_\w+\(\s*[\"']{flag}", script), flag


def test_plans_name_configs_and_flags_that_exist():
    from nvret_jax.commands import options
    from nvret_jax.options import blocks as option_blocks
    from nvret_jax.plan import command as plan

    source = pathlib.Path(plan.__file__).read_text()
    for block in blocks(SCALING):
        (line,) = shell_commands(block.text)
        if "nvret_jax.plan" in line:
            for flag in re.findall(r"--(\w+)", line):
                assert flag in dict(option_blocks.entries(options.Plan)), flag
            continue
        (config,) = re.findall(r"--config=(\S+)", line)
        # e5_large.py is described in words under its block.
        assert config == "e5_large.py" or (ROOT / config).is_file()
        assert " (the default; --plan_passages sets another number)" in block.text
        assert ": not found on this machine; using built-in sizes" in block.text
    assert "`e5_large.py` is the default config with" in (ROOT / SCALING).read_text()
    assert "(the default" not in source
    assert '"the default"' in source
    assert ": not found on this machine; using built-in sizes" in source


# --- minutes, or other packages ---


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [
        "python -m nvret_jax.main --config=configs/nv_retriever_v1.py",
        "import nvret_jax\n",
    ],
)
def test_smoke_runs_of_the_readme(place, start):
    (block,) = [b for b in blocks("README.md") if b.text.startswith(start)]
    if block.language == "python":
        perform(block, place, {})
    else:
        run_shell(shell_commands(block.text)[0], [])


@pytest.mark.slow
def test_the_quickstart_shrunk_prints_and_leaves_what_the_readme_says(place):
    (line,) = [c for c in shell_commands(the("README.md", "make quickstart")) if "quick" in c]
    assert line == "make quickstart"
    printed = run_shell(
        "python -m nvret_jax.main --config=configs/quickstart.py:smoke --workdir=runs/q", []
    )
    assert "after: as exported" in printed
    assert (place / "runs/q/evaluation/pydocs.before.trec").exists()


@pytest.mark.parity
@pytest.mark.parametrize("page", ["README.md", "docs/export.md"])
def test_exports_load_as_shown(place, page):
    own = own_command()
    run_shell(own, tiny(place, own))
    (block,) = [b for b in blocks(page) if b.text.startswith("from sentence_transformers")]
    namespace = {}
    perform(block, place, namespace)
    assert namespace["model"].encode(["the wing"]).shape == (1, 32)


def test_every_block_is_in_one_of_the_tests_above():
    counted = {name: 0 for name in ("elsewhere", "apart", "here")}
    for page in doc_blocks.PAGES:
        for block in blocks(page):
            counted[kind(block)] += 1
    assert counted["here"] >= 15
    assert counted["elsewhere"] == len(ELSEWHERE)
    assert counted["apart"] == len(APART)
