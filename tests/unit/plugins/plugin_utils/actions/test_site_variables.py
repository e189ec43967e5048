# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the site's variables mean for a host."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ansible_collections.gpufleet.vllm.plugins.lookup.site import LookupModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.actions.site_variables import SiteVariables
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.planning import wishes

FLEET = {
    "inventory_hostname": "gpu-1",
    "ansible_host": "10.0.0.1",
    "groups": {"all": ["gpu-1", "gpu-2", "door"], "router": ["door"]},
    "hostvars": {"gpu-1": {"ansible_host": "10.0.0.1"}, "gpu-2": {}, "door": {"ansible_host": "10.0.0.99"}},
}
PROXY = "http://me:pass-word@proxy:3128"


def site(**variables: Any) -> SiteVariables:
    known = {**FLEET, **variables}
    return SiteVariables(Templar(loader=DataLoader(), variables=known), known)


def test_without_a_proxy_servers_get_what_is_secret_alone() -> None:
    assert site(vllm_secret_environment={"KEY": "abcdef"}).servers() == {"KEY": "abcdef"}
    assert site(vllm_secret_environment='{"KEY": "abcdef"}').jobs() == {"KEY": "abcdef"}
    assert site().servers() == {}


def test_servers_get_the_proxies_and_who_is_exempt_whoever_else_is_in_the_fleet() -> None:
    found = site(vllm_https_proxy=PROXY, vllm_no_proxy=[".example.com", "10.1.0.0/16"]).servers()
    exempt = ".example.com,10.1.0.0/16,gpu-1,10.0.0.1,door,10.0.0.99"
    assert found.pop("NO_PROXY") == found.pop("no_proxy") == f"localhost,127.0.0.1,::1,{exempt}"
    assert found == {"HTTPS_PROXY": PROXY, "https_proxy": PROXY}


def test_jobs_reach_the_whole_fleet_without_a_proxy_and_packages_by_the_sites_index() -> None:
    found = site(vllm_http_proxy=PROXY, vllm_pip_index_url="https://pypi.example.com/simple").jobs()
    assert {"gpu-2", "gpu-1", "10.0.0.99"} < set(found["NO_PROXY"].split(","))
    assert found["PIP_INDEX_URL"] == "https://pypi.example.com/simple"
    assert found["http_proxy"] == PROXY


def test_a_proxy_of_the_servers_own_environment_wins_and_its_exceptions_are_kept() -> None:
    found = site(
        vllm_http_proxy=PROXY,
        vllm_https_proxy=PROXY,
        vllm_environment={"HTTPS_PROXY": "http://other:3128", "NO_PROXY": "a.example.com"},
    ).servers()
    assert "https_proxy" not in found and "HTTPS_PROXY" not in found
    assert found["http_proxy"] == PROXY
    assert found["NO_PROXY"].startswith("a.example.com,localhost")


def test_every_secret_is_known_to_reports() -> None:
    found = site(
        vllm_api_key="the-key",
        vllm_hf_token="hf-token",
        vllm_secret_environment={"A": "value-a", "B": "redis://:in-address@cache", "C": "1"},
        vllm_http_proxy=PROXY,
        vllm_https_proxy="http://plain:3128",
        vllm_api_keys_accepted=["old-key"],
    ).secrets()
    assert {"the-key", "hf-token", "value-a", "in-address", "pass-word", PROXY, "old-key"} <= set(found)
    assert "http://plain:3128" not in found and "1" not in found


def test_values_are_templates_and_those_that_cannot_be_templated_are_none() -> None:
    known = {**FLEET, "a": "x:1", "vllm_http_proxy": trust_as_template("http://{{ a }}")}
    assert SiteVariables(Templar(loader=DataLoader(), variables=known), known).proxies() == {"http": "http://x:1"}
    known["vllm_http_proxy"] = trust_as_template("{{ nowhere }}")
    assert SiteVariables(Templar(loader=DataLoader(), variables=known), known).proxies() == {}


def test_package_managers_are_told_the_proxies_and_who_is_exempt() -> None:
    found = site(
        vllm_http_proxy=PROXY,
        vllm_https_proxy="http://tls:3128",
        vllm_no_proxy=["mirror.example.com", ".lab.example.com", "10.0.0.0/8"],
        vllm_pip_index_url="https://me:secret@pypi.example.com/simple",
        vllm_ca_bundle="/etc/ssl/site.pem",
    ).packages()
    assert found["apt"] == f'Acquire::http::Proxy "{PROXY}";\nAcquire::https::Proxy "http://tls:3128";\n'
    assert found["dnf"] == "proxy=http://tls:3128\n"
    assert found["pip"] == (
        "[global]\nindex-url = https://me:secret@pypi.example.com/simple\nproxy = http://tls:3128\n"
        "cert = /etc/ssl/site.pem\n"
    )
    assert found["no_proxy"].startswith("localhost,127.0.0.1,::1,mirror.example.com")


def test_an_index_that_is_exempt_and_a_site_without_a_way_out() -> None:
    exempt = site(
        vllm_https_proxy=PROXY, vllm_no_proxy=".example.com", vllm_pip_index_url="https://pypi.example.com/simple"
    )
    assert exempt.packages()["pip"] == "[global]\nindex-url = https://pypi.example.com/simple\n"
    assert exempt.proxy("https://deb.example.com/debian") == ""
    assert exempt.proxy("https://download.docker.com/linux") == PROXY
    assert exempt.proxy("http://download.docker.com/linux") == ""
    assert site(vllm_ca_bundle="auto").packages() == {"apt": "", "dnf": "", "pip": "", "no_proxy": ""}
    assert site().packages(PROXY)["dnf"] == f"proxy={PROXY}\n"


def test_preflight_asks_the_index_only_where_the_site_names_a_way_there() -> None:
    assert site().index() == {"url": "", "user": "", "proxy": ""}
    assert site(vllm_https_proxy=PROXY).index() == {"url": "https://pypi.org/simple/", "user": "", "proxy": PROXY}
    named = site(vllm_pip_index_url="https://me:p%40ss@pypi.example.com/simple").index()
    assert named == {"url": "https://pypi.example.com/simple/", "user": "me:p@ss", "proxy": ""}


def test_the_engine_gets_the_proxies_once() -> None:
    assert site(vllm_https_proxy=PROXY).engine() == {
        "HTTPS_PROXY": PROXY,
        "NO_PROXY": "localhost,127.0.0.1,::1,gpu-1,10.0.0.1,door,10.0.0.99",
    }
    assert site().engine() == {}


REGISTRIES = [
    {"host": "https://index.docker.io/v1/", "username": "hub", "password": "hub-pass"},
    {"host": "nvcr.io", "username": "$oauthtoken", "password": "nvapi-key"},
    {"host": "registry.example.com:5000", "ca": "ca.pem"},
]


def test_the_registry_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known = site(vllm_registries=REGISTRIES)
    assert known.registry("vllm/vllm-openai:v1") == {"username": "hub", "password": "hub-pass", "ca": ""}
    assert known.registry("nvcr.io/nim/x:1")["username"] == "$oauthtoken"
    assert known.registry("other.example.com/x:1") == {"username": "", "password": "", "ca": ""}
    with pytest.raises(AnsibleError, match=r"ca of registry.example.com:5000: .*ca.pem cannot be read"):
        known.registry("registry.example.com:5000/x:1")
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nx\n")
    assert known.registry("registry.example.com:5000/x:1")["ca"].startswith("-----BEGIN")
    assert {"hub-pass", "nvapi-key"} == set(known.secrets())
    assert site(vllm_registries=json.dumps(REGISTRIES)).registry("nvcr.io/x")["password"] == "nvapi-key"


def test_registries_are_checked_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ca.pem").touch()
    assert wishes.read({"vllm_registries": REGISTRIES}).registries == ("docker.io", "nvcr.io")
    right = {"host": "a", "username": "u", "password": "my-marker"}
    for value, text in (
        ({"a": "my-marker"}, "it must be a list"),
        ([{"username": "u", "password": "my-marker"}], "an entry has no host"),
        ([{**right, "token": "my-marker"}], "token is no key of the entry of a"),
        ([right, right], "a is there twice"),
        ([{"host": "a", "password": "my-marker"}], "the entry of a has no username"),
        ([{**right, "host": "https://a/b"}], "'a/b' is no host"),
        ([{"host": "me:my-marker@a"}], "the host of an entry has a user before it"),
    ):
        with pytest.raises(GpufleetError) as caught:
            wishes.read({"vllm_registries": value})
        assert text in caught.value.message and "my-marker" not in caught.value.message


def test_the_lookup() -> None:
    known = {**FLEET, "vllm_secret_environment": {"KEY": "abcdef"}}
    lookup = LookupModule(loader=DataLoader(), templar=Templar(loader=DataLoader(), variables=known))
    assert lookup.run(["servers", "secrets"], variables=known) == [{"KEY": "abcdef"}, ["abcdef"]]
    empty = {"username": "", "password": "", "ca": ""}
    assert lookup.run(["registry"], variables=known, reference="vllm/x:1") == [empty]
    with pytest.raises(AnsibleError, match="not elsewhere"):
        lookup.run(["elsewhere"], variables=known)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("vllm_http_proxy", "proxy:3128", "it must be an address such as http://proxy"),
        ("vllm_https_proxy", "http://me:pa@ss/word@proxy", "%40 %3A %2F"),
        ("vllm_https_proxy", "http://me:secret@proxy:port", "it must be an address"),
        ("vllm_no_proxy", ["http://a"], "leave out http://"),
        ("vllm_no_proxy", {"a": 1}, "it must be a list"),
        ("vllm_pip_index_url", "pypi.example.com", "it must be an address"),
    ],
)
def test_what_is_no_way_out_is_refused_without_showing_passwords(name: str, value: Any, text: str) -> None:
    with pytest.raises(GpufleetError) as caught:
        wishes.read({name: value})
    (problem,) = caught.value.details["problems"]
    assert problem.startswith(f"{name}: (hidden) is not valid")
    assert text in problem and "secret" not in problem


def test_a_way_out_is_accepted() -> None:
    read = wishes.read(
        {
            "vllm_http_proxy": PROXY,
            "vllm_https_proxy": "",
            "vllm_no_proxy": "a,.b",
            "vllm_pip_index_url": "https://x/simple",
        }
    )
    assert (read.has_http_proxy, read.has_https_proxy, read.has_no_proxy, read.has_pip_index) == (
        True,
        False,
        True,
        True,
    )


def test_with_a_bundle_packages_come_from_it_alone_but_where_it_is_made(tmp_path: Path) -> None:
    parts = {"packages": "packages/debian-12-amd64", "wheels": "packages/debian-12-amd64/wheels"}
    contents = json.dumps({"format": 1, "hosts": {"gpu-1": parts}, "links": {}})
    (tmp_path / "bundle.json").write_text(contents)
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(contents.encode()).hexdigest()}  bundle.json\n")
    own = {"vllm_bundle_dir": str(tmp_path), "vllm_state_dir": "/state", "vllm_http_proxy": PROXY}
    told = site(**own).packages()
    assert 'Dir::Etc::sourcelist "/state/bundle/packages/bundle.list";' in told["apt"]
    assert told["dnf"] == "reposdir=/state/bundle/packages\n"
    assert told["pip"] == "[global]\nno-index = true\nfind-links = /state/bundle/wheels\n"
    assert PROXY not in "".join(told.values())
    assert "no-index" not in site(**own, __bundle_gathers=True).packages()["pip"]
    (tmp_path / "SHA256SUMS").unlink()
    with pytest.raises(GpufleetError) as caught:
        site(**own).packages()
    assert caught.value.name == "bundle-unfinished"
