# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The certificates by which the Docker engine trusts a registry that no public authority signed."""

from __future__ import annotations

import os

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_failed, write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.reference import registry_of

CERTIFICATES = "/etc/docker/certs.d"
VARIABLE = "vllm_registries"


def trust(reference: str, ca: str, folder: str = CERTIFICATES, *, check_mode: bool = False) -> str:
    """Make the engine trust the registry of an image; return the file that was, or would be, written, or C("").

    Args:
        reference: the image's name.
        ca: text of the CA certificates; empty leaves what is there.
        folder: where the engine looks for certificates.
        check_mode: write nothing.

    Raises:
        GpufleetError: C(write-failed).
    """
    path = os.path.join(folder, registry_of(reference), "ca.crt")
    text = ca.strip() + "\n"
    if not ca.strip() or read_text(path) == text:
        return ""
    if not check_mode:
        try:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        except OSError as error:
            raise write_failed(path, error, VARIABLE) from error
        write_file(path, text, 0o644, variable=VARIABLE)
    return path
