"""Download of models and data sets from the Hugging Face Hub, through the hub client's own cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spin_components.errors import ConfigError, StorageAccessError, StorageError
from spin_components.store.addresses import HubAddress

_MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py"]


def open_snapshot(address: HubAddress, *, kind: str, what: str) -> tuple[str, Path]:
    """Download a repository, or a part of one, unless it is cached.

    Args:
        address: repository and path in it.
        kind: expected kind, `model` or `dataset`.
        what: name of the setting, for the error.

    Returns: the address with the commit as its revision, and the local file or folder.

    Raises:
        ConfigError: the address is of the other kind or invalid, or huggingface_hub is not installed.
        StorageAccessError: the repository or revision does not exist, or this account has no access to it.
        StorageError: the hub cannot be reached and the files are not cached.
    """
    if address.kind != kind:
        expected = "hf://datasets/org/name" if kind == "dataset" else "hf://org/name"
        raise ConfigError(f"{what} = '{address}' is a {address.kind}; expected {expected}")
    try:
        import httpx
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise ConfigError(f"{what} = '{address}' needs the package huggingface_hub, which is not installed") from error
    patterns = [address.path, f"{address.path}/*"] if address.path else None

    def snapshot(*, local_files_only: bool) -> str:
        return snapshot_download(
            address.repository,
            repo_type=kind,
            revision=address.revision,
            allow_patterns=patterns or (_MODEL_FILES if kind == "model" else None),
            local_files_only=local_files_only,
        )

    try:
        try:
            folder = snapshot(local_files_only=False)
        except (LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
            if isinstance(error, HfHubHTTPError):
                raise
            folder = snapshot(local_files_only=True)  # without a network, a cached snapshot will do
    except HFValidationError as error:
        raise ConfigError(f"{what} = '{address}': not a valid repository name; expected hf://org/name") from error
    except GatedRepoError as error:
        raise StorageAccessError(
            f"{what} = '{address}' is gated; accept its terms on the hub and set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise StorageAccessError(f"{what} = '{address}': the revision {address.revision!r} does not exist") from error
    except RepositoryNotFoundError as error:
        raise StorageAccessError(
            f"{what} = '{address}': the {kind} does not exist or is private; check the name, or set HF_TOKEN"
        ) from error
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise StorageAccessError(f"{what} = '{address}': the hub refuses HF_TOKEN; renew or unset it") from error
        raise _unreachable(what, address, error) from error
    except (LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        raise _unreachable(what, address, error) from error
    exact = replace(address, revision=Path(folder).name)
    return str(exact), Path(folder) / exact.path


def _unreachable(what: str, address: HubAddress, error: Exception) -> StorageError:
    return StorageError(
        f"{what} = '{address}' is not in the hub's cache and the hub cannot be reached ({type(error).__name__}). "
        "Download it on a machine with network access (`hf download`), then copy the cache (HF_HOME) here, or set "
        f"{what} to the folder"
    )
