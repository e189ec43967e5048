# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sections of HAProxy's configuration that every other one builds on: the process itself, and the defaults."""

from __future__ import annotations

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import ADMIN_SOCKET, SERVER_STATE
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.load_limits import Limits
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.own_answers import answer_lines
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings


def global_section(settings: RouterSettings, most: Limits) -> list[str]:
    lines = [
        "global",
        f"user {settings.user}",
        f"group {settings.user}",
        "log stdout format raw local0",
        f"stats socket {settings.run_dir}/{ADMIN_SOCKET} mode 600 level admin expose-fd listeners",
        # What was drained stays so when the configuration is loaded again, HAProxy started again or the host rebooted.
        f"server-state-file {settings.state_dir}/{SERVER_STATE}",
        f"maxconn {most.connections + most.reserved + most.large}",
        f"hard-stop-after {settings.timeout}s",
        f"tune.bufsize {settings.buffer_bytes}",
        "tune.ssl.default-dh-param 2048",
        "ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets",
    ]
    return [*lines, f"chroot {settings.chroot}"] if settings.chroot else lines


def defaults_section(settings: RouterSettings, folder: str) -> list[str]:
    return [
        *_defaults(settings, folder),
        "timeout http-request 60s",
        "timeout http-keep-alive 60s",
        # A refused connection fails a health check at once; a server that is only slow, as under load, has this long.
        "timeout check 10s",
        "load-server-state-from-file global",
    ]


def reader_defaults(settings: RouterSettings, folder: str, request_s: int) -> list[str]:
    """Return the defaults of the reader, to which a whole request has to come in so many seconds."""
    return [*_defaults(settings, folder), f"timeout http-request {request_s}s"]


def _defaults(settings: RouterSettings, folder: str) -> list[str]:
    return [
        "defaults",
        "mode http",
        "log global",
        "option httplog",
        "option dontlog-normal",
        # A client that goes away ends its request at the replica, too.
        "option abortonclose",
        "timeout connect 3s",
        "timeout queue 60s",
        f"timeout client {settings.timeout}s",
        f"timeout server {settings.timeout}s",
        *answer_lines(folder),
    ]
