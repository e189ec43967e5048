# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder of what a router keeps over a reboot of its host: which servers were taken out, and by whom.

Earlier versions kept that beside HAProxy's sockets, in a folder that a reboot empties.
"""

from __future__ import annotations

import contextlib
import os

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_failed, write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import list_folder, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.router import drain_marks, server_states
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.config_names import SERVER_STATE


def state_folder(state_dir: str, run_dir: str, *, check: bool) -> str:
    """Return the folder to read and write; what an earlier version left beside the sockets is moved there first.

    Args:
        state_dir: the folder that outlives a reboot.
        run_dir: folder of the sockets.
        check: whether nothing may change; then what was not moved yet is read where it is.

    Raises:
        GpufleetError: `busy` or `write-failed`.
    """
    if os.path.realpath(state_dir) == os.path.realpath(run_dir) or not _left(run_dir):
        return state_dir
    if check:
        return run_dir
    # The lock of earlier versions, too, which may be at work at this moment.
    with server_states.ServerStates(run_dir).held("taking over what is drained"):
        for name, mode in _left(run_dir).items():
            _move(os.path.join(run_dir, name), os.path.join(state_dir, name), mode)
    return state_dir


def _left(run_dir: str) -> dict[str, int]:
    """Return the files beside the sockets, relative to their folder, with their permissions; the marks first."""
    marks = [os.path.join(drain_marks.FOLDER, name) for name in list_folder(run_dir, drain_marks.FOLDER)]
    found = {name: drain_marks.MODE for name in marks if name.endswith(".json")}
    states = os.path.join(run_dir, SERVER_STATE)
    if os.path.isfile(states) and not os.path.islink(states):
        found[SERVER_STATE] = server_states.MODE
    return found


def _move(old: str, new: str, mode: int) -> None:
    write_file(new, read_text(old), mode, variable=server_states.VARIABLE)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(old)
        if os.path.basename(old) == SERVER_STATE:
            # Until the router is given its new configuration, HAProxy goes on looking here.
            os.symlink(new, old)
    except OSError as error:
        raise write_failed(old, error) from error
