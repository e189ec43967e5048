# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What whole cards are known to do: bandwidth of their memory and rate of dense bfloat16, from NVIDIA's data sheets.

The figures are those of the fastest variant that a name can mean; what is reached is less, see SHARES.
"""

from __future__ import annotations

import re

# Pattern of the name -> GB/s, TFLOP/s; the first one that fits.
CARDS: tuple[tuple[str, float, float], ...] = (
    (r"GB300|B300", 8000, 2250),
    (r"GB200|B200", 7700, 2250),
    (r"GH200", 4000, 989),
    (r"H200.*NVL", 4800, 835),
    (r"H200", 4800, 989),
    (r"H100.*NVL", 3900, 835),
    (r"H100.*PCIe", 2000, 756),
    (r"H100", 3350, 989),
    (r"A100.*80GB", 1935, 312),
    (r"A100", 1555, 312),
    (r"L40S", 864, 362),
    (r"L40", 864, 181),
    (r"L4\b", 300, 121),
    (r"A10\b", 600, 125),
    (r"RTX PRO 6000", 1597, 503),
)
# Which share of that a sound card reaches at least, by a copy and by one large product.
SHARES = {"bandwidth_gbs": 0.75, "gemm_tflops": 0.55}


def floors(name: str) -> dict[str, float]:
    """Return what a card of this name reaches at least, by figure; nothing for one that is not known."""
    for pattern, bandwidth, rate in CARDS:
        if re.search(pattern, name, re.IGNORECASE):
            return {
                "bandwidth_gbs": bandwidth * SHARES["bandwidth_gbs"],
                "gemm_tflops": rate * SHARES["gemm_tflops"],
            }
    return {}
