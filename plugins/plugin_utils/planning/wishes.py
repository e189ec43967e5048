# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the user wishes: the C(vllm_*) variables, checked and typed."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Callable

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import bare
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.architectures import PLATFORMS, platform_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.readers import (
    ABSENT,
    Reader,
    auto,
    flag,
    integer,
    invalid,
    one_of,
    text_of,
    value_of,
    version_of,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.served_names import MODEL_NAME, names_of
from ansible_collections.gpufleet.vllm.plugins.module_utils.health import deadlines
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import versions
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.profiles import DEFAULT, PROFILES, Profile
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.extra_options import (
    read_environment,
    read_extra_config,
    read_secret_environment,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.site_options import (
    exceptions_given,
    host_file,
    image_digest,
    image_name,
    index_given,
    proxy_given,
    registries_given,
    secret_given,
    state_folder,
)
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.variable_names import misspelt

# What vllm_levers_off may name, see levers.py.
LEVERS = ("whole-graphs", "graph-sizes", "threads", "moe-tables", "attention-backend")
# The name of a parser that stands for none.
OFF = "-"


@dataclass(frozen=True)
class Wishes:
    """The user's wishes. None stands for C(auto): the planner chooses."""

    device: str = "cuda"
    accept_license: bool = False
    profile: str = DEFAULT
    precision: str | None = None
    model: str | None = None
    model_source: str | None = None
    served_model_name: tuple[str, ...] = ()
    image: str | None = None
    image_tag: str | None = None
    image_source: str | None = None
    image_archive: str = ""
    image_digest: str = ""
    version: versions.Version | None = None
    tensor_parallel_size: int | None = None
    replicas: int | None = None
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_dtype: str | None = None
    expected_input_len: int = 1024
    expected_output_len: int = 1024
    host: str = "127.0.0.1"
    port: int = 8000
    network_mode: str = "bridge"
    has_api_key: bool = False
    has_accepted_keys: bool = False
    allow_unauthenticated: bool = False
    has_hf_token: bool = False
    has_secret_environment: bool = False
    has_http_proxy: bool = False
    has_https_proxy: bool = False
    has_no_proxy: bool = False
    has_pip_index: bool = False
    ca_bundle: str | None = None
    registries: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    extra_config: dict[str, Any] = field(default_factory=dict)
    gpus: tuple[dict[str, Any], ...] = ()
    driver_version: str = ""
    platform: str = ""
    gpu_access: str = "auto"
    gpu_selection: str | tuple[int | str, ...] = "free"
    container_prefix: str = "vllm"
    state_dir: str = "/var/lib/gpufleet"
    drain_timeout: int = 600
    restart_policy: str = "unless-stopped"
    restrict_ports: bool = False
    start_at_boot: bool = True
    min_driver: int = versions.OLDEST_DRIVER
    offline: bool = False
    state_url: str = ""
    weights_from: str = "hub"
    weights_seeds: int = 1
    weights_port: int = 18022
    weights_connections: int = 4
    weights_rate: int = 0
    caches_from: str = "host"
    reclaim_orphans: bool = False
    image_size_gib: float | None = None
    phase_timeouts: dict[str, int] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()
    levers_off: frozenset[str] = frozenset()
    text_only: bool = False
    attention_backend: str | None = None
    tool_calling: str | None = None
    reasoning_parser: str | None = None

    @property
    def goals(self) -> Profile:
        """What the profile asks of the planner."""
        return PROFILES[self.profile]


def read(variables: Mapping[str, Any], known: Iterable[str] = (), found: Iterable[str] = ()) -> Wishes:
    """Return the wishes in the C(vllm_*) variables.

    Args:
        variables: names to templated values; other variables are ignored. None stands for the default.
        known: every name that the collection's roles document; when given, an unknown C(vllm_*) name is a problem.
        found: problems that the caller found already.

    Raises:
        GpufleetError: C(invalid-wishes), naming every problem at once.
    """
    problems = list(found)
    names = set(known)
    if names:
        problems += misspelt(variables, names)
    values = {name: value_of(variables, name, reader, problems) for name, reader in READERS.items()}
    given = {name: value for name, value in values.items() if value is not ABSENT}
    problems += _contradictions(given)
    if problems:
        raise invalid(problems)
    return Wishes(**given)


def _length(value: Any) -> int:
    """Read a number of tokens, also with vLLM's own suffixes: k is 1000, K is 1024."""
    found = re.fullmatch(r"(\d+)([kK]?)", str(value).strip())
    if not found or int(found.group(1)) == 0:
        raise ValueError("it must be a number of tokens such as 32768 or 32K, or auto")
    return int(found.group(1)) * {"": 1, "k": 1000, "K": 1024}[found.group(2)]


def _share(value: Any) -> float:
    try:
        share = float(text_of(value))
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise ValueError("it must be a share of the memory, above 0 and at most 1, such as 0.9")
    return share


def _size(value: Any) -> float:
    try:
        size = float(text_of(value))
    except ValueError:
        size = -1.0
    if not 0 < size < float("inf"):
        raise ValueError("it must be a number of GiB above 0, such as 30")
    return size


def _version(value: Any) -> versions.Version:
    found = versions.parse(version_of(value))
    if found is None:
        raise ValueError("it must be a version such as 0.12.0")
    return found


def _model(value: Any) -> str:
    text = text_of(value)
    if text.startswith("/"):
        return text.rstrip("/") or "/"
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", text):
        raise ValueError("it must be a repository such as organisation/name, or the absolute path of a folder")
    return text


def _names(value: Any) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(filter(None, names_of(value))))
    for name in names:
        if not MODEL_NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is no name that a request could have: it must be without white space, quotes and"
                " backslashes, 200 characters at most"
            )
    return names


def _path(value: Any) -> str:
    text = text_of(value)
    if text and not text.startswith("/"):
        raise ValueError("it must be an absolute path")
    return text.rstrip("/")


def _address(value: Any) -> str:
    text = text_of(value)
    if text == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(bare(text)))
    except ValueError:
        raise ValueError("it must be an IP address of this host, such as 127.0.0.1 or 0.0.0.0") from None


def _platform(value: Any) -> str:
    text = text_of(value)
    platform = platform_of(text.removeprefix("linux/"))
    if text and not (text.startswith("linux/") and platform in PLATFORMS):
        raise ValueError("it must be linux/amd64 or linux/arm64")
    return platform if text else ""


def _matching(pattern: str, wanted: str) -> Reader:
    def read_value(value: Any) -> str:
        text = version_of(value)
        if not re.fullmatch(pattern, text):
            raise ValueError(f"it must be {wanted}")
        return text

    return read_value


# Readers of texts of one form.
_prefix = _matching(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", "a name that Docker accepts for containers, such as vllm")
_backend = _matching(r"[A-Z][A-Z0-9_]*", "auto or the name of an attention backend of vLLM's, such as FLASHINFER")
_driver = _matching(r"(\d+(\.\d+)*)?", "the driver's version, such as 580.159.04")


def _keys(value: Any) -> bool:
    if not isinstance(value, (list, tuple)):
        raise ValueError("it must be a list of keys")
    if any(re.search(r"\s", text) or not text for text in map(text_of, value)):
        raise ValueError("a key in it is empty or has white space in it, which no header can carry")
    return bool(value)


def _gpus(value: Any) -> tuple[dict[str, Any], ...]:
    wanted = 'it must be a list such as [{name: NVIDIA H200, compute_capability: "9.0", memory_mib: 143771, count: 8}]'
    if not isinstance(value, (list, tuple)):
        raise ValueError(wanted)
    result = []
    for entry in value:
        if not isinstance(entry, Mapping) or not entry.get("name"):
            raise ValueError(wanted)
        unknown = set(entry) - {"name", "compute_capability", "memory_mib", "count"}
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))} is not a key of an entry; {wanted}")
        for key, number in (("count", integer(1, 64)), ("memory_mib", integer(1024))):
            if key in entry:
                _in_entry(key, number, entry)
        if not re.fullmatch(r"\d+(\.\d+)?", str(entry.get("compute_capability", "9.0"))):
            raise ValueError('compute_capability must be a string such as "9.0"')
        result.append(dict(entry))
    return tuple(result)


def _in_entry(key: str, read_value: Reader, entry: Mapping[str, Any]) -> None:
    """Check one key of an entry, and name both when it is refused."""
    try:
        read_value(entry[key])
    except ValueError as error:
        raise ValueError(f"{key} of {entry['name']}: {error}") from None


def _selection(value: Any) -> str | tuple[int | str, ...]:
    if isinstance(value, (list, tuple)):
        if not value:
            raise ValueError("the list is empty; name GPUs, or set free or all")
        if len({str(item) for item in value}) != len(value):
            raise ValueError("a GPU is named twice")
        return tuple(item if isinstance(item, int) else str(item) for item in value)
    text = text_of(value)
    if text not in ("free", "all"):
        raise ValueError("it must be free, all, or a list of indexes or UUIDs such as [0, 1]")
    return text


def _phase_timeouts(value: Any) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise ValueError("it must be a dictionary of phases and seconds")
    problems = deadlines.problems(value)
    if problems:
        raise ValueError("; ".join(problems))
    return {deadlines.key_of(str(name)): int(seconds) for name, seconds in value.items()}


def _restart_policy(value: Any) -> str:
    # YAML reads no without quotes as false.
    text = "" if isinstance(value, (bool, list, dict)) else text_of(value)
    if not re.fullmatch(r"no|always|unless-stopped|on-failure(:\d+)?", text):
        raise ValueError('it must be "no" (in quotes), always, unless-stopped, on-failure or on-failure:<count>')
    return text


def _volumes(value: Any) -> tuple[str, ...]:
    # Ansible takes a text with commas for a list.
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, (list, tuple)):
        raise ValueError("it must be a list such as [/data:/data:ro]")
    return tuple(filter(None, map(text_of, entries)))


def _levers(value: Any) -> frozenset[str]:
    # Ansible takes a text with commas for a list.
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, (list, tuple)):
        raise ValueError(f"it must be a list of {', '.join(LEVERS)}")
    return frozenset(one_of(*LEVERS)(entry) for entry in entries if str(entry).strip())


def _parser(value: Any) -> str:
    if value is False or str(value).strip().lower() in ("false", "no", "off"):
        return OFF
    text = text_of(value) if not isinstance(value, bool) else ""
    if not re.fullmatch(r"[a-z][\w.-]*", text):
        raise ValueError("it must be auto, false or the name of a parser of vLLM's, such as llama4_pythonic")
    return text


# field of Wishes -> variable, and how its value is read
READERS: dict[str, tuple[str, Reader]] = {
    "device": ("vllm_device", one_of("cuda", "cpu")),
    "accept_license": ("vllm_accept_license", flag),
    "profile": ("vllm_profile", one_of(*PROFILES)),
    "precision": ("vllm_precision", auto(one_of("auto", "fp8", "fp4", "bf16"))),
    "model": ("vllm_model", auto(_model)),
    "model_source": ("vllm_model_source", auto(one_of("auto", "hub", "path", "pypi"))),
    "served_model_name": ("vllm_served_model_name", _names),
    "image": ("vllm_image", auto(image_name)),
    "image_tag": ("vllm_image_tag", auto(version_of)),
    "image_source": ("vllm_image_source", auto(one_of("auto", "pull", "archive", "present", "build"))),
    "image_archive": ("vllm_image_archive", _path),
    "image_digest": ("vllm_image_digest", image_digest),
    "version": ("vllm_version", auto(_version)),
    "tensor_parallel_size": ("vllm_tensor_parallel_size", auto(integer(1, 64))),
    "replicas": ("vllm_replicas", auto(integer(1, 64))),
    "max_num_seqs": ("vllm_max_num_seqs", auto(integer(1))),
    "max_model_len": ("vllm_max_model_len", auto(_length)),
    "max_num_batched_tokens": ("vllm_max_num_batched_tokens", auto(integer(1))),
    "gpu_memory_utilization": ("vllm_gpu_memory_utilization", auto(_share)),
    "kv_cache_dtype": (
        "vllm_kv_cache_dtype",
        auto(one_of("auto", "fp8", "fp8_e4m3", "fp8_e5m2", "bfloat16")),
    ),
    "expected_input_len": ("vllm_expected_input_len", integer(1)),
    "expected_output_len": ("vllm_expected_output_len", integer(1)),
    "host": ("vllm_host", _address),
    "port": ("vllm_port", integer(1, 65535)),
    "network_mode": ("vllm_network_mode", one_of("bridge", "host")),
    "has_api_key": ("vllm_api_key", secret_given),
    "has_accepted_keys": ("vllm_api_keys_accepted", _keys),
    "allow_unauthenticated": ("vllm_allow_unauthenticated", flag),
    "has_hf_token": ("vllm_hf_token", secret_given),
    "has_http_proxy": ("vllm_http_proxy", proxy_given),
    "has_https_proxy": ("vllm_https_proxy", proxy_given),
    "has_no_proxy": ("vllm_no_proxy", exceptions_given),
    "has_pip_index": ("vllm_pip_index_url", index_given),
    "ca_bundle": ("vllm_ca_bundle", auto(host_file)),
    "registries": ("vllm_registries", registries_given),
    "has_secret_environment": ("vllm_secret_environment", read_secret_environment),
    "environment": ("vllm_environment", read_environment),
    "extra_config": ("vllm_extra_config", read_extra_config),
    "gpus": ("vllm_gpus", _gpus),
    "driver_version": ("vllm_driver_version", _driver),
    "platform": ("vllm_platform", _platform),
    "gpu_access": ("vllm_gpu_access", one_of("auto", "gpus", "cdi", "runtime", "devices", "none")),
    "gpu_selection": ("vllm_gpu_selection", _selection),
    "container_prefix": ("vllm_container_prefix", _prefix),
    "state_dir": ("vllm_state_dir", _path),
    "drain_timeout": ("vllm_drain_timeout", integer(0)),
    "restart_policy": ("vllm_restart_policy", _restart_policy),
    "restrict_ports": ("vllm_restrict_ports", flag),
    "start_at_boot": ("vllm_start_at_boot", flag),
    "min_driver": ("vllm_min_driver", integer(1)),
    "offline": ("vllm_offline", flag),
    "state_url": ("vllm_state_url", state_folder),
    "weights_from": ("vllm_weights_from", one_of("hub", "fleet")),
    "weights_seeds": ("vllm_weights_seeds", integer(1)),
    "weights_port": ("vllm_weights_port", integer(1, 65535)),
    "weights_connections": ("vllm_weights_connections", integer(1, 64)),
    "weights_rate": ("vllm_weights_rate", integer(0)),
    "caches_from": ("vllm_caches_from", one_of("host", "fleet")),
    "reclaim_orphans": ("vllm_reclaim_orphans", flag),
    "image_size_gib": ("vllm_image_size_gib", auto(_size)),
    "phase_timeouts": ("vllm_phase_timeouts", _phase_timeouts),
    "volumes": ("vllm_volumes", _volumes),
    "levers_off": ("vllm_levers_off", _levers),
    "text_only": ("vllm_text_only", flag),
    "attention_backend": ("vllm_attention_backend", auto(_backend)),
    "tool_calling": ("vllm_tool_calling", auto(_parser)),
    "reasoning_parser": ("vllm_reasoning_parser", auto(_parser)),
}


def _opens_without_key(wishes: Wishes) -> bool:
    guarded = wishes.has_api_key or wishes.allow_unauthenticated
    return not ipaddress.ip_address(wishes.host).is_loopback and not guarded


def _is_folder(wishes: Wishes) -> bool:
    return (wishes.model or "").startswith("/")


def _more_sequences_than_tokens(wishes: Wishes) -> bool:
    sequences, tokens = wishes.max_num_seqs, wishes.max_num_batched_tokens
    return bool(sequences and tokens and sequences > tokens)


def _tag_of_another_version(wishes: Wishes) -> bool:
    tagged = versions.of_tag(wishes.image_tag or "", wishes.image)
    return bool(wishes.version and tagged and tagged != wishes.version)


# What cannot be true at once, whatever the host is: when that is so, and what is said of it.
CONTRADICTIONS: tuple[tuple[Callable[[Wishes], bool], str], ...] = (
    (
        _opens_without_key,
        "vllm_host: {wishes.host} lets other machines in, and no vllm_api_key is set; set one, set"
        " vllm_host: 127.0.0.1, or say vllm_allow_unauthenticated: true",
    ),
    (
        lambda wishes: wishes.has_accepted_keys and not wishes.has_api_key,
        "vllm_api_keys_accepted: its keys count beside vllm_api_key, which is not set; without it servers want none",
    ),
    (
        lambda wishes: wishes.image_source == "archive" and not wishes.image_archive,
        "vllm_image_source: archive needs vllm_image_archive, the path of the archive on the host",
    ),
    (
        lambda wishes: wishes.model_source == "path" and not _is_folder(wishes),
        "vllm_model_source: path needs vllm_model to be the absolute path of a folder on the host",
    ),
    (
        lambda wishes: wishes.model_source == "hub" and _is_folder(wishes),
        "vllm_model_source: hub cannot serve the folder {wishes.model}; set it to auto or path",
    ),
    (
        _more_sequences_than_tokens,
        "vllm_max_num_seqs: {wishes.max_num_seqs} is more than vllm_max_num_batched_tokens:"
        " {wishes.max_num_batched_tokens}; each sequence needs at least one token of a batch",
    ),
    (
        lambda wishes: wishes.port + (wishes.replicas or 1) - 1 > 65535,
        "vllm_port: {wishes.port} and vllm_replicas: {wishes.replicas} together pass port 65535; lower the port",
    ),
    (
        _tag_of_another_version,
        "vllm_version: {version} contradicts vllm_image_tag: {wishes.image_tag}; leave vllm_version at auto",
    ),
    (
        lambda wishes: bool(wishes.image_archive) and wishes.image_source not in (None, "archive"),
        "vllm_image_source: {wishes.image_source} contradicts vllm_image_archive: {wishes.image_archive}; leave"
        " one of them at its default",
    ),
    (
        lambda wishes: wishes.device == "cpu" and bool(wishes.gpus),
        "vllm_gpus: contradicts vllm_device: cpu; leave vllm_gpus empty or set vllm_device: cuda",
    ),
    (
        lambda wishes: wishes.device == "cpu" and wishes.precision in ("fp8", "fp4"),
        "vllm_precision: {wishes.precision} needs a GPU; leave it at auto with vllm_device: cpu",
    ),
    (
        lambda wishes: wishes.device == "cpu" and (wishes.tensor_parallel_size or 1) > 1,
        "vllm_tensor_parallel_size: must be auto or 1 with vllm_device: cpu",
    ),
)


def _contradictions(given: Mapping[str, Any]) -> list[str]:
    """Return what cannot be true at once, whatever the host is."""
    wishes = Wishes(**given)
    version = versions.as_text(wishes.version) if wishes.version else ""
    return [text.format(wishes=wishes, version=version) for is_so, text in CONTRADICTIONS if is_so(wishes)]
