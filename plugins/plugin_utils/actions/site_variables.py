# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the site's variables mean for a host: proxies and who is reached without them, mirrors, registries, secrets.

They may hold passwords: whoever gets them keeps them out of results, facts, process lists and files that others read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from ansible.errors import AnsibleError

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.proxies import LOCAL, exempting
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import hideable, is_secret
from ansible_collections.gpufleet.vllm.plugins.module_utils.host.reach import engine_bypasses
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.reference import registry_of
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.host_bundle import HostBundle, host_bundle
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning.site_options import registry_name

PROXIES = {"http": "vllm_http_proxy", "https": "vllm_https_proxy"}
PYPI = "https://pypi.org/simple"
AUTO = "auto"
# Of the play that makes a bundle, which takes nothing from it.
GATHERS = "__bundle_gathers"
KEYS = ("vllm_api_key", "vllm_hf_token")


class SiteVariables:
    """Reads the site's variables of a task's host.

    Args:
        templar: the task's.
        variables: the task's, untemplated.
    """

    def __init__(self, templar: Any, variables: Mapping[str, Any]) -> None:
        self._templar = templar
        self._variables = variables

    # Values

    def _value(self, name: str, default: Any) -> Any:
        try:
            found = self._templar.template(self._variables.get(name, default))
        except AnsibleError:
            return default
        return default if found is None else found

    def _structure(self, name: str, default: Any) -> Any:
        """Return a variable that is a list or a dictionary, and a text on the command line."""
        value = self._value(name, default)
        if isinstance(value, str):
            with contextlib.suppress(yaml.YAMLError):
                return yaml.safe_load(value)
        return value

    def text(self, name: str) -> str:
        """Return a variable that is a text; empty where it is none."""
        value = self._value(name, "")
        return str(value).strip() if isinstance(value, (str, int, float)) else ""

    def mapping(self, name: str) -> dict[str, str]:
        """Return a variable that is a dictionary of texts."""
        value = self._structure(name, {})
        if not isinstance(value, Mapping):
            return {}
        return {str(key): str(entry) for key, entry in value.items() if entry is not None}

    def entries(self, name: str) -> list[str]:
        """Return a variable that is a list of texts, or one text with commas."""
        value = self._value(name, [])
        parts = value.split(",") if isinstance(value, str) else value
        return [str(part).strip() for part in parts if str(part).strip()] if isinstance(parts, (list, tuple)) else []

    # The way out

    def proxies(self) -> dict[str, str]:
        """Return the proxy of each scheme that has one."""
        found = {scheme: self.text(name) for scheme, name in PROXIES.items()}
        return {scheme: proxy for scheme, proxy in found.items() if proxy}

    def exempt(self, *, fleet: bool = False) -> list[str]:
        """Return who is reached without a proxy besides this machine: as the user says, this host and the routers.

        Args:
            fleet: whether all other hosts are, too. What serves must not depend on who else is in the inventory.
        """
        groups = self._variables.get("groups") or {}
        hosts = [*groups.get("router", []), *(groups.get("all", []) if fleet else [])]
        own = [self.text("inventory_hostname"), self.text("ansible_host")]
        names = [*self.entries("vllm_no_proxy"), *own, *self._addresses(hosts)]
        return list(dict.fromkeys(name for name in names if name))

    def _addresses(self, hosts: Iterable[str]) -> Iterator[str]:
        known = self._variables.get("hostvars") or {}
        for host in hosts:
            yield str(host)
            with contextlib.suppress(AnsibleError, KeyError):
                yield str(known[host].get("ansible_host") or "")

    def proxy_variables(self, given: Mapping[str, str], *, fleet: bool = False) -> dict[str, str]:
        """Return the environment variables by which programs find the proxies; those that are given win.

        Args:
            given: variables that are set already.
            fleet: as in exempt.
        """
        taken = {name.lower() for name in given}
        found: dict[str, str] = {}
        for scheme, proxy in self.proxies().items():
            name = f"{scheme}_proxy"
            if name not in taken:
                found.update({name: proxy, name.upper(): proxy})
        return {**found, **exempting(given, self.exempt(fleet=fleet))} if found else {}

    def proxy(self, url: str) -> str:
        """Return the proxy for one address; empty where it is reached without."""
        found = self.proxies().get(urlsplit(url).scheme or "https", "")
        host = urlsplit(url).hostname or ""
        port = urlsplit(url).port or 443
        exempt = ",".join([*LOCAL, *self.exempt(fleet=True)])
        return "" if engine_bypasses(host, port, exempt) else found

    # What gets them

    def servers(self) -> dict[str, str]:
        """Return the environment variables of servers and downloads that are not shown."""
        secret = self.mapping("vllm_secret_environment")
        return {**secret, **self.proxy_variables({**self.mapping("vllm_environment"), **secret})}

    def engine(self) -> dict[str, str]:
        """Return the environment variables by which the Docker engine pulls."""
        return {name: value for name, value in self.proxy_variables({}).items() if name.isupper()}

    def jobs(self) -> dict[str, str]:
        """Return the environment variables of containers that ask a server, the hub and the package index."""
        secret = self.mapping("vllm_secret_environment")
        index = self.text("vllm_pip_index_url")
        return {
            **secret,
            **({"PIP_INDEX_URL": index} if index else {}),
            **self.proxy_variables({**self.mapping("vllm_environment"), **secret}, fleet=True),
        }

    def packages(self, proxy: str = "") -> dict[str, str]:
        """Return what apt, dnf and pip are told, and C(no_proxy), each empty where there is nothing to tell.

        Args:
            proxy: for both schemes, in the place of the site's; empty for the site's.

        Raises:
            GpufleetError: vllm_bundle_dir names no bundle for the host.
        """
        bundle = self.bundle()
        if bundle and bundle.parts.get("packages"):
            return bundle.packages()
        proxies = dict.fromkeys(PROXIES, proxy) if proxy else self.proxies()
        exempt = self.exempt(fleet=True)
        any_proxy = proxies.get("https") or proxies.get("http") or ""
        return {
            "apt": "".join(f'Acquire::{scheme}::Proxy "{address}";\n' for scheme, address in proxies.items()),
            "dnf": f"proxy={any_proxy}\n" if any_proxy else "",
            "pip": self._pip_text(),
            "no_proxy": exempting({}, exempt)["no_proxy"] if any_proxy else "",
        }

    def bundle(self) -> HostBundle | None:
        """Return what the bundle in vllm_bundle_dir has for the host; None where there is no bundle.

        Raises:
            GpufleetError: it is none, or has nothing for the host.
        """
        folder = "" if self._value(GATHERS, False) is True else self.text("vllm_bundle_dir")
        host = self.text("inventory_hostname")
        return host_bundle(folder, host, self.text("vllm_state_dir")) if folder else None

    def _pip_text(self) -> str:
        index, bundle = self.text("vllm_pip_index_url"), self.text("vllm_ca_bundle")
        settings = {"index-url": index, "proxy": self.proxy(index or PYPI), "cert": "" if bundle == AUTO else bundle}
        lines = [f"{name} = {value}" for name, value in settings.items() if value]
        return "\n".join(["[global]", *lines, ""]) if lines else ""

    def index(self) -> dict[str, str]:
        """Return C(url), C(user) and C(proxy) of the package index; empty ones where the host's pip decides alone."""
        named = self.text("vllm_pip_index_url")
        if not named and not self.proxies():
            return {"url": "", "user": "", "proxy": ""}
        parts = urlsplit(named or PYPI)
        user, _at, place = parts.netloc.rpartition("@")
        url = parts._replace(netloc=place, path=parts.path.rstrip("/") + "/").geturl()
        return {"url": url, "user": unquote(user), "proxy": self.proxy(url)}

    def registry(self, reference: str) -> dict[str, str]:
        """Return C(username), C(password) and C(ca), the text of certificates, for an image's registry.

        Raises:
            AnsibleError: the file of certificates cannot be read.
        """
        name = registry_of(reference)
        for entry in self._registries():
            if registry_name(str(entry.get("host") or "")) == name:
                found = {key: str(entry.get(key) or "") for key in ("username", "password", "ca")}
                return {**found, "ca": _certificates(name, found["ca"])}
        return {"username": "", "password": "", "ca": ""}

    def _registries(self) -> list[Mapping[str, Any]]:
        value = self._structure("vllm_registries", [])
        return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, (list, tuple)) else []

    def secrets(self) -> list[str]:
        """Return every secret that no report may show, passwords within addresses apart from them."""
        environment = self.mapping("vllm_secret_environment")
        addresses = [*self.proxies().values(), self.text("vllm_pip_index_url")]
        found = [self.text(name) for name in KEYS]
        found += [*environment.values(), *(address for address in addresses if is_secret("", address))]
        found += [password for address in (*environment.values(), *addresses) for password in _passwords(address)]
        found += self.entries("vllm_api_keys_accepted")
        found += [str(entry.get("password") or "") for entry in self._registries()]
        return list(dict.fromkeys(secret for secret in found if hideable(secret)))


def _certificates(name: str, given: str) -> str:
    """Return the text of certificates that are given as such, or as a file of the controller."""
    if not given or "-----BEGIN" in given:
        return given
    path = os.path.abspath(os.path.expanduser(given))
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise AnsibleError(
            f"vllm_registries: ca of {name}: {path} cannot be read on the controller: {error}. Name a file with CA"
            " certificates in PEM format, or give their text."
        ) from error
    if "-----BEGIN CERTIFICATE" not in text:
        raise AnsibleError(f"vllm_registries: ca of {name}: {path} has no certificate in PEM format.")
    return text


def _passwords(address: str) -> Iterator[str]:
    with contextlib.suppress(ValueError):
        yield urlsplit(address).password or ""
