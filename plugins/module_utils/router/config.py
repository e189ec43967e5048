# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The router's files: HAProxy's configuration, and beside it what must not be shown.

The configuration itself holds no secret and may be seen in a difference. Clients' keys are kept as SHA-256 sums in a
file of their own; the key with which the router asks the replicas is in another, which HAProxy reads as root before
it becomes its own user. Everything used here is in HAProxy 2.4 and later.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.access_log import keeper_files
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.backend_config import model_backend, replicas_backend
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.clients import client_files, clients_table
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import (
    CONFIG,
    KEYS,
    MODELS,
    MODELS_MAP,
    READER_CONFIG,
    REPLICA_KEY,
    REPLICAS,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.frontend_config import frontend, tables
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.global_config import defaults_section, global_section
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.load_limits import limits
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica, key_sum
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.metrics_config import metrics_files, metrics_sections
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.model_routes import (
    list_text,
    map_text,
    routes,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.own_answers import answer_files
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.proxies_config import proxies_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.reader_config import (
    inner_frontend,
    reader_backend,
    reader_config,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.too_large import too_large_file


def files(settings: RouterSettings, replicas: Sequence[Replica], folder: str) -> dict[str, str]:
    """Return the files of the router, name to text, for the folder that they will be in."""
    found = routes(replicas)
    most = limits(settings, replicas)
    return {
        CONFIG: config(settings, replicas, folder),
        KEYS: "".join(f"{digest}\n" for digest in sorted(map(key_sum, settings.keys))),
        **client_files(settings.clients),
        **keeper_files(settings),
        REPLICA_KEY: f"replica {settings.replica_key}\n" if settings.replica_key else "",
        REPLICAS: json.dumps([vars(replica) for replica in replicas], indent=1) + "\n",
        **proxies_file(settings),
        **metrics_files(settings, replicas),
        MODELS: list_text(found) + "\n",
        MODELS_MAP: map_text(found),
        READER_CONFIG: _text(reader_config(settings, found, most, folder)),
        **answer_files(),
        **too_large_file(settings),
    }


def config(settings: RouterSettings, replicas: Sequence[Replica], folder: str) -> str:
    """Return HAProxy's configuration; it names files in C(folder)."""
    found, most = routes(replicas), limits(settings, replicas)
    sections = [
        global_section(settings, most),
        defaults_section(settings, folder),
        frontend(settings, found, most, folder),
        *tables(settings),
        *([clients_table()] if settings.clients else []),
        replicas_backend(settings, replicas, folder),
        *metrics_sections(settings, replicas, folder),
    ]
    if len(found) > 1:
        sections += [model_backend(settings, route, folder) for route in found]
    sections += [reader_backend(settings, most), inner_frontend(settings, found, folder)]
    return _text(sections)


def _text(sections: Iterable[Sequence[str]]) -> str:
    return "# Written by the collection gpufleet.vllm (role router). Changes made here are overwritten.\n" + "\n".join(
        "\n".join((section[0], *(f"    {line}" if line else "" for line in section[1:]))) + "\n" for section in sections
    )
