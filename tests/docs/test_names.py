"""Every key, path, link, target, name and flag that the documentation mentions exists."""

from __future__ import annotations

import dataclasses
import importlib
import re
import tomllib

import doc_blocks
import pytest
from doc_blocks import ROOT

import nvret_jax
from nvret_jax import config as config_lib
from nvret_jax.config import STAGES
from nvret_jax.data.interchange import FORMATS
from nvret_jax.data.load import READERS
from nvret_jax.search.rankers.teachers import SCHEMES

PAGES = [*doc_blocks.PAGES, "CHANGELOG.md"]
DOCSTRINGS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "configs").glob("*.py"))


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def all_keys() -> set[str]:
    """Every key of a config and every block; those of teachers, sets and stages under NAME."""
    config = config_lib.base()
    config_lib.add_teacher(config, "NAME", "")
    config_lib.add_set(config, "NAME", "x")
    config_lib.add_stage(config, "NAME")
    keys = set(config_lib.flat_keys(config)) | set(config_lib.flat_keys(config_lib.base()))
    return keys | {key.rsplit(".", n)[0] for key in keys for n in range(1, key.count(".") + 1)}


def exists(key: str) -> bool:
    """Whether there is such a key; teachers, sets and stages have any name."""
    anonymous = re.sub(r"^(teachers|sets|train_stages)\.(\w+)", r"\1.NAME", key)
    return key in KEYS or anonymous in KEYS


KEYS = all_keys()
BLOCKS = {key for key in KEYS if "." not in key and any(k.startswith(f"{key}.") for k in KEYS)}


@pytest.mark.parametrize("page", [*PAGES, *DOCSTRINGS])
def test_config_keys_exist(page):
    text = text_of(page)
    named = set(re.findall(r"--config\.([a-z_]+(?:\.[a-z_0-9]+)*)", text))
    # Inline code such as `mining.percent=0.9` or `train.loss.dims`.
    for block in BLOCKS:
        for key in re.findall(rf"`(?:config\.)?({block}(?:\.[a-z_0-9]+)+)(?:=[^`]*)?`", text):
            if not key.endswith((".py", ".md", ".html", ".jsonl", ".json", ".parquet")):
                named.add(key)
    # An artefact, a function, and the word for any key.
    named -= {"audit.csv", "audit.risk.csv", "search.index.backend.make_index", "key"}
    assert {key for key in named if not exists(key)} == set()


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_resolve(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve() if path else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, target


@pytest.mark.parametrize("page", [*PAGES, *DOCSTRINGS])
def test_paths_of_the_repository_exist(page):
    found = re.findall(
        r"(?<![\w/.])((?:configs|nvret_jax|tests|benchmarks|launch|docs)/[\w./-]*\w)", text_of(page)
    )
    shown = {"configs/mine.py"}  # the file that README tells a reader to write
    missing = {name for name in found if not (ROOT / name).exists()} - shown
    assert missing == set()


@pytest.mark.parametrize("page", ["docs/architecture.md"])
def test_modules_named_in_words_exist(page):
    text = text_of(page)
    names = re.findall(r"`([\w/]+\.py|[a-z_]+/)`", text)
    layout = text[text.index("```\nnvret_jax/") :].split("```")[1]
    folders = re.findall(r"^  (\w+/|\w+\.py) ", layout, re.MULTILINE)
    top = {p.name + "/" * p.is_dir() for p in (ROOT / "nvret_jax").iterdir() if p.name[0] != "_"}
    assert set(folders) == {name for name in top if name.endswith(("/", ".py"))}
    of = re.findall(r"^  (\w+/) |(?<=[ ;])([a-z_]+/)(?= \(|:|  )", layout, re.MULTILINE)
    at = ""
    for folder, inner in of:
        at = folder or at
        assert (ROOT / "nvret_jax" / at / inner).is_dir(), inner
    for name in names:
        inside = (ROOT / "nvret_jax" / name, ROOT / name)
        artefacts = ("checkpoints/", "export/", "tensorboard/", "fingerprints/")
        assert name in artefacts or any(path.exists() for path in inside), name


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:^|`)make ([a-z]+)\b", text_of(page), re.MULTILINE)
    assert set(named) <= set(targets)


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_python_interface_exist(page):
    text = text_of(page)
    for name in re.findall(r"\bnv\.(\w+)", text) + re.findall(r"nvret_jax\.api\.(\w+)", text):
        assert hasattr(nvret_jax, name), name
    encoder = nvret_jax.Encoder
    for name in re.findall(r"`Encoder\.(\w+)", text):
        assert hasattr(encoder, name), name
    for dotted in re.findall(r"(?:python -m |from )(nvret_jax(?:\.\w+)*)", text):
        importlib.import_module(dotted)
    for name in re.findall(r"config_lib\.(\w+)\(", text):
        assert hasattr(config_lib, name), name


@pytest.mark.parametrize("page", PAGES)
def test_stages_extras_flags_and_configs_exist(page):
    text = text_of(page)
    for listed in re.findall(r"--stages=([\w,]+)", text):
        assert set(listed.split(",")) <= set(STAGES), listed
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    for listed in re.findall(r"'\.\[([\w,]+)\]'", text):
        assert set(listed.split(",")) <= set(extras)
    for name, arg in re.findall(r"configs/(\w+\.py):(\w+)", text):
        module = {}
        exec((ROOT / "configs" / name).read_text(), module)
        assert module["get_config"](arg), (name, arg)


def test_the_readme_lists_all_stages_sources_and_teachers():
    readme = " ".join(text_of("README.md").split())
    assert f"`{', '.join(STAGES)}`" in readme
    for scheme in READERS:
        assert f"`{scheme}:`" in readme, scheme
    for scheme in SCHEMES:
        assert f"{scheme}:" in readme, scheme


def test_every_format_has_a_row():
    page = text_of("docs/interchange.md")
    for name in FORMATS:
        assert re.search(rf"`{re.escape(name)}`", page), name


def test_every_option_of_the_loss_is_described():
    from nvret_jax.training.loss.losses import Loss

    page = text_of("docs/training.md")
    for field in dataclasses.fields(Loss):
        if field.name not in ("in_batch", "scores", "partition"):
            assert field.name in page, field.name


def test_pages_do_not_speak_in_private_metaphors():
    """Words that a reader outside of the project cannot place."""
    for page in PAGES:
        words = text_of(page).lower()
        for phrase in ("the house", "the rooms", "a room ", "somebody", "nobody", "of its own"):
            assert phrase not in words, (page, phrase)


def test_the_page_of_options_is_that_of_the_code():
    from nvret_jax.config import reference

    message = "run: python -m nvret_jax.config.reference > docs/options.md"
    assert text_of("docs/options.md") == reference.page(), message
