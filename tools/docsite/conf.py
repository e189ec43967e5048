# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sphinx's settings for the documentation site; build.py calls Sphinx."""

from __future__ import annotations

import os
from pathlib import Path

SITE = Path(__file__).resolve().parents[2] / ".cache" / "docs"

project = "gpufleet.vllm"
author = project_copyright = "gpufleet contributors"
extensions = ["sphinx.ext.intersphinx", "sphinx_antsibull_ext"]
html_theme = "furo"
html_title = "gpufleet.vllm"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
# look.css is made by build.py: the report's colours and fonts.
html_static_path = ["static", str(SITE / "static")]
html_css_files = ["look.css", "site.css"]
highlight_language = "yaml+jinja"
smartquotes = False
nitpicky = True
# Labels of Ansible's own documentation, from a file that build.py writes: nothing is fetched.
intersphinx_mapping = {"ansible": (os.environ["GPUFLEET_ANSIBLE_DOCS"], str(SITE / "ansible.inv"))}
