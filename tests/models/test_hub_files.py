"""Pinned files of the hub, from a hub on this machine that has them, has others, or isn't there."""

import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tl_skillneurons.models.hub_files import HubFiles, fetch_from_hub

FILES = {"config.json": b"{}", "model.safetensors": b"weights"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PINNED = HubFiles("some/model", COMMIT, {name: hashlib.sha256(b).hexdigest() for name, b in FILES.items()})


@pytest.fixture
def hub(monkeypatch):
    """A hub that answers as the real one does; what it has, and what it was asked for."""
    from huggingface_hub import constants

    has, asked = dict(FILES), []

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            content = has.get(self.path.removeprefix(f"/some/model/resolve/{COMMIT}/"))
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            else:
                self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            return content or b""

        def do_GET(self):
            self.wfile.write(self.do_HEAD())

        def log_message(self, *told):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield has, asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_pinned_files_come_from_the_hub(hub, tmp_path):
    folder = fetch_from_hub(PINNED, tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == FILES
    assert {path for path in hub[1] if "/resolve/" in path} == {
        f"/some/model/resolve/{COMMIT}/{name}" for name in FILES
    }


@pytest.mark.parametrize("change", [{"model.safetensors": b"others"}, {"model.safetensors": None}, {}])
def test_a_hub_that_has_others_lacks_one_or_is_switched_off_gives_none(hub, tmp_path, change, monkeypatch):
    from huggingface_hub import constants

    hub[0].update(change)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not change)
    assert fetch_from_hub(PINNED, tmp_path) is None
    assert bool(hub[1]) is bool(change)


def test_a_hub_that_is_not_there_is_asked_once(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    def never(*args, **kwargs):
        raise AssertionError("the hub's client goes on trying")

    nowhere = "http://127.0.0.1:9"  # refuses
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", never)
    assert fetch_from_hub(PINNED, tmp_path) is None


def test_a_full_disk_is_no_missing_hub(hub, tmp_path, monkeypatch):
    import huggingface_hub

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(OSError, match="No space left"):
        fetch_from_hub(PINNED, tmp_path)


def test_a_packaged_model_is_taken_from_the_hub_before_the_registry(hub, tmp_path, monkeypatch):
    from dataclasses import replace

    from tl_skillneurons.models import packaged

    def no_wheel(*args):
        raise AssertionError("the registry was asked")

    monkeypatch.setenv("TL_SKILLNEURONS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged, "_download", no_wheel)
    minilm = replace(packaged.PACKAGED["minilm"], hub=PINNED)
    monkeypatch.setattr(packaged, "PACKAGED", {"minilm": minilm})
    folder = packaged.packaged_model("minilm", verbose=False)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["minilm-0.1.0"]
