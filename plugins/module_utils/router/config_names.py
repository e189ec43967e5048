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
# By model: one backend for each set of replicas that serves the same names, and what decides.
MODEL_BACKEND = "model:"
MODELS, MODELS_MAP = "models.json", "models.map"
# The second HAProxy, which reads what is too long for the first one, and where it hands requests back.
READER, INNER = "reader", "inner"
READER_CONFIG = "reader.cfg"
# Headers between the two. Clients' own are taken away.
OWN_HEADERS = "x-gpufleet-"
