#!/usr/bin/env bash
# rootfs.sh SUITE FOLDER: have FOLDER/SUITE.tar, the root file system of a host with Debian SUITE.
#
# A host has no engine. Debian's packages of one lie in /srv/debian, a repository that the host's apt knows, so that a
# role can install them without a network. So does hello, which a stand-in depends on. The host of Debian 12 also has dnf
# and what makes repositories, gpg among it; that of Debian 13 has no gpg, which a role installs before it checks a key.
set -euo pipefail
suite=$1
folder=$2
recipe=$(sha256sum "$0" | cut -c1-16)
tar=$folder/$suite.tar
if [ -f "$tar" ] && [ "$(cat "$tar.recipe" 2>/dev/null)" = "$recipe" ]; then
  exit 0
fi

base=python3,python3-apt,openssh-server,ca-certificates,iproute2,iptables,procps,kmod,udev,systemd,systemd-sysv,dbus
base=$base,apt-utils,busybox-static
if [ "$suite" = bookworm ]; then
  base=$base,dnf,rpm,createrepo-c,gpg,gpg-agent
  offered=(docker.io hello)
else
  offered=(docker.io docker-cli gpg hello)
fi

mkdir -p "$folder"
root=$(mktemp -d "$folder/$suite.XXXXXX")
# --one-file-system: should a mount below it not have come off, its content stays.
trap 'umount "$root/proc" 2>/dev/null || true; rm -rf --one-file-system "$root"' EXIT
debootstrap --variant=minbase --include="$base" "$suite" "$root" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
mkdir -p "$root/srv/debian/partial"
env DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install --quiet --yes --no-install-recommends --download-only \
  -o Dir::Cache::archives=/srv/debian "${offered[@]}"
rm -rf "$root/srv/debian/partial" "$root/srv/debian/lock"
chroot "$root" sh -c 'cd /srv/debian && apt-ftparchive packages . >Packages'
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/archives/*.deb "$root"/etc/apt/sources.list.d/*
echo 'deb [trusted=yes] file:/srv/debian ./' >"$root/etc/apt/sources.list"
# A host that a test throws away need not survive a power cut.
echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/unsafe"
# A key of the host's own, and a client that may come in with the key that the test mounts.
chroot "$root" ssh-keygen -A >/dev/null
mkdir -p "$root/run/sshd"
rm -f "$root/etc/machine-id"
tar -C "$root" --one-file-system --exclude=./proc/* --exclude=./sys/* --exclude=./dev/* -cf "$tar.new" .
mv "$tar.new" "$tar"
echo "$recipe" >"$tar.recipe"
