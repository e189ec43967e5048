# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the driver's XID events say: whose fault each one is, and what NVIDIA says to do at once.

Source: NVIDIA's XID catalogue (https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html), its column
"Resolution Bucket (Immediate Action)" for A100 to GB200; numbers and names as in nverror.h of the open kernel modules.
"""

from __future__ import annotations

APPLICATION, GPU = "application", "gpu"
# Actions after which a GPU does no work until somebody has acted.
RESET, REBOOT, RESTART, IGNORE, CHECK = "RESET_GPU", "RESTART_BM", "RESTART_APP", "IGNORE", "CHECK_MECHANICALS"
DOUBLE_BIT, LINK, NEW_LINK, CHANGED = "WORKFLOW_XID_48", "WORKFLOW_NVLINK_ERR", "WORKFLOW_NVLINK5_ERR", "XID_154"
OUT_OF_WORK = (RESET, REBOOT, DOUBLE_BIT, LINK)


class Xid:
    """One kind of event.

    Args:
        whose: APPLICATION where what ran on the GPU is the usual cause, else GPU: the card, its links or its firmware.
        action: NVIDIA's immediate action.
        words: what happened.
    """

    def __init__(self, whose: str, action: str, words: str) -> None:
        self.whose, self.action, self.words = whose, action, words

    def is_sickness(self) -> bool:
        """Return whether the GPU should get no work after it."""
        return self.whose == GPU and self.action in OUT_OF_WORK


def _of(whose: str, action: str, words: dict[int, str]) -> dict[int, Xid]:
    return {code: Xid(whose, action, text) for code, text in words.items()}


_ENGINES = (*range(39, 43), 65, *range(70, 74), *range(75, 78), *range(82, 87), 88, 89)
_NEW_ENGINES = (*range(96, 106), *range(126, 136), 138, 139)

XIDS: dict[int, Xid] = {
    **_of(APPLICATION, RESTART, dict.fromkeys((*_ENGINES, *_NEW_ENGINES), "an engine of the GPU reported an error")),
    **_of(
        APPLICATION,
        RESTART,
        {
            8: "GPU stopped processing",
            11: "invalid or corrupted push buffer stream",
            13: "graphics engine exception",
            31: "GPU memory page fault",
            32: "invalid or corrupted push buffer stream",
            60: "security engine error",
            68: "video decoder exception",
            69: "graphics engine class error",
            80: "corrupted data sent to the GPU",
        },
    ),
    **_of(
        APPLICATION,
        IGNORE,
        {
            43: "GPU stopped processing",
            44: "fault during a context switch",
            45: "preemptive cleanup after other errors",
            66: "illegal access by the driver",
            67: "illegal access by the driver",
            141: "fast path error",
        },
    ),
    **_of(
        GPU,
        RESET,
        {
            46: "GPU stopped processing",
            62: "internal micro-controller halt",
            64: "memory could not be retired",
            95: "uncontained memory error",
            109: "context switch timeout",
            110: "security fault",
            119: "the GPU's system processor does not answer",
            120: "error of the GPU's system processor",
            136: "a link could not be trained",
            140: "unrecovered memory error",
            143: "the GPU could not be initialized",
            155: "an NVLink is down by software",
            156: "a resource was retired",
            158: "fatal timeout of the GPU",
        },
    ),
    **_of(
        GPU,
        IGNORE,
        {
            63: "memory was retired; the row is replaced at the next reset",
            92: "many corrected memory errors",
            93: "InfoROM is worn",
            108: "NVLink could not translate a remote address",
            121: "error of the link to the processor",
            137: "NVLink: a remote GPU refused an access",
            157: "a resource could not be retired",
            160: "a memory channel was retired",
            161: "a memory channel could not be retired",
        },
    ),
    **_of(GPU, NEW_LINK, dict.fromkeys(range(144, 151), "NVLink error")),
    48: Xid(GPU, DOUBLE_BIT, "uncorrectable memory error"),
    54: Xid(GPU, CHECK, "the card lacks power: see its power cables"),
    74: Xid(GPU, LINK, "NVLink error"),
    79: Xid(GPU, REBOOT, "the GPU has fallen off the bus"),
    94: Xid(GPU, RESTART, "contained memory error"),
    # The action itself is read from NVML.
    154: Xid(GPU, CHANGED, "the action that the GPU needs has changed"),
}
