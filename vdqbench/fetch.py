"""Fetching assets: from the hub by its own client, from the web resumably; a file is whole and has its hash, or it is not there."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock

from vdqbench.config import Asset
from vdqbench.progress import Progress
from vdqbench.sources import cache, digest, matches

CHUNK = 2**20
ATTEMPTS = 3
"""How often a download of the web is taken up again after it broke off."""
TIMEOUT = 60.0
"""Seconds without an answer."""


class FetchError(RuntimeError):
    """An asset could not be had; one sentence that says why, and what to do."""


def fetch(asset: Asset, progress: Progress) -> Path:
    """Fetch what is missing of an asset and compare all of it with its hashes; returns its folder.

    A download that broke off goes on where it stopped. A file of another hash than expected is deleted.

    Raises:
        FetchError: it cannot be fetched, or a file is not what it should be.
    """
    where = asset.where
    if where.repository:
        _from_hub(asset, progress)
    elif where.address:
        _from_web(located(where.address), Path(str(where.folder)) / asset.files[0], asset, progress)
    missing = where.missing(asset.files)
    folder = where.folder
    if missing or folder is None:
        raise FetchError(f"{asset.source} lacks {', '.join(missing)}, which its {asset.part} is made of; its authors may have moved it")
    compare(asset, folder, progress)
    return folder


def compare(asset: Asset, folder: Path, progress: Progress) -> None:
    """Compare the files of an asset with their hashes, as far as they are known: stated in the asset, or by the hub.

    Raises:
        FetchError: one differs; it is deleted, so that it is fetched anew.
    """
    files = dict.fromkeys(file for one in asset.files for file in matches(folder, one))
    expected = {file: wanted for file in files if (wanted := _expected(asset, folder, file))}
    with progress.stage(f"verify {asset.part}", len(expected)) as advance:
        for file, wanted in expected.items():
            found = digest(file)
            if not found.startswith(wanted):
                file.resolve().unlink()
                file.unlink(missing_ok=True)
                raise FetchError(
                    f"{file.relative_to(folder).as_posix()} of {asset.source} has SHA-256 {found[:16]}... in place of {wanted[:16]}... "
                    "and was deleted; run the same command again, and if it says the same, the file was changed at its source"
                )
            advance(1)


def _expected(asset: Asset, folder: Path, file: Path) -> str:
    """The hash of a file, or its first digits; the hub's cache names large files by theirs. Empty if it is not known."""
    stated = (asset.sha256 or {}).get(file.relative_to(folder).as_posix())
    name = file.resolve().name
    return str(stated or (name if asset.where.repository and re.fullmatch(r"[0-9a-f]{64}", name) else ""))


def space(assets: list[Asset]) -> Iterator[str]:
    """One sentence for each disk that has no room for what is to be written to it."""
    from huggingface_hub.constants import HF_HUB_CACHE

    wanted: dict[int, tuple[Path, float]] = {}
    for asset in assets:
        folder = Path(HF_HUB_CACHE) if asset.where.repository else cache("assets")
        folder = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        device = folder.stat().st_dev
        wanted[device] = (folder, wanted.get(device, (folder, 0.0))[1] + (asset.gigabytes or 0.0))
    for folder, gigabytes in wanted.values():
        if (free := shutil.disk_usage(folder).free / 1e9) < gigabytes:
            yield (
                f"{folder} has {free:.1f} GB free and {gigabytes:.1f} GB are to be fetched; make room, or set HF_HOME (files of the hub) "
                "and XDG_CACHE_HOME (others) to folders of a larger disk"
            )


def _from_hub(asset: Asset, progress: Progress) -> None:
    from huggingface_hub import constants, errors, snapshot_download

    repository = str(asset.where.repository)
    page, silent = f"{constants.ENDPOINT}/{repository}", progress.quiet or not progress.console.is_terminal
    progress.say(f"{asset.part}: {asset.source}, {asset.size}")
    try:
        with _bars(not silent):
            snapshot_download(repository, revision=asset.where.revision, allow_patterns=list(asset.files))
    except errors.GatedRepoError as error:
        raise FetchError(
            f"{page} is gated: accept its licence ({asset.licence}) there, log in with hf auth login, and run the same command again"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise FetchError(f"{page} has no {asset.where.revision or 'such repository'}, or not for you; log in with hf auth login") from error
    except (OSError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _said(error)
        raise FetchError(f"{asset.source} cannot be fetched ({why}); run the same command again to go on") from error


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Whether the hub's client shows its progress bars for a while."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    (enable_progress_bars if shown else disable_progress_bars)()
    try:
        yield
    finally:
        (disable_progress_bars if before else enable_progress_bars)()


def located(address: str) -> str:
    """The address itself; of `torchvision:NAME`, such as torchvision:AlexNet_Weights.IMAGENET1K_V1, the one that torchvision knows."""
    if not address.startswith("torchvision:"):
        return address
    from torchvision.models import get_weight

    return str(get_weight(address.removeprefix("torchvision:")).url)


def _from_web(address: str, path: Path, asset: Asset, progress: Progress) -> None:
    """Download to `path`, through a file `.part` beside it that stays when the download breaks off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with FileLock(path.with_name(path.name + ".lock")):
        if path.is_file():
            return
        for attempt in range(ATTEMPTS):
            try:
                _download(address, part, asset, progress)
                break
            except HTTPError as error:
                if error.code == 416:  # there is nothing after what was fetched before
                    break
                raise FetchError(f"{address} answers {error.code} {error.reason}; see whether it was moved") from error
            except (OSError, HTTPException) as error:
                have = part.stat().st_size if part.exists() else 0
                if attempt + 1 == ATTEMPTS:
                    raise FetchError(
                        f"{address} broke off after {have} bytes ({_said(error)}); run the same command again to go on from there"
                    ) from error
        wanted = str((asset.sha256 or {}).get(path.name) or "")
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(wanted):
            part.unlink()
            raise FetchError(
                f"{address} has SHA-256 {found[:16]}... in place of {wanted[:16]}... and was deleted; run the same command again, and if "
                "it says the same, the file was changed at its source"
            )
        os.replace(part, path)


def _download(address: str, part: Path, asset: Asset, progress: Progress) -> None:
    """Append to `part` what it lacks; from the beginning, if it might be of another file and no hash would tell.

    Raises:
        OSError, HTTPException: the connection broke off.
    """
    tag, have = part.with_name(part.name + ".tag"), part.stat().st_size if part.exists() else 0
    known = tag.read_text() if tag.exists() else ""
    headers = {"User-Agent": "vdqbench"}
    if have and (known or asset.sha256):
        headers |= {"Range": f"bytes={have}-", **({"If-Range": known} if known else {})}
    with urlopen(Request(address, headers=headers), timeout=TIMEOUT) as answer:
        goes_on = answer.status == 206
        have = have if goes_on else 0
        length = int(answer.headers.get("Content-Length") or 0)
        if version := _tag(answer.headers):
            tag.write_text(version)
        else:
            tag.unlink(missing_ok=True)
        total = have + length
        stage = progress.stage(f"fetch {asset.part} (MB)", max(1, round(total / 1e6)))
        with part.open("ab" if goes_on else "wb") as file, stage as advance:
            shown = 0
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                if (megabytes := round(have / 1e6)) > shown:
                    advance(megabytes - shown)
                    shown = megabytes
    if length and have < total:
        raise ConnectionError(f"{total - have} bytes are missing")
    tag.unlink(missing_ok=True)


def _tag(headers: Any) -> str:
    """What names this version of the file for `If-Range`: a strong ETag, or nothing."""
    tag = str(headers.get("ETag") or "")
    return "" if tag.startswith("W/") else tag


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
