# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs in a container of a serving image: which GPUs CUDA and NVML show there.

A program of one file, which is given to the Python of the image's vLLM as text. It finds the libraries as PyTorch and
vLLM find them: by the loader, by name. The last line that it prints begins with ANSWER_MARK: C(cuda) and C(nvml), each
with C(library), C(code), C(text) and the UUIDs C(gpus), or C(error).
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import uuid
from typing import Any, Callable

ANSWER_MARK = "gpufleet-answer:"


def loaded(name: str) -> str:
    """Return the file of a library that this process has loaded; empty when it has not."""
    with open("/proc/self/maps") as maps:
        paths = [line.split()[-1] for line in maps if name in line]
    return os.path.realpath(paths[0]) if paths else ""


def cuda() -> dict[str, Any]:
    """Return the GPUs that CUDA shows."""
    library = ctypes.CDLL("libcuda.so.1")
    found: dict[str, Any] = {"library": loaded("libcuda.so"), "code": library.cuInit(0), "text": "", "gpus": []}
    if found["code"]:
        text = ctypes.c_char_p()
        library.cuGetErrorString(found["code"], ctypes.byref(text))
        found["text"] = (text.value or b"").decode()
        return found
    count = ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(count))
    for index in range(count.value):
        device, identity = ctypes.c_int(), (ctypes.c_ubyte * 16)()
        library.cuDeviceGet(ctypes.byref(device), index)
        library.cuDeviceGetUuid(identity, device)
        found["gpus"].append("GPU-" + str(uuid.UUID(bytes=bytes(identity))))
    return found


def nvml() -> dict[str, Any]:
    """Return the GPUs that NVML shows."""
    library = ctypes.CDLL("libnvidia-ml.so.1")
    library.nvmlErrorString.restype = ctypes.c_char_p
    code = library.nvmlInit_v2()
    found: dict[str, Any] = {"library": loaded("libnvidia-ml.so"), "code": code, "text": "", "gpus": []}
    if found["code"]:
        found["text"] = library.nvmlErrorString(found["code"]).decode()
        return found
    count = ctypes.c_uint()
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    for index in range(count.value):
        device, identity = ctypes.c_void_p(), ctypes.create_string_buffer(96)
        # A GPU whose device file the container has not cannot be handed out.
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)):
            continue
        if not library.nvmlDeviceGetUUID(device, identity, 96):
            found["gpus"].append(identity.value.decode())
    library.nvmlShutdown()
    return found


def look(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a part found, or why it could not look."""
    try:
        return part()
    except Exception as error:
        return {"error": str(error)}


if __name__ == "__main__":
    answer = {"cuda": look(cuda), "nvml": look(nvml)}
    sys.stdout.write("\n" + ANSWER_MARK + json.dumps(answer) + "\n")
