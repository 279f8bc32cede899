"""A file of the Hugging Face hub: from its cache, or fetched when a metric is built, never later."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

from vdqbench.errors import ConfigError


def hub_file(repository: str, file: str, key: str) -> str:
    """Path of a file of the hub.

    Raises:
        ConfigError: it is not cached and cannot be fetched; found out at once where there is no network.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(path := try_to_load_from_cache(repository, file), str):
        return path
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        if not getproxies():
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname or "huggingface.co", 443)
        return hf_hub_download(repository, file)
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"{key}: {repository} is not in the hub's cache and cannot be fetched ({reason}); give a local file, or run once with a network"
        ) from error
