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
        config: options of C(vllm serve), as the plan's replicas have them.
    """
    revision = str(config.get("revision") or MAIN)
    load_format = str(config.get("load-format") or "auto")
    given = config.get("ignore-patterns") or ()
    ignore = (given,) if isinstance(given, str) else tuple(str(pattern) for pattern in given)
    repository, _colon, quantization = model.partition(":")
    weights = load_format not in WITHOUT_WEIGHTS and not quantization
    tokenizer = str(config.get("tokenizer") or model).partition(":")[0]
    tokenizer_revision = str(config.get("tokenizer-revision") or revision)
    another_tokenizer = (tokenizer, tokenizer_revision) != (repository, revision)
    another_config = str(config.get("hf-config-path") or "")
    if quantization or load_format == "gguf":
        needs: tuple[str, ...] = (GGUF,)
    else:
        no_tokenizer = another_tokenizer or str(config.get("skip-tokenizer-init", "")).lower() in TRUE
        needs = (*([] if another_config else [CONFIG]), *([] if no_tokenizer else [TOKENIZER]))
    wants = [Want(repository, revision, weights, load_format, ignore, needs)]
    if another_tokenizer and not tokenizer.startswith((".", "/")):
        wants.append(Want(tokenizer, tokenizer_revision, weights=False, needs=(TOKENIZER,)))
    if another_config and not another_config.startswith((".", "/")):
        wants.append(Want(another_config, revision, weights=False, needs=(CONFIG,)))
    draft = _mapping(config.get("speculative-config"))
    if draft.get("model") and not str(draft["model"]).startswith((".", "/")):
        # vLLM loads a draft as it loads the model, and gives it the model's tokenizer.
        draft_revision = str(draft.get("revision") or MAIN)
        wants.append(Want(str(draft["model"]), draft_revision, weights, load_format, ignore, (CONFIG,)))
    return _joined(wants)


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
