#!/usr/bin/env bash
# site.sh up PREFIX FOLDER IMAGE MODEL   have the host PREFIX-gpu-01 in a site: a network without a way out, in which
#                                        PREFIX-site has a proxy, a registry with IMAGE and the names of both; MODEL, a
#                                        folder, is what the stand-in for the hub gives away, behind the proxy
# site.sh down PREFIX                    remove the site, but not the host
#
# FOLDER gets the registry's certificate, registry-ca.pem, the proxy's log, proxy.log, and sent.txt: whom the host sent to.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
network=172.29.230
fill=127.0.0.1:18092
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

site_image() {
  DOCKER_BUILDKIT=0 docker build --quiet --tag "$1" - <<DOCKERFILE
FROM $2
RUN echo "deb $mirror bookworm main" >/etc/apt/sources.list && apt-get update && \
  apt-get install --yes --no-install-recommends dnsmasq-base docker-registry openssl tinyproxy-bin
DOCKERFILE
}

# in_site NAME IMAGE FOLDER OPTION... -- COMMAND...
in_site() {
  local name=$1 image=$2 folder=$3 options=()
  shift 3
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  docker run --detach --name "$name" --volume "$folder:/site" --volume "$here:/files:ro" "${options[@]}" "$image" "${@:2}" \
    >/dev/null
}

# fill_registry PREFIX SITE FOLDER IMAGE: by a registry without a password that only this machine reaches
fill_registry() {
  in_site "$1-fill" "$2" "$3" --publish "$fill:5000" -- docker-registry serve /files/filled.json
  docker tag "$4" "$fill/vllm/vllm-cpu:${4##*:}"
  local patience=30
  until docker push --quiet "$fill/vllm/vllm-cpu:${4##*:}"; do
    ((--patience)) || return 1
    sleep 1
  done
  docker rmi "$fill/vllm/vllm-cpu:${4##*:}" >/dev/null
  docker rm --force "$1-fill" >/dev/null
}

# move_host PREFIX: off every other network, and with what a host of a site has from its installation
move_host() {
  docker network disconnect --force bridge "$1-gpu-01"
  docker network connect --ip "$network.10" "$1" "$1-gpu-01"
  # An engine without packet filter gives it one that leads nowhere.
  docker exec "$1-gpu-01" ip route delete default 2>/dev/null || true
  # Docker gives containers 64 MiB of shared memory, and servers share the host's.
  docker exec "$1-gpu-01" mount -o remount,size=2g /dev/shm
  docker exec --interactive "$1-gpu-01" sh -c 'cat >/etc/ssl/certs/ca-certificates.crt' </etc/ssl/certs/ca-certificates.crt
  docker exec "$1-gpu-01" sh -c "
    rm -r /srv/debian
    touch --date=yesterday /var/lib/apt/lists
    echo 'deb $mirror bookworm main' >/etc/apt/sources.list
    echo 'nameserver $network.2' >/etc/resolv.conf"
}

# wait_for_site PREFIX: until its host gets through to what is there
wait_for_site() {
  local patience=60 port
  for port in proxy.example.com:3128 registry.example.com:443; do
    until docker exec "$1-gpu-01" python3 -c "import socket; socket.create_connection('$port'.split(':'), 5)" 2>/dev/null; do
      if ! ((--patience)); then
        docker logs "$1-site" >&2
        echo "site.sh: $port is not reached" >&2
        return 1
      fi
      sleep 1
    done
  done
}

up() {
  local prefix=$1 folder=$2 image=$3 model=$4 host
  host=$(docker inspect --format '{{.Config.Image}}' "$prefix-gpu-01")
  site_image "$prefix/site" "$host"
  mkdir -p "$folder"
  docker network create --internal --subnet "$network.0/24" "$prefix" >/dev/null
  fill_registry "$prefix" "$prefix/site" "$folder" "$image"
  in_site "$prefix-site" "$prefix/site" "$folder" --add-host hub.example.org:127.0.0.1 --volume "$model:/model:ro" \
    --volume "$here/../../../tests/fakes/hub.py:/hub.py:ro" -- sh /files/serve.sh "$network.2"
  docker network connect --ip "$network.2" "$prefix" "$prefix-site"
  move_host "$prefix"
  wait_for_site "$prefix"
  in_site "$prefix-watch" "$host" "$folder" --network "container:$prefix-gpu-01" --cap-add NET_RAW -- \
    python3 /files/watch.py /site/sent.txt
}

down() {
  for name in watch site fill; do docker rm --force "$1-$name" >/dev/null 2>&1 || true; done
  docker network disconnect --force "$1" "$1-gpu-01" >/dev/null 2>&1 || true
  docker network rm "$1" >/dev/null 2>&1 || true
}

case ${1:-} in
  up) up "${@:2}" ;;
  down) down "${@:2}" ;;
  *) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
