"""Pinned files of a model on the Hugging Face hub, taken where it can be reached, and only if they are as expected.

Whether it can be reached is asked once and briefly: the hub's own client goes on trying for half a minute.
"""

import errno
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

_PATIENCE = 3.0
"""Seconds that the hub may take to say that it is there."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubFiles:
    """Files of one repository at one commit, each by its SHA-256."""

    repo: str
    commit: str
    sha256: Mapping[str, str]


def fetch_from_hub(files: HubFiles, into: Path) -> Path | None:
    """The files in a folder below ``into``; ``None`` where the hub can't be reached or has others.

    Raises:
        OSError: When the disk is full.
    """
    from huggingface_hub import hf_hub_download

    if not _is_there(files):
        return None
    folder = into / "hub"
    for name, expected in files.sha256.items():
        try:
            path = Path(hf_hub_download(files.repo, name, revision=files.commit, local_dir=folder))
        except Exception as error:  # the hub's own errors, its client's, those of a broken connection
            if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
                raise
            _log.info("%s of %s can't be had from the hub: %s", name, files.repo, error)
            return None
        if (found := sha256_of(path)) != expected:
            _log.info("%s of %s is another one on the hub: SHA-256 %s", name, files.repo, found)
            return None
    return folder


def sha256_of(path: Path) -> str:
    """The file's SHA-256, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_there(files: HubFiles) -> bool:
    from huggingface_hub import constants, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return False
    first = hf_hub_url(files.repo, next(iter(files.sha256)), revision=files.commit)
    try:
        return httpx.head(first, timeout=_PATIENCE).status_code < 400
    except httpx.HTTPError:
        return False
