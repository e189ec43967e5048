# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run M(gpufleet.vllm.vllm_moe_tables) in the background, and put the tables on the controller."""

from __future__ import annotations

import json
import os
from typing import Any

from ansible.utils.display import Display

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import replace_file
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.long_task import LongTaskAction
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.table import aligned


class ActionModule(LongTaskAction):
    """Shows the module's phases live, then what it found, and writes the tables that are faster anywhere."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module and return its result with C(written)."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        if "tables" not in result:
            return result
        host = str((task_vars or {}).get("inventory_hostname", ""))
        given = str(self._task.args.get("tables_dir") or "")
        for line in lines(result):
            Display().display(f"[{host}] {line}")
        try:
            written = write(result["tables"], host, given) if given else []
        except GpufleetError as error:
            return {**result, **error.as_failure()}
        for path in written:
            Display().display(f"[{host}] written: {path}")
        if written:
            folder = os.path.dirname(written[0])
            Display().display(f"[{host}] deploy and upgrade give servers the tables in {folder} (vllm_moe_tables_dir)")
        return {**result, "changed": bool(written), "written": written}


def is_faster(table: dict[str, Any]) -> bool:
    """Return whether a table has an entry that is faster than what vLLM takes by itself."""
    return any(entry["kept"] for entry in table["provenance"]["tokens"].values())


def write(tables: list[dict[str, Any]], host: str, folder: str) -> list[str]:
    """Write the tables that are faster, each with a file beside it that says where it comes from; return their paths.

    Raises:
        GpufleetError: C(tables-not-written).
    """
    written = []
    base = os.path.abspath(os.path.expanduser(folder))
    for table in filter(is_faster, tables):
        path = os.path.join(base, os.path.basename(table["name"]))
        beside = f"{path.removesuffix('.json')}.provenance.json"
        # The table last: one without a word of where it comes from would be used.
        for target, content in ((beside, {**table["provenance"], "host": host}), (path, table["table"])):
            text = json.dumps(content, indent=2) + "\n"
            replace_file(target, text, what="table", name="tables-not-written", variable="vllm_moe_tables_dir")
        written.append(path)
    return written


def lines(result: dict[str, Any]) -> list[str]:
    """Return what was found, for people."""
    if result.get("why"):
        return [f"no table: {result['why']}"]
    found = []
    for table in result["tables"]:
        provenance = table["provenance"]
        rows = [("tokens", "before", "after", "gain", "rejected")]
        for tokens, entry in provenance["tokens"].items():
            gain = f"{entry['gain']:+.1%}" if entry["kept"] else "-"
            rows.append(
                (tokens, f"{entry['before_us']} us", f"{entry['after_us']} us", gain, str(entry["rejected"] or ""))
            )
        found.append(f"{table['name']} (vLLM {provenance['vllm']}, Triton {provenance['triton']})")
        found += [f"  {line}" for line in aligned(rows)]
        if not is_faster(table):
            found.append("  nothing is faster than what vLLM takes by itself, so no table is written")
    return found
