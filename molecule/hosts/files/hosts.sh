#!/usr/bin/env bash
# Hosts for tests: containers of the engine at DOCKER_HOST that are whole Debian systems and run engines of their own.
#
#   hosts.sh up FOLDER HOST...   have them, and the repository of the stand-in toolkit at http://repository:8080
#   hosts.sh down HOST...        remove them all
#
# A HOST is NAME:SUITE:INIT with SUITE bookworm or trixie and INIT systemd or none. FOLDER keeps the root file systems
# between runs, and the key for `ssh -i FOLDER/id root@NAME`, where the container is the host: see ../inventory.
# HOSTS_PREFIX (gpufleet-host) begins the names of the containers.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
prefix=${HOSTS_PREFIX:-gpufleet-host}
fakes=$here/../../../tests/fakes/container_toolkit

# The machine's own capabilities, all of them: it may have less than Docker's --privileged asks for.
capabilities() {
  local names=(chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable
    net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace
    sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control
    setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read)
  local index set
  set=$((16#$(awk '$1 == "CapBnd:" { print $2 }' /proc/self/status)))
  for index in "${!names[@]}"; do
    if (((set >> index) & 1)); then printf '%s\n' "--cap-add=${names[$index]}"; fi
  done
}

# have_rootfs FOLDER SUITE...: make the root file systems, at the same time
have_rootfs() {
  local folder=$1 suite jobs=()
  shift
  for suite in "$@"; do
    "$here/rootfs.sh" "$suite" "$folder" >"$folder/$suite.log" 2>&1 &
    jobs+=("$!:$suite")
  done
  for suite in "${jobs[@]}"; do
    if ! wait "${suite%:*}"; then
      tail -n 20 "$folder/${suite#*:}.log" >&2
      echo "hosts.sh: no root file system for ${suite#*:}; all that was said is in $folder/${suite#*:}.log" >&2
      return 1
    fi
  done
}

have_image() {
  local suite=$1 folder=$2 image
  image=gpufleet/test-host:$suite-$(cat "$folder/$suite.tar.recipe")
  docker image inspect "$image" >/dev/null 2>&1 || docker import "$folder/$suite.tar" "$image" >/dev/null
  echo "$image"
}

start_repository() {
  docker run --detach --name "$prefix-repository" --volume "$fakes:/toolkit:ro" "$1" /toolkit/repository.sh /srv/www >/dev/null
}

wait_for_repository() {
  local patience=120
  until docker exec "$prefix-repository" test -e /srv/www/fingerprints.json; do
    if ((--patience == 0)) || [ "$(docker inspect --format '{{.State.Running}}' "$prefix-repository")" != true ]; then
      docker logs "$prefix-repository" >&2
      echo "hosts.sh: the repository was not made" >&2
      return 1
    fi
    sleep 1
  done
}

start_host() {
  local name=$1 image=$2 init=$3 address=$4 key=$5 program=(sh -c 'while :; do sleep 3600 & wait; done')
  if [ "$init" = systemd ]; then program=(/sbin/init); fi
  mapfile -t allowed < <(capabilities)
  docker run --detach --name "$prefix-$name" --hostname "$name" --add-host "repository:$address" \
    "${allowed[@]}" --cgroupns=host --device-cgroup-rule='a *:* rwm' --security-opt seccomp=unconfined \
    --security-opt apparmor=unconfined --security-opt systempaths=unconfined --tmpfs /run --tmpfs /run/lock --tmpfs /tmp \
    --volume /var/lib/docker --volume "$here/start.sh:/start.sh:ro" --env container=docker --stop-signal SIGRTMIN+3 \
    "$image" /start.sh "${program[@]}" >/dev/null
  docker exec --interactive "$prefix-$name" sh -c \
    'mkdir -p -m 700 /root/.ssh /run/sshd && cat >/root/.ssh/authorized_keys && rm -f /run/nologin' <"$key"
}

up() {
  local folder=$1 image address suites
  shift
  mkdir -p "$folder"
  [ -f "$folder/id" ] || ssh-keygen -q -t ed25519 -N '' -f "$folder/id"
  mapfile -t suites < <(printf '%s\n' bookworm "$@" | sed 's/^[^:]*:\([^:]*\):.*/\1/' | sort -u)
  have_rootfs "$folder" "${suites[@]}"
  image=$(have_image bookworm "$folder")
  start_repository "$image"
  address=$(docker inspect --format '{{.NetworkSettings.IPAddress}}' "$prefix-repository")
  for host in "$@"; do
    IFS=: read -r name suite init <<<"$host"
    start_host "$name" "$(have_image "$suite" "$folder")" "$init" "$address" "$folder/id.pub"
  done
  wait_for_repository
}

down() {
  for name in repository "${@%%:*}"; do
    docker rm --force --volumes "$prefix-$name" >/dev/null 2>&1 || true
  done
}

case ${1:-} in
  up) up "${@:2}" ;;
  down) down "${@:2}" ;;
  *) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
