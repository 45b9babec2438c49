"""A pinned file of a package registry, fetched without pip, as environments made by ``uv`` have none.

The registry is the one that pip or uv would ask: ``UV_DEFAULT_INDEX``, ``UV_INDEX_URL``, ``PIP_INDEX_URL``, the
``index-url`` of pip's configuration, else PyPI; its answer is read as the simple repository API gives it (PEP 503 and
691). The file is the one of the expected SHA-256, whatever it is called.
"""

import configparser
import html
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlsplit

import httpx

PYPI = "https://pypi.org/simple"
_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
_JSON = "application/vnd.pypi.simple.v1+json"
_LINK = re.compile(r"""<a\s[^>]*?href\s*=\s*["']([^"']+)["']""", re.IGNORECASE)


def fetch_wheel(project: str, sha256: str, into: Path) -> Path:
    """The project's file of this SHA-256, downloaded into a folder; what arrives is for the caller to compare.

    Raises:
        ConnectionError: When the registry can't be reached, or has no such file.
    """
    index = index_url()
    page = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', project).lower()}/"
    try:
        with _client() as client:
            answer = client.get(page, headers={"Accept": f"{_JSON}, text/html;q=0.5"}).raise_for_status()
            for url, digest in _files(answer):
                if digest == sha256:
                    return _saved(client, url, into)
    except httpx.HTTPError as error:
        raise ConnectionError(
            f"{project} can't be downloaded from {_without_secrets(index)}: {error}"
        ) from error
    raise ConnectionError(
        f"{_without_secrets(index)} has no file of {project} with the SHA-256 {sha256}; set UV_INDEX_URL or "
        "PIP_INDEX_URL to a registry that does, or give a model as a local folder"
    )


def index_url() -> str:
    """The registry that pip or uv would ask."""
    for variable in _VARIABLES:
        if given := os.environ.get(variable):
            return given.partition("=")[2] if re.match(r"[\w-]+=https?:", given) else given  # uv: name=url
    for path in _configurations():
        read = configparser.ConfigParser(interpolation=None)
        try:
            read.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError, OSError):
            continue
        for section in ("download", "install", "global"):
            if read.has_option(section, "index-url"):
                return read.get(section, "index-url").strip()
    return PYPI


def _configurations() -> Iterator[Path]:
    """Where pip's configuration may stand, the nearest first."""
    if given := os.environ.get("PIP_CONFIG_FILE"):
        yield Path(given)
    name, home = "pip.ini" if os.name == "nt" else "pip.conf", Path.home()
    yield Path(sys.prefix) / name
    yield Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / name
    yield home / ".pip" / name
    if appdata := os.environ.get("APPDATA"):
        yield Path(appdata) / "pip" / name
    yield home / "Library" / "Application Support" / "pip" / name
    yield Path("/etc/xdg/pip") / name
    yield Path("/etc") / name


def _client() -> httpx.Client:
    certificates = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    if not certificates:
        return httpx.Client(follow_redirects=True, timeout=60)
    import ssl

    return httpx.Client(
        follow_redirects=True, timeout=60, verify=ssl.create_default_context(cafile=certificates)
    )


def _files(answer: httpx.Response) -> Iterator[tuple[str, str]]:
    """Address and SHA-256 of each file of a project's page."""
    base = str(answer.url)
    if answer.headers.get("content-type", "").startswith(_JSON):
        for file in answer.json()["files"]:
            yield urljoin(base, file["url"]), file.get("hashes", {}).get("sha256", "")
        return
    for link in _LINK.findall(answer.text):
        address, fragment = urldefrag(urljoin(base, html.unescape(link)))
        yield address, fragment.partition("sha256=")[2]


def _saved(client: httpx.Client, url: str, into: Path) -> Path:
    path = into / (Path(urlsplit(url).path).name or "file.whl")
    with client.stream("GET", url) as answer, path.open("wb") as file:
        for block in answer.raise_for_status().iter_bytes(1 << 20):
            file.write(block)
    return path


def _without_secrets(url: str) -> str:
    return re.sub(r"//[^/@]+@", "//", url)
