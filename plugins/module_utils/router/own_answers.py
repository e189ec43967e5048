# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the router answers of itself, in the form of OpenAI's errors."""

from __future__ import annotations

import json

# What HAProxy answers of itself. Quotes would end the text in the configuration.
ERRORS = {
    400: "The request is no valid HTTP.",
    408: "The request did not come in time.",
    502: "The server that had the request broke off.",
    503: "No server is available now. Try again later.",
    504: "The server that has the request does not answer.",
}


def deny(status: int, message: str, condition: str, more: str = "") -> str:
    """Return a rule that answers with an error in the form of OpenAI's API."""
    answer = f"return status {status} content-type application/json string '{openai_error(status, message)}'"
    return f"http-request {answer}{more} if {condition}"


def deny_with_values(status: int, message: str, condition: str, more: str = "") -> str:
    """Return such a rule whose message has expressions of HAProxy's, `%[…]`."""
    answer = f"return status {status} content-type application/json lf-string '{openai_error(status, message)}'"
    return f"http-request {answer}{more} if {condition}"


def http_error(status: int, message: str) -> str:
    """Return the line that gives an error of HAProxy's own the form of OpenAI's API."""
    retry = " hdr Retry-After 5" if status == 503 else ""
    return f"http-error status {status} content-type application/json string '{openai_error(status, message)}'{retry}"


def openai_error(status: int, message: str) -> str:
    """Return the body of an answer that tells an error."""
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": status}})
