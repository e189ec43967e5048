# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options and attributes that modules share."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation fragments C(gpufleet.vllm.common) and its parts."""

    # Attributes of a module that only reads.
    READS = r"""
options: {}
attributes:
  check_mode:
    support: full
    description: Can run in check mode; the module changes nothing.
  diff_mode:
    support: N/A
    description: The module changes nothing, so there is nothing to show.
  idempotent:
    support: full
    description: The module changes nothing.
"""

    # Attributes of a module that changes a host.
    CHANGES = r"""
options: {}
attributes:
  check_mode:
    support: full
    description: In check mode the module says what it would change and changes nothing.
  diff_mode:
    support: full
    description: Returns what changed, or would change, for C(--diff). Secrets are never part of it.
  idempotent:
    support: full
    description: A second run with the same options changes nothing.
"""

    DOCKER = r"""
options:
  docker_host:
    description:
      - Address of the Docker engine.
    type: str
    default: unix:///var/run/docker.sock
  docker_timeout:
    description:
      - Seconds to wait for each answer of the engine.
    type: int
    default: 60
requirements:
  - docker >= 7.1 (Python library)
  - requests
"""

    PROGRESS = r"""
options:
  progress_file:
    description:
      - File that the module replaces with its current phase while it works.
      - The action plugin of the same name sets it, reads it and shows the phase; leave it out otherwise.
    type: path
"""

    # What decides where a server has the files of its model.
    MODEL_CACHE = r"""
options:
  config:
    description:
      - Options of C(vllm serve), as for M(gpufleet.vllm.vllm_model).
    type: dict
    default: {}
  environment:
    description:
      - Variables of the server, some of which have the cache elsewhere.
    type: dict
    default: {}
  volumes:
    description:
      - Further mounts of the server, some of which have the cache elsewhere.
    type: list
    elements: str
    default: []
"""
