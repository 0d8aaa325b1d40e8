"""From what a user calls a checkpoint, a folder or a name on the model hub, to a folder on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from vero_jax.errors import UserError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_UNUSED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf", "*.onnx*", "original/*")
"""Weights in formats that are not read here; some repositories hold them beside the safetensors files."""


def resolve_checkpoint(name: str | Path, *, weights: bool = True) -> Path:
    """The folder of a checkpoint: `name` itself if it is one, else the hub's repository of that id, downloaded once.

    Without a network, or with HF_HUB_OFFLINE set, a repository that was downloaded before is found in the local cache.

    Args:
        name: a folder, or an id such as "Qwen/Qwen3-VL-4B-Instruct".
        weights: False downloads the small files only.

    Raises:
        UserError: there is no such folder, and no such repository in the cache or within reach.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    repository = str(name)
    if not _ID.fullmatch(repository):
        raise UserError(
            f"the checkpoint {repository} does not exist; give a folder, or an id of the model hub such as "
            "Qwen/Qwen3-VL-4B-Instruct"
        )
    # Imported here because it takes time, and a folder needs none of it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, ignore_patterns=[*_UNUSED, *([] if weights else ["*.safetensors"])]))
    except GatedRepoError:
        reason = "it may be downloaded only by those who asked for it there; log in with `hf auth login`"
    except (LocalEntryNotFoundError, ConnectionError, TimeoutError):
        reason = (
            "it is not in the local cache and the model hub cannot be reached; download it where there is a network"
        )
    except HfHubHTTPError as error:
        reason = f"the model hub refuses ({str(error).splitlines()[0]}); check the id, or log in with `hf auth login`"
    except HFValidationError as error:
        reason = f"it is no valid id ({error}); check it"
    raise UserError(f"the checkpoint {repository} is neither a folder nor to be had: {reason}")
