"""Files that are written whole or not at all, and that say what they are.

Tensors go into safetensors with one JSON header (metadata key ``tl_skillneurons``) that names the kind of
artifact, the format and the package version. Everything is written to a temporary file in the same folder and
renamed, so a reader never meets half a file. Nothing is pickled.

Each file carries the SHA-256 of all its other bytes, which is checked when it is read: tensors, settings and the header
that says where they stand. What is loaded is a copy in memory, which the file no longer has a part in.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import Tensor

KEY = "tl_skillneurons"
FORMAT = 1
CHECKSUM = "checksum"
_UNSIGNED = "0" * 64
_IN_TENSORS = re.compile(rb'"checksum":"([0-9a-f]{64})"')  # inside a value its quotes are escaped
_IN_JSON = re.compile(rb'\A\{\s*"checksum": "([0-9a-f]{64})"')


def package_version() -> str:
    """The installed version of this package, or ``"unknown"`` when it runs without being installed."""
    try:
        return version(KEY)
    except PackageNotFoundError:
        return "unknown"


def fingerprint(*tensors: Tensor) -> str:
    """SHA-256 of the tensors' dtypes, shapes and bits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write ``content`` to ``path`` in one step; missing folders are made.

    Raises:
        OSError: When the folder can't be made or written; ``path`` is then as it was before.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise OSError(
            f"can't write {path}: {error.strerror or error}; choose a folder that can be written"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


def require_writable(folder: str | os.PathLike[str]) -> None:
    """Make ``folder`` if it is missing, and see that a file can be written there, before any work is put into
    it.

    Raises:
        OSError: When it can't be.
    """
    write_whole(Path(folder) / ".writable", b"").unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | os.PathLike[str], content: dict[str, Any]) -> Path:
    """Write ``content`` as indented JSON that a person can read."""
    written = json.dumps(_to_sign(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_whole(path, _signed(written.encode(), _IN_JSON) if "kind" in content else written)


def write_json_lines(path: str | os.PathLike[str], content: dict[str, Any]) -> Path:
    """Write ``content`` as JSON with one line for each value, and for each entry of a value that is a dict."""
    lines = []
    for key, value in _to_sign(content).items():
        if isinstance(value, dict) and value:
            entries = ",\n".join(f"    {_one_line(k)}: {_one_line(v)}" for k, v in value.items())
            lines.append(f"  {_one_line(key)}: {{\n{entries}\n  }}")
        else:
            lines.append(f"  {_one_line(key)}: {_one_line(value)}")
    written = "{\n" + ",\n".join(lines) + "\n}\n"
    return write_whole(path, _signed(written.encode(), _IN_JSON) if "kind" in content else written)


def _to_sign(content: dict[str, Any]) -> dict[str, Any]:
    """An artifact with a place for its checksum, first of all; other JSON as it is."""
    return {CHECKSUM: _UNSIGNED, **content} if "kind" in content else content


def _one_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def read_json(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """The JSON object in ``path``, which must be an artifact of this ``kind``.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is not JSON, not this kind of artifact, or differs from what was written in any bit.
    """
    try:
        written = Path(path).read_bytes()
        content = json.loads(written.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); it is corrupt or another kind of file") from error
    _require_kind(path, content, kind)
    _require_signed(path, written, _IN_JSON)
    del content[CHECKSUM]
    return content


def save_tensors(
    path: str | os.PathLike[str], kind: str, tensors: dict[str, Tensor], header: dict[str, Any]
) -> Path:
    """Write ``tensors`` as safetensors whose header says that this is a ``kind`` and carries ``header``."""
    header = {"kind": kind, "format": FORMAT, "package_version": package_version(), **header}
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {KEY: json.dumps(header, allow_nan=False), CHECKSUM: _UNSIGNED}
    return write_whole(path, _signed(serialize(cpu, metadata=metadata), _IN_TENSORS))


def load_tensors(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, in memory of their own, and the header that :func:`save_tensors` wrote as this ``kind``.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When the file is corrupt or differs from what was written in any bit, was not written by this
            package, or holds another kind of artifact.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        content = Path(path).read_bytes()
        tensors = {name: tensor.clone() for name, tensor in deserialize(content).items()}
        size = 8 + int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8:size]).get("__metadata__", {})
        header = json.loads(metadata.get(KEY, "null"))
    except (SafetensorError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is corrupt or not a safetensors file ({error})") from error
    _require_kind(path, header, kind)
    _require_signed(path, content, _IN_TENSORS, size)
    return tensors, header


def _signed(content: bytes, place: "re.Pattern[bytes]") -> bytes:
    """The content with the SHA-256 of what it is without it, in the place that was left for it."""
    found = place.search(content)
    assert found is not None  # the writer left it
    return content[: found.start(1)] + hashlib.sha256(content).hexdigest().encode() + content[found.end(1) :]


def _require_signed(
    path: str | os.PathLike[str], content: bytes, place: "re.Pattern[bytes]", size: int | None = None
) -> None:
    found = place.search(content[:size])
    if found is None:
        raise ValueError(
            f"{path} has no checksum: it was written by an earlier version of {KEY}, or by hand; make it anew"
        )
    start, end = found.span(1)
    unsigned = hashlib.sha256(content[:start])
    unsigned.update(_UNSIGNED.encode())
    unsigned.update(content[end:])
    if unsigned.hexdigest().encode() != found[1]:
        raise ValueError(
            f"{path} is corrupt: its checksum does not fit, so something in it has changed since it was written; make "
            "it anew, or take it from a backup"
        )


@contextmanager
def sound(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turn what goes wrong while an artifact is made of a file's content into one error that names the file.

    Raises:
        ValueError: When something is missing in the file, or of the wrong type or shape.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is not a sound {kind} file: {reason}") from error


def _require_kind(path: str | os.PathLike[str], header: Any, kind: str) -> None:
    if not isinstance(header, dict) or "kind" not in header:
        raise ValueError(
            f"{path} was not written by {KEY} (it has no header of ours); expected a {kind} file"
        )
    if header["kind"] != kind:
        raise ValueError(f"{path} holds a {header['kind']}, expected a {kind}")
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} has format {header.get('format')!r}, this version of {KEY} reads {FORMAT}")
