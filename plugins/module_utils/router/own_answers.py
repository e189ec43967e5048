# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the router answers of itself, in the form of OpenAI's errors."""

from __future__ import annotations

import json

# All that HAProxy answers of itself, beside that there are servers (/health).
ERRORS = {
    400: ("Bad Request", "The request is no valid HTTP."),
    408: ("Request Timeout", "The request did not come in time."),
    413: ("Content Too Large", "The request has a body that its method and version of HTTP do not allow."),
    422: ("Unprocessable Content", "A body may come in chunks, and in no other Transfer-Encoding."),
    500: ("Internal Server Error", "The router could not handle the request."),
    501: ("Not Implemented", "The router does not do that."),
    502: ("Bad Gateway", "The server that had the request broke off."),
    503: ("Service Unavailable", "No server is available now. Try again later."),
    504: ("Gateway Timeout", "The server that has the request does not answer."),
}
RETRY = {503: "Retry-After: 5\n"}


def deny(status: int, message: str, condition: str, more: str = "") -> str:
    """Return a rule that answers with an error in the form of OpenAI's API."""
    return f"http-request {_answer(status, message)}{more} if {condition}"


def answer_instead(status: int, message: str, condition: str) -> str:
    """Return a rule that answers so in the place of who has answered, and ends the request there."""
    return f"http-response {_answer(status, message)} if {condition}"


def _answer(status: int, message: str) -> str:
    return f"return status {status} content-type application/json string '{openai_error(status, message)}'"


def deny_with_values(status: int, message: str, condition: str, more: str = "") -> str:
    """Return such a rule whose message has expressions of HAProxy's, `%[…]`."""
    answer = f"return status {status} content-type application/json lf-string '{openai_error(status, message)}'"
    return f"http-request {answer}{more} if {condition}"


def answer_files() -> dict[str, str]:
    """Return HAProxy's own answers, name to text.

    They are files, because what HAProxy answers to a head that it cannot read may come from a file, and from nothing
    else. Versions before 3.3 have a text of their own for that, whatever the configuration says.
    """
    bodies = {status: openai_error(status, message) for status, (_reason, message) in ERRORS.items()}
    reasons = {status: reason for status, (reason, _message) in ERRORS.items()}
    return {
        _name(status): f"HTTP/1.1 {status} {reasons.get(status, 'OK')}\nContent-Type: application/json\n"
        f"Content-Length: {len(body)}\nCache-Control: no-cache\n{RETRY.get(status, '')}\n{body}"
        for status, body in {200: json.dumps({"status": "ok"}), **bodies}.items()
    }


def answer_lines(folder: str) -> list[str]:
    """Return the lines that have HAProxy answer with those files of a folder."""
    return [f"errorfile {status} {folder}/{_name(status)}" for status in (200, *ERRORS)]


def _name(status: int) -> str:
    return f"answer-{status}.http"


def openai_error(status: int, message: str) -> str:
    """Return the body of an answer that tells an error."""
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": status}})
