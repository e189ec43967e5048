# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proxies by which the Docker engine of a host pulls: variables of its service, from a file that only root reads.

daemon.json has a key for them from Docker 23 on alone, and others may read that file. A unit's own variables are shown
to everyone (C(systemctl show)), those of a file that it names are not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_failed, write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.engine import (
    MASKED_USER,
    OWN_PROXIES,
    PROXY_VARIABLES,
    pull_settings,
)

DROP_IN = "/etc/systemd/system/docker.service.d/gpufleet-proxies.conf"
DROP_IN_TEXT = f"""\
# Managed by the Ansible collection gpufleet.vllm: the proxies of vllm_http_proxy and vllm_https_proxy.
[Service]
EnvironmentFile=-{OWN_PROXIES}
"""


def due(proxies: Mapping[str, str], *, unit: bool) -> bool:
    """Return whether the files differ from what they ought to be.

    Args:
        proxies: the variables; none removes the files.
        unit: whether systemd runs the engine.
    """
    drop_in = DROP_IN_TEXT if proxies and unit else ""
    return read_text(OWN_PROXIES) != _text(proxies) or (unit and read_text(DROP_IN) != drop_in)


def write(proxies: Mapping[str, str], *, unit: bool) -> None:
    """Write the files, or remove them where there are no proxies.

    Raises:
        GpufleetError: C(write-failed).
    """
    if proxies:
        write_file(OWN_PROXIES, _text(proxies), 0o600)
        if unit:
            write_file(DROP_IN, DROP_IN_TEXT, 0o644)
        return
    for path in (OWN_PROXIES, DROP_IN):
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        except OSError as error:
            raise write_failed(path, error) from error


def _text(proxies: Mapping[str, str]) -> str:
    return "".join(f'{name}="{value}"\n' for name, value in sorted(proxies.items()))


def taken(docker_host: str, proxies: Mapping[str, str]) -> bool:
    """Return whether a running engine has the proxies; it tells no password, so that an old one counts as well."""
    told = pull_settings(docker_host, "/")["proxies"]
    return all(
        _plain(told.get(scheme) or "") == _plain(proxies.get(name, "")) for scheme, name in PROXY_VARIABLES.items()
    )


def _plain(address: str) -> str:
    """Return a proxy as the engine shows it."""
    scheme, found, rest = address.partition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}://{MASKED_USER if user and at else ''}{place}".rstrip("/") if found else address
