# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NVML by ctypes, for a program that runs every half minute: importing pynvml takes longer than all it asks.

What a driver or card does not support is None. What fails otherwise is noted, so that it can be told.
"""

from __future__ import annotations

import ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing takes a tenth of a run
    from typing import Any

# NVML's error numbers: an argument, a question, a function or a structure that this driver or card does not have.
NOT_SUPPORTED = (2, 3, 13, 25)
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST, RESET_REQUIRED = 15, 16
NO_GPU = (6, 28)
# Fields of nvmlDeviceGetFieldValues.
LINK_ERRORS = {38: "crc_flit", 45: "crc_data", 52: "replay", 59: "recovery"}
RECOVERY_ACTION = 230


class LostError(Exception):
    """The GPU does not answer any more; C(args[0]) is NVML's error number."""


class Pci(ctypes.Structure):
    """nvmlPciInfo_t."""

    _fields_ = (
        ("legacy", ctypes.c_char * 16),
        ("numbers", ctypes.c_uint * 5),
        ("bus_id", ctypes.c_char * 32),
    )


class Field(ctypes.Structure):
    """nvmlFieldValue_t; every value read here is a whole number."""

    _fields_ = (
        ("field", ctypes.c_uint32),
        ("scope", ctypes.c_uint32),
        ("timestamp", ctypes.c_int64),
        ("latency", ctypes.c_int64),
        ("kind", ctypes.c_int),
        ("error", ctypes.c_int),
        ("value", ctypes.c_uint64),
    )


class Fabric(ctypes.Structure):
    """nvmlGpuFabricInfo_v3_t; version 2 lacks the last member."""

    _fields_ = (
        ("version", ctypes.c_uint),
        ("cluster", ctypes.c_uint8 * 16),
        ("status", ctypes.c_int),
        ("clique", ctypes.c_uint32),
        ("state", ctypes.c_uint8),
        ("padding", ctypes.c_uint8 * 3),
        ("mask", ctypes.c_uint32),
        ("summary", ctypes.c_uint8),
    )


class Nvml:
    """The driver's library.

    Raises:
        OSError: there is none.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libnvidia-ml.so.1")

    def call(self, name: str, *arguments: Any) -> int:
        """Return the error number of a function; that of a missing one where this driver has none of the name."""
        try:
            function = getattr(self._library, name)
        except AttributeError:
            return FUNCTION_NOT_FOUND
        error: int = function(*arguments)
        return error


class Gpu:
    """One GPU; what cannot be read is in C(unread).

    Args:
        nvml: the library.
        index: its number.
    """

    def __init__(self, nvml: Nvml, index: int) -> None:
        self.index, self.uuid, self.pci = index, "", ""
        self.unread: list[str] = []
        self._nvml, self._handle = nvml, ctypes.c_void_p()
        self.lost = 0
        try:
            self._ask("device", "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), handle=False)
            text = ctypes.create_string_buffer(96)
            if self.read("uuid", "nvmlDeviceGetUUID", text, ctypes.c_uint(96)):
                self.uuid = text.value.decode(errors="replace")
            pci = Pci()
            if self.read("pci", "nvmlDeviceGetPciInfo_v3", ctypes.byref(pci)):
                self.pci = pci_key(pci.bus_id.decode(errors="replace"))
        except LostError as error:
            self.lost = error.args[0]

    def _ask(self, reading: str, name: str, *arguments: Any, handle: bool = True) -> bool:
        target = (self._handle,) if handle else ()
        more = () if handle else (ctypes.byref(self._handle),)
        error = self._nvml.call(name, *target, *arguments, *more)
        if error in (GPU_IS_LOST, RESET_REQUIRED):
            raise LostError(error)
        if error and error not in NOT_SUPPORTED and reading not in self.unread:
            self.unread.append(reading)
        return not error

    def read(self, reading: str, name: str, *arguments: Any) -> bool:
        """Ask the driver; return whether it answered.

        Raises:
            LostError: the GPU is lost or must be reset.
        """
        return self._ask(reading, name, *arguments)

    def number(self, reading: str, name: str, *before: Any, kind: Any = ctypes.c_uint) -> int | None:
        """Return a number that the driver tells; None where it does not."""
        value = kind()
        return int(value.value) if self.read(reading, name, *before, ctypes.byref(value)) else None

    def fields(self) -> dict[int, int]:
        """Return the values of fields, those that this driver and card have."""
        wanted = (*LINK_ERRORS, RECOVERY_ACTION)
        values = (Field * len(wanted))(*(Field(field=number) for number in wanted))
        if not self.read("fields", "nvmlDeviceGetFieldValues", ctypes.c_int(len(wanted)), values):
            return {}
        # Small numbers are of 32 bits; the upper half of the union is not theirs.
        return {value.field: value.value & 0xFFFFFFFF for value in values if not value.error}


def pci_key(text: str) -> str:
    """Return domain, bus and device of a bus id as NVML or the kernel's log writes it."""
    parts = text.split(".")[0].split(":")
    try:
        return ":".join(f"{int(part, 16):x}" for part in parts)
    except ValueError:
        return text
