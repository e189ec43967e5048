# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files of which repositories at the hub a server needs, from its configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.models.surroundings import TRUE

MAIN = "main"
# Formats that need none of the repository's weights, or choose them in ways of their own.
WITHOUT_WEIGHTS = ("dummy", "tensorizer", "sharded_state", "runai_streamer_sharded", "ipc_cache", "gguf")
SAFETENSORS_FIRST = ("auto", "hf", "safetensors", "fastsafetensors", "instanttensor", "runai_streamer", "bitsandbytes")
CONFIG, TOKENIZER, GGUF = "configuration", "tokenizer", "GGUF file"
# What is one of these, by patterns of file names; for a repository that something else has brought.
SIGNS = {
    CONFIG: ("config.json", "params.json"),
    TOKENIZER: ("tokenizer*", "tekken.json", "vocab.*", "merges.txt", "*.tiktoken", "*.model"),
    GGUF: ("*.gguf",),
}


@dataclass(frozen=True)
class Want:
    """What a server will take of one repository.

    Attributes:
        repository: its name at the hub.
        revision: branch, tag or commit.
        weights: whether weights are wanted, beside configuration and tokenizer.
        load_format: vLLM's option.
        ignore: patterns of weights to leave out; none for vLLM's own.
        needs: what the server cannot do without beside the weights, of CONFIG, TOKENIZER and GGUF.
    """

    repository: str
    revision: str = MAIN
    weights: bool = True
    load_format: str = "auto"
    ignore: tuple[str, ...] = ()
    needs: tuple[str, ...] = (CONFIG, TOKENIZER)

    def __str__(self) -> str:
        return self.repository if self.revision == MAIN else f"{self.repository} (revision {self.revision})"


def wants_of(model: str, config: Mapping[str, Any]) -> list[Want]:
    """Return what a server of this model and configuration takes from the hub.

    Args:
        model: name of the model at the hub.
        config: options of `vllm serve`, as the plan's replicas have them.
    """
    own = _model_itself(model, config)
    wants = [own, *_tokenizer_elsewhere(model, config), *_config_elsewhere(config), *_draft(config, own)]
    return _joined(wants)


def _model_itself(model: str, config: Mapping[str, Any]) -> Want:
    """Return what is wanted of the model's own repository."""
    repository, _colon, quantization = model.partition(":")
    load_format = str(config.get("load-format") or "auto")
    given = config.get("ignore-patterns") or ()
    needs: tuple[str, ...] = (GGUF,)
    if not quantization and load_format != "gguf":
        no_tokenizer = _has_other_tokenizer(model, config) or _is_true(config.get("skip-tokenizer-init"))
        needs = (*([] if config.get("hf-config-path") else [CONFIG]), *([] if no_tokenizer else [TOKENIZER]))
    return Want(
        repository,
        _revision(config),
        weights=load_format not in WITHOUT_WEIGHTS and not quantization,
        load_format=load_format,
        ignore=(given,) if isinstance(given, str) else tuple(str(pattern) for pattern in given),
        needs=needs,
    )


def _tokenizer_elsewhere(model: str, config: Mapping[str, Any]) -> list[Want]:
    """Return what is wanted of another repository, or of another revision, for the tokenizer."""
    repository, revision = _tokenizer(model, config)
    if not _has_other_tokenizer(model, config) or _is_folder(repository):
        return []
    return [Want(repository, revision, weights=False, needs=(TOKENIZER,))]


def _config_elsewhere(config: Mapping[str, Any]) -> list[Want]:
    """Return what is wanted of another repository for the configuration."""
    repository = str(config.get("hf-config-path") or "")
    if not repository or _is_folder(repository):
        return []
    return [Want(repository, _revision(config), weights=False, needs=(CONFIG,))]


def _draft(config: Mapping[str, Any], own: Want) -> list[Want]:
    """Return what is wanted of a draft model: vLLM loads it as it loads the model, with the model's tokenizer."""
    draft = _mapping(config.get("speculative-config"))
    repository = str(draft.get("model") or "")
    if not repository or _is_folder(repository):
        return []
    return [replace(own, repository=repository, revision=_revision(draft), needs=(CONFIG,))]


def _tokenizer(model: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return repository and revision of the tokenizer."""
    repository = str(config.get("tokenizer") or model).partition(":")[0]
    return repository, str(config.get("tokenizer-revision") or _revision(config))


def _has_other_tokenizer(model: str, config: Mapping[str, Any]) -> bool:
    """Return whether the tokenizer is not the one in the model's repository."""
    return _tokenizer(model, config) != (model.partition(":")[0], _revision(config))


def _revision(config: Mapping[str, Any]) -> str:
    return str(config.get("revision") or MAIN)


def _is_folder(name: str) -> bool:
    """Return whether a name is the path of a folder rather than a repository."""
    return name.startswith((".", "/"))


def _is_true(value: Any) -> bool:
    return str(value).lower() in TRUE


def _joined(wants: Sequence[Want]) -> list[Want]:
    """Return every repository once for each kind of fetching it, with all that is needed of it."""
    joined: dict[Want, tuple[str, ...]] = {}
    for want in wants:
        kind = replace(want, needs=())
        joined[kind] = tuple(dict.fromkeys((*joined.get(kind, ()), *want.needs)))
    return [replace(kind, needs=needs) for kind, needs in joined.items()]


def _mapping(value: Any) -> dict[str, Any]:
    """Return an option that is a mapping, or the text of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return dict(value) if isinstance(value, Mapping) else {}
