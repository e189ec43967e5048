# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that the modules which verify a server share, and the server that they name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.proxies import EXEMPT, exempting
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import split_secrets
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import engine_errors, image_missing
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.jobs import NO_IMAGE
from ansible_collections.gpufleet.vllm.plugins.module_utils.health.api import Server, base_url
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import (
    CA_BUNDLE_PATH,
    CA_BUNDLE_VARIABLES,
    HF_HOME,
    joined_volumes,
)

if TYPE_CHECKING:
    from docker import DockerClient

# Documented in doc_fragments/verify.py.
TARGET_ARGUMENTS: dict[str, Any] = {
    "url": {"type": "str", "default": "http://127.0.0.1:8000"},
    "name": {"type": "str", "default": "vllm"},
    "model": {"type": "str", "default": ""},
    "api_key": {"type": "str", "default": "", "no_log": True},
    "hf_token": {"type": "str", "default": "", "no_log": True},
    "image": {"type": "str", "required": True},
    "model_source": {"type": "dict", "default": {}},
    "hf_home": {"type": "path", "default": "/var/lib/gpufleet/huggingface"},
    "ca_bundle": {"type": "str", "default": ""},
    "ca_path": {"type": "path"},
    "volumes": {"type": "list", "elements": "str", "default": []},
    "environment": {"type": "dict", "default": {}},
    "secrets": {"type": "dict", "default": {}, "no_log": True},
    "work_dir": {"type": "path", "default": "/var/lib/gpufleet/verify"},
    "timeout": {"type": "int", "default": 7200},
}


def target_of(params: dict[str, Any]) -> Target:
    """Return the server that a module's options name; it must answer.

    Raises:
        GpufleetError: as openai.Server.served_model.
    """
    verify = params["ca_path"] or True
    server = Server(params["url"], api_key=params["api_key"], verify=verify, retries=2)
    environment: dict[str, str] = {"HF_HOME": HF_HOME}
    volumes = [f"{params['hf_home']}:{HF_HOME}"] if params["hf_home"] else []
    source = params["model_source"]
    if source.get("mount"):
        volumes.append(f"{source['mount']}:{source['argument']}:ro")
    if params["ca_bundle"]:
        volumes.append(f"{params['ca_bundle']}:{CA_BUNDLE_PATH}:ro")
        environment.update(dict.fromkeys(CA_BUNDLE_VARIABLES, CA_BUNDLE_PATH))
    public, hidden = split_secrets(
        {name: str(value) for name, value in params["environment"].items()},
        {name: str(value) for name, value in params["secrets"].items() if value is not None},
    )
    # It is told, as the command that repeats a job by hand needs it.
    public.update({name: hidden.pop(name) for name in EXEMPT if name in hidden})
    return Target(
        name=params["name"],
        url=base_url(params["url"]),
        model=server.served_model(params["model"]),
        api_key=params["api_key"],
        verify=verify,
        image=params["image"],
        environment={**environment, **public},
        secrets={**hidden, **({"HF_TOKEN": params["hf_token"]} if params["hf_token"] else {})},
        volumes=tuple(joined_volumes(volumes, params["volumes"])),
    )


def image_id_of(client: DockerClient, image: str) -> str:
    """Return the id of an image on the host.

    Raises:
        GpufleetError: C(image-missing).
    """
    from docker.errors import ImageNotFound

    if not image:
        raise GpufleetError(
            "No image is named in which lm_eval and vllm bench could run.",
            name="image-missing",
            remedy="With vllm_url, name an image with vLLM that is on the host in vllm_verify_image.",
        )
    with engine_errors(f"looking for the image {image}"):
        try:
            return str(client.images.get(image).id)
        except ImageNotFound as error:
            raise image_missing(image, error, NO_IMAGE) from error


@dataclasses.dataclass(frozen=True)
class Target:
    """The server that is measured or judged, and the image that does so.

    Attributes:
        name: of the replica, for container names and messages.
        url: base address, as seen from the host.
        model: name under which it serves the model.
        api_key: key that it wants, or C("").
        verify: whether to check its certificate, or the host's CA bundle to check it with.
        image: reference of an image with vLLM.
        environment: further variables of the container that asks.
        secrets: those of them that reach no message, such as C(HF_TOKEN).
        volumes: mounts of that container, as C(docker run --volume) takes them.
    """

    name: str
    url: str
    model: str
    api_key: str = ""
    verify: bool | str = True
    image: str = ""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    secrets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    volumes: Sequence[str] = ()

    def job_environment(self) -> dict[str, str]:
        """Return the variables of the container that asks the server; no proxy stands between the two."""
        given = {**self.environment, **self.all_secrets()}
        return {**given, **exempting(given, [urlsplit(self.url).hostname or ""])}

    def all_secrets(self) -> dict[str, str]:
        """Return the secrets and the server's key under the name that both vllm bench and lm_eval read."""
        return {**self.secrets, **({"OPENAI_API_KEY": self.api_key} if self.api_key else {})}
