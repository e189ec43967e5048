# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why weights could not be fetched, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import without_secrets
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.text import GIB
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.surroundings import Surroundings
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.wants import MAIN, Want

WAY_OUT = (
    "Give the servers a way there: HTTPS_PROXY in vllm_environment (this host's own variables do not reach into"
    " containers), a mirror as HF_ENDPOINT, vllm_network_mode: host where only the host's own network gets out, or the"
    " weights on the host (vllm_model: /path). Files that are complete are kept."
)
ANOTHER_NAME = (
    "Correct vllm_model; for a private or gated model set vllm_hf_token to a token of an account that may read it."
)
# What is said of a token that is there.
ACCESS = {"hub-refused": "vllm_hf_token is set", "model-not-found": "the token in vllm_hf_token does not open it"}
# Name of the cause: what it means for {model} and what to do.
REFUSALS: dict[str, tuple[str, str]] = {
    "model-gated": (
        "The hub gives {model} only to accounts that accepted its licence; {access}.",
        "Accept the licence at the model's page and set vllm_hf_token to a token of that account.",
    ),
    "model-not-found": (
        "The hub has no model {model}, or not for everybody; {access}.",
        ANOTHER_NAME,
    ),
    "revision-not-found": (
        "The hub has no revision {revision} of {model}.",
        "Correct revision or tokenizer-revision in vllm_extra_config: a branch, a tag or a whole commit.",
    ),
    "hub-refused": (
        "The hub refuses to give {model} (status {status}); {access}.",
        "Set vllm_hf_token to a valid token of an account that may read the model.",
    ),
    "hub-rate-limit": (
        "The hub limits the rate of requests from here (429), and still did after {retries} further attempts.",
        "Set vllm_hf_token, or start fewer hosts at a time; the download goes on where it stopped.",
    ),
    "hub-unreachable": ("The hub does not give {model}: it cannot be reached, or breaks the connection.", WAY_OUT),
    "name-not-resolved": (
        "The hub's name cannot be resolved from a container.",
        "Fix the host's DNS, or set vllm_network_mode to host.",
    ),
    "certificate-not-trusted": (
        "The hub's TLS certificate is not trusted, as behind an inspecting proxy.",
        "Set vllm_ca_bundle to a file with the proxy's certificate authority.",
    ),
    "disk-full": (
        "The disk of {cache} has no room for {model}: {needed} are missing and {free} are free.",
        "Free room there (models that are not served any more are below {hub}), or set {variable} to a folder on a"
        " larger disk.",
    ),
    "permission-denied": (
        "The container may not write to {cache}.",
        "Give its user access to the folder (a mount in vllm_volumes: without :ro, with SELinux with :z).",
    ),
    "storage-failed": (
        "The disk of {cache}, or the file server behind it, fails.",
        "See dmesg on the host; put the cache on storage that works ({variable}).",
    ),
    "folder-not-writable": (
        "The file system of {cache} cannot hold the hub's cache: it refuses locks, links, long names or large files, or"
        " something else lies in the place of a file of the cache.",
        "Set {variable} to a folder on a local disk (ext4, xfs), or mount the file server with locks (NFS: without"
        " nolock), and see what the evidence names.",
    ),
    "too-many-open-files": (
        "The container reached the limit of files that it may have open.",
        "Raise nofile under default-ulimits in docker_daemon_config.",
    ),
    "host-out-of-memory": (
        "The host has no memory left for the download.",
        "End other processes on the host, or run the play again when it serves less.",
    ),
    "weights-missing": (
        "{model} has no weights that vLLM would load.",
        "Correct vllm_model, or load-format in vllm_extra_config.",
    ),
    "python-package-missing": (
        "The image has no huggingface_hub, which vLLM itself needs to fetch a model.",
        "Use another image (vllm_image), or put the model on the host and set vllm_model to its folder.",
    ),
}


def download_error(error: Mapping[str, Any], around: Surroundings) -> GpufleetError:
    """Return what hub_download answered as an error.

    Args:
        error: its C(error).
        around: how it went about it.
    """
    name = str(error["name"])
    meaning, remedy = REFUSALS.get(
        name,
        ("The download of {model} failed.", "Run the play again, which goes on with the files that are complete."),
    )
    revision = str(error.get("revision") or MAIN)
    model = Want(str(error.get("repository") or "the model"), revision)
    known = any("TOKEN" in secret for secret in around.secrets)
    values = {
        "model": model.repository if name == "revision-not-found" else model,
        "revision": revision,
        "status": error.get("status") or "unknown",
        "retries": around.retries,
        "cache": around.cache,
        "hub": around.cache.folder,
        "variable": around.cache.variable,
        "needed": f"{float(error.get('needed') or error.get('missing_bytes') or 0) / GIB:.1f} GiB",
        "free": f"{float(error['free']) / GIB:.1f} GiB" if "free" in error else "too few",
        "access": ACCESS.get(name, "the token in vllm_hf_token is not of such an account")
        if known
        else "vllm_hf_token is not set",
    }
    return GpufleetError(
        f"{meaning.format(**values)} No server was touched.",
        name=name,
        remedy=remedy.format(**values),
        evidence=without_secrets(str(error.get("text") or ""), around.secrets),
        details={key: error[key] for key in ("repository", "revision", "status", "needed", "free") if error.get(key)},
    )


def not_here(missing: Sequence[tuple[Want, str]], around: Surroundings) -> GpufleetError:
    why = "vllm_offline is true" if around.offline else "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is in vllm_environment"
    told = "; ".join(f"{want}: {lack}" for want, lack in missing)
    return GpufleetError(
        f"{why}, so the hub is not asked, and {around.cache} lacks what the server needs: {told}.",
        name="weights-missing",
        remedy=f"Copy the model's folder models--<owner>--<name> into {around.cache.folder} from a host that has it,"
        " whole (rsync -a, tar), or set vllm_model to a folder that holds the model.",
        details={"missing": {want.repository: lack for want, lack in missing}},
    )
