# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a command while something else listens at a port of every address: with_port.py PORT COMMAND..."""

import socket
import subprocess
import sys

with socket.create_server(("", int(sys.argv[1]))):
    sys.exit(subprocess.run(sys.argv[2:], check=False).returncode)
