#!/bin/sh
# Runs in a container of the hosts' distribution, so that it downloads what a host with nothing more than that lacks.
# roles/bundle/tasks/gather.yml says what is in /in, and what this leaves in /out.
set -eu
ca=/etc/ssl/certs/ca-certificates.crt
# Whoever began this has to be able to remove it; as the folder looks here, also where the engine shifts users.
trap 'chown -R --reference=/out /out' EXIT

of_apt() {
  export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
  rm -f /etc/apt/apt.conf.d/docker-clean
  apt-get update
  # What is installed here for this work must not be missing on the hosts.
  cp /var/lib/dpkg/status /tmp/status
  [ -e $ca ] || apt-get install --yes --no-install-recommends ca-certificates
  while read -r name url _signed suite; do
    key=$(ls "/in/$name".*)
    echo "deb [signed-by=$key] $url $suite" >"/etc/apt/sources.list.d/$name.list"
  done </in/vendors
  [ ! -s /in/vendors ] || apt-get update
  mkdir -p /tmp/archives/partial
  # shellcheck disable=SC2046
  apt-get install --yes --no-install-recommends --download-only -o Dir::State::status=/tmp/status \
    -o Dir::Cache::archives=/tmp/archives $(cat /in/packages /in/toolkit)
  mv /tmp/archives/*.deb /out
  # The role that installs the toolkit wants these by themselves; what they depend on stays with the rest.
  for package in $(cat /in/toolkit); do
    mkdir -p /out/toolkit
    mv "/out/${package%%=*}"_*.deb /out/toolkit
  done
  apt-get install --yes --no-install-recommends python3-venv
  cd /out
  for file in *.deb; do
    dpkg-deb --field "$file"
    sum=$(sha256sum "$file")
    printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$file" "$(stat --format=%s "$file")" "${sum%% *}"
  done >Packages
}

of_dnf() {
  while read -r name url signed _suite; do
    packages=1 metadata=0
    [ "$signed" = packages ] || { packages=0 metadata=1; }
    printf '[%s]\nname=%s\nbaseurl=%s\nenabled=1\ngpgcheck=%s\nrepo_gpgcheck=%s\ngpgkey=file://%s\n' \
      "$name" "$name" "$url" "$packages" "$metadata" "$(ls "/in/$name".*)" >"/etc/yum.repos.d/$name.repo"
  done </in/vendors
  # Before anything is installed here for this work. `dnf download` would check no signature of a package.
  # shellcheck disable=SC2046
  dnf install --assumeyes --setopt=install_weak_deps=False --downloadonly --downloaddir=/out \
    $(cat /in/packages) $(tr = - </in/toolkit)
  for package in $(tr = - </in/toolkit); do
    mkdir -p /out/toolkit
    mv "/out/$package"*.rpm /out/toolkit
  done
  dnf install --assumeyes --setopt=install_weak_deps=False createrepo_c python3-pip
  createrepo_c --excludes 'toolkit/*' /out
}

if command -v apt-get >/dev/null; then of_apt; else of_dnf; fi
python3 -m venv /tmp/venv
/tmp/venv/bin/pip wheel --no-input --progress-bar=off --wheel-dir /out/wheels --requirement /in/libraries
