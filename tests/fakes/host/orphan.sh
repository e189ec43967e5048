#!/bin/sh
# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# orphan.sh FOLDER REPLICA: becomes what a server's process is whose container is gone from the engine: a process that has
# the configuration of the replica mounted, as our containers have, and that no engine looks after. Needs root.
set -eu
if [ "${GPUFLEET_ORPHAN:-}" != inside ]; then
    GPUFLEET_ORPHAN=inside exec unshare --mount "$(readlink -f "$0")" "$@"
fi
mkdir -p "$1/active"
: >"$1/active/$2-0a1b2c3d4e5f.yaml"
mount -t tmpfs none /etc
mkdir /etc/vllm
: >/etc/vllm/config.yaml
mount --bind "$1/active/$2-0a1b2c3d4e5f.yaml" /etc/vllm/config.yaml
exec sleep 300
