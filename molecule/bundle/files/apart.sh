#!/usr/bin/env bash
# apart.sh PREFIX: take the host PREFIX-air-01 off every network, and have the image PREFIX/debian:12, which is what the
# host was made of with Debian's own repository.
set -euo pipefail
prefix=$1
docker network disconnect --force bridge "$prefix-air-01"
# Docker gives containers 64 MiB of shared memory, and servers share the host's.
docker exec "$prefix-air-01" mount -o remount,size=2g /dev/shm
docker rm --force "$prefix-distribution" >/dev/null 2>&1 || true
docker create --name "$prefix-distribution" "$(docker inspect --format '{{.Config.Image}}' "$prefix-air-01")" true >/dev/null
list=$(mktemp)
trap 'rm -f "$list"' EXIT
printf 'deb %s bookworm main\n' "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$list"
chmod 644 "$list"
docker cp "$list" "$prefix-distribution:/etc/apt/sources.list"
docker commit "$prefix-distribution" "$prefix/debian:12" >/dev/null
docker rm "$prefix-distribution" >/dev/null
