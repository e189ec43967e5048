# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""In which forms a request may come: methods, the size of its body with and without its length, where its key is."""

from __future__ import annotations

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.own_answers import deny
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings

KNOWN_LENGTH = "req.hdr(content-length) -m found"


def key_rules() -> list[str]:
    """Return the rules that take a key in the header of Anthropic's clients for the same one in Authorization."""
    return [
        "http-request set-header Authorization 'Bearer %[req.fhdr(x-api-key)]' if { req.fhdr_cnt(x-api-key) eq 1 }"
        " !{ req.hdr(authorization) -m found }",
        "http-request del-header X-Api-Key",
    ]


def unknown_length(settings: RouterSettings) -> int:
    """Return from how many bytes on a body that came without its length goes over the reader, which bounds it.

    HAProxy counts such a body only in its buffer, and its headers are there, too.
    """
    return min(settings.max_request_bytes, settings.buffer_bytes // 2)


def method_rules() -> list[str]:
    """Return the rules for methods; HEAD is asked as GET, as vLLM does not know it."""
    return [
        deny(405, "This method is not allowed.", "!METH_GET !METH_POST"),
        "http-request set-method GET if METH_HEAD",
    ]


def too_long(settings: RouterSettings) -> str:
    """Return the rule for a body that tells that it is too long."""
    most = settings.max_request_bytes
    return deny(413, f"A request may have {most} bytes at most.", f"{{ req.hdr_val(content-length) gt {most} }}")
