#!/bin/sh
# The main job in one minute: build an image from this host, run it with limits, see what the
# container changed and what everything costs on disk. Leaves nothing behind.
set -eu
cd -- "$(dirname -- "$0")/.."
LAYERSTORE=${LAYERSTORE:-layerstore}
LAYERSTORE_ROOT=$(mktemp -d "${TMPDIR:-/tmp}/layerstore-demo.XXXXXX")
export LAYERSTORE_ROOT
trap 'rm -rf "$LAYERSTORE_ROOT"' EXIT
trap 'exit 130' INT TERM

say() { printf '\n$ %s\n' "$*"; "$@"; }
layerstore() { "$LAYERSTORE" "$@"; }

say layerstore build examples/hello/spec.yaml
say layerstore build examples/hello/spec.yaml
say layerstore images

# Limits need a writable cgroup, which a plain user seldom has.
if [ "$(id -u)" = 0 ]; then limits="--memory 128m --pids-limit 64"; else limits=""; fi
# shellcheck disable=SC2086
say layerstore run --name demo $limits hello sh -c '
    python3 /app/server.py --self-test
    rm /app/unused.txt
    echo changed >> /app/greeting.txt'
say layerstore diff demo
say layerstore run --rm hello sh -c 'ls /app; cat /app/greeting.txt'
say layerstore commit demo hello:changed
say layerstore run --rm hello:changed sh -c 'ls /app; cat /app/greeting.txt'
say layerstore df
say layerstore rm demo
say layerstore fsck
