#!/usr/bin/env bash
# Runs on every worker, started by launch/tpu_pod.sh; arguments: setup BUCKET, or run NAME FLAGS...
set -euo pipefail
cd "$(dirname "$0")/.."
bucket=$HOME/bucket

case $1 in
  setup)
    # The Python of the TPU runtime may be older than 3.11.
    if ! command -v gcsfuse >/dev/null; then
      source=gcsfuse-$(lsb_release -c -s)
      curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg |
        sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
      echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt $source main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      sudo apt-get -qq update
      sudo apt-get -qq install -y gcsfuse python3.11-venv
    fi
    [[ -d .venv ]] || python3.11 -m venv .venv
    .venv/bin/pip install --quiet -r requirements.txt 'jax[tpu]~=0.10.2'
    mkdir -p "$bucket"
    mountpoint -q "$bucket" || gcsfuse --implicit-dirs "$2" "$bucket"
    ;;
  run)
    workdir=$bucket/runs/$2
    shift 2
    exec launch/until_done.sh "$workdir" .venv/bin/python -m coco_jax.main "--workdir=$workdir" \
      "--config.data.dir=$bucket/data" "$@" --coordinator=auto
    ;;
esac
