"""Models and data sets of a model hub, at one commit, through the hub client's own cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spin_components.errors import ConfigError, StorageAccessError, StorageError
from spin_components.store.addresses import HubAddress

_MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py"]


def open_snapshot(address: HubAddress, *, kind: str, what: str) -> tuple[str, Path]:
    """Download what is not there yet.

    Args:
        address: of a repository, or of a part of one.
        kind: `model` or `dataset`, whichever is expected.
        what: the setting it came from, for the error.

    Returns: the address with the commit for revision, and the local folder.

    Raises:
        ConfigError: a model where data is expected, or the reverse; or no hub client is installed.
        StorageAccessError: there is no such repository or revision, or it is not open to this account.
        StorageError: the hub cannot be reached and the cache does not have it.
    """
    if address.kind != kind:
        wanted = "hf://datasets/org/name" if kind == "dataset" else "hf://org/name"
        raise ConfigError(f"{what} = '{address}' is a {address.kind}; expected {wanted}")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise ConfigError(f"{what} = '{address}' needs the package huggingface_hub, which is not installed") from error
    patterns = [f"{address.path}*", f"{address.path}/*"] if address.path else None
    try:
        folder = snapshot_download(
            address.repository,
            repo_type=kind,
            revision=address.revision,
            allow_patterns=patterns or (_MODEL_FILES if kind == "model" else None),
        )
    except GatedRepoError as error:
        raise StorageAccessError(
            f"{what} = '{address}' is gated; accept its terms on the hub and set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise StorageAccessError(f"{what} = '{address}': there is no revision {address.revision!r}") from error
    except RepositoryNotFoundError as error:
        raise StorageAccessError(
            f"{what} = '{address}': there is no such {kind}, or it is private; check the name, or set HF_TOKEN"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise StorageError(
            f"{what} = '{address}' is not in the hub's cache and the hub cannot be reached ({type(error).__name__}). "
            "Fetch it where there is a network (`hf download`), and bring the cache (HF_HOME) or name the folder"
        ) from error
    exact = replace(address, revision=Path(folder).name)
    return str(exact), Path(folder) / exact.path
