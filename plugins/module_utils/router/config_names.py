# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that the router's files and its configuration share."""

from __future__ import annotations

BACKEND = "replicas"
CONFIG = "haproxy.cfg"
KEYS = "keys.sha256"
REPLICA_KEY = "replica.key"
CERTIFICATE = "site.pem"
REPLICAS = "replicas.json"
METRICS_SUM = "metrics.sha256"
TRUSTED_PROXIES = "trusted-proxies"
KEEPALIVED_CONFIG = "keepalived.conf"
TARGETS = "targets.json"
MASTER_SOCKET = "master.sock"
ADMIN_SOCKET = "admin.sock"
SERVER_STATE = "server-state"
