# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the reader refuses a body that is too large: it answers at once, and throws away what still comes.

HAProxy closes the connection on which it answers before it has the whole body. The first HAProxy, which is still
sending, finds a broken connection then and loses the answer. A service in Lua keeps the connection, and HAProxy throws
away the rest for it. A client that is silent then for as long as the frontend allows is cut. One that goes on sending a
little now and then would keep one of the places of large requests: with half of them taken, the first HAProxy answers
by itself and closes the connection.
"""

from __future__ import annotations

from ansible_collections.gpufleet.vllm.plugins.module_utils.router.own_answers import answer_instead, deny, openai_error
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.router_settings import RouterSettings

FILE = "too-large.lua"
SERVICE = "gpufleet_too_large"
PROGRAM = """\
-- Written by the collection gpufleet.vllm (role router). Changes made here are overwritten.
local answer = '{answer}'

core.register_service('{service}', 'http', function(applet)
    applet:set_status(413)
    applet:add_header('Content-Type', 'application/json')
    applet:add_header('Content-Length', tostring(#answer))
    applet:start_response()
    applet:send(answer)
end)
"""


def too_large_file(settings: RouterSettings) -> dict[str, str]:
    """Return the file with the service, name to text."""
    return {FILE: PROGRAM.format(answer=openai_error(413, _message(settings)), service=SERVICE)}


def load_lines(folder: str) -> list[str]:
    """Return the lines of the section `global` that load the service where HAProxy was built with Lua."""
    return [".if feature(LUA)", f"lua-load {folder}/{FILE}", ".endif"]


def refusal(settings: RouterSettings, condition: str) -> list[str]:
    """Return the lines that refuse a body; without Lua, who goes on sending may get 502 or no answer."""
    return [
        ".if feature(LUA)",
        f"http-request use-service lua.{SERVICE} if {condition}",
        ".else",
        deny(413, _message(settings), condition),
        ".endif",
    ]


def cut_short(settings: RouterSettings, condition: str) -> str:
    """Return the rule by which the first HAProxy ends the request of a client that the reader has refused.

    Args:
        settings: the router's.
        condition: when it does.
    """
    # A refusal of a replica names that.
    return answer_instead(413, _message(settings), f"{{ status 413 }} !{{ var(txn.replica) -m found }} {condition}")


def honest_502(settings: RouterSettings) -> list[str]:
    """Return the lines for the way to the reader, where without Lua a broken connection has two causes."""
    text = f"The body is too large, or what had the request broke off. {_message(settings)}"
    answer = f"content-type application/json string '{openai_error(502, text)}'"
    return [".if feature(LUA)", ".else", f"http-error status 502 {answer}", ".endif"]


def _message(settings: RouterSettings) -> str:
    return f"A request may have {settings.max_request_bytes} bytes at most."
