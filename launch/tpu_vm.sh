#!/usr/bin/env bash
# Trains on a TPU slice in Google Cloud, from this machine; gcloud has to be logged in:
#
#     ZONE=us-west4-a SHARED=gs://my-bucket launch/tpu_vm.sh train my-slice \
#         python -m sigma_jax.train --config=configs/sft.py:qwen3_0p6b --workdir=shared/run
#
#     launch/tpu_vm.sh train  NAME COMMAND ...  create, install, run and logs; requests a preempted
#                                               spot slice again
#     launch/tpu_vm.sh create NAME              request the slice and wait for it; reuse an active one
#     launch/tpu_vm.sh install NAME             install this checkout's last commit on all hosts
#     launch/tpu_vm.sh run    NAME COMMAND ...  start COMMAND on all hosts
#     launch/tpu_vm.sh logs   NAME              follow the first host's log until the run ends
#     launch/tpu_vm.sh stop   NAME              send SIGTERM on all hosts: the run saves and ends
#     launch/tpu_vm.sh delete NAME              delete the slice; its costs end
#
# ZONE      zone of the slice; required
# TYPE      default v5litepod-16; or v5litepod-64, v6e-16, v5p-16, ...
# SHARED    storage that all hosts mount at ~/shared: gs://BUCKET, or ADDRESS:/SHARE for NFS. A
#           bucket needs a hierarchical namespace, because artifacts are renamed folders. SHARED is
#           needed on slices of several hosts, and on spot slices so that a run can continue.
# SPOT      1 requests a spot slice, which costs less and may be preempted at any time
# PROJECT   default: gcloud's own project
# RUNTIME   image of the hosts; default by TYPE
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' launch/tpu_vm.sh >&2
    exit 2
}

fail() {
    echo "error: $*" >&2
    exit 1
}

type=${TYPE:-v5litepod-16}
case $type in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v4-*) runtime=tpu-ubuntu2204-base ;;
    *) [[ -n ${RUNTIME:-} ]] || fail "TYPE=$type is unknown; set RUNTIME to the image it needs." ;;
esac
runtime=${RUNTIME:-$runtime}

cloud() { # gcloud compute tpus GROUP VERB NAME ...
    gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"} --quiet
}

on_hosts() { # WORKERS SCRIPT
    cloud tpu-vm ssh "$name" --worker="$1" --command="$2"
}

state() {
    cloud queued-resources describe "$name" --format="value(state.state)" 2>/dev/null || true
}

create() {
    local requested=
    while true; do
        local now
        now=$(state)
        case $now in
            ACTIVE) return ;;
            "")
                [[ -z $requested ]] || fail "gcloud did not create $name; run its command by hand."
                requested=yes
                echo "requesting $name, $type" >&2
                cloud queued-resources create "$name" --node-id="$name" \
                    --accelerator-type="$type" --runtime-version="$runtime" ${SPOT:+--spot}
                ;;
            FAILED | SUSPENDED)
                echo "$name is $now: requesting it again" >&2
                delete
                requested=
                ;;
            *) sleep "${POLL:-20}" ;;
        esac
    done
}

delete() {
    cloud queued-resources delete "$name" --force
}

install() {
    local archive
    archive=$(mktemp -d)
    git archive --format=tar.gz --output="$archive/sigma_jax.tar.gz" HEAD
    cloud tpu-vm scp "$archive/sigma_jax.tar.gz" "$name:" --worker=all
    rm -r "$archive"
    local mount=
    case ${SHARED:-} in
        "") mount=true ;;
        gs://*) mount="command -v gcsfuse >/dev/null || {
            echo 'deb https://packages.cloud.google.com/apt gcsfuse-jammy main' |
                sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
            curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg |
                sudo tee /etc/apt/trusted.gpg.d/gcsfuse.asc >/dev/null
            sudo apt-get update -qq && sudo apt-get install -qq -y gcsfuse
        }
        gcsfuse --implicit-dirs ${SHARED#gs://} ~/shared" ;;
        *:/*) mount="command -v mount.nfs >/dev/null || {
            sudo apt-get update -qq && sudo apt-get install -qq -y nfs-common
        }
        sudo mount -t nfs $SHARED ~/shared" ;;
        *) fail "SHARED=$SHARED is neither gs://BUCKET nor ADDRESS:/SHARE." ;;
    esac
    on_hosts all "set -e
        mkdir -p ~/sigma_jax ~/shared
        tar -xzf ~/sigma_jax.tar.gz -C ~/sigma_jax
        mountpoint -q ~/shared || {
            $mount
        }
        command -v ~/.local/bin/uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
        cd ~/sigma_jax
        ln -sfn ~/shared shared
        [ -d ~/venv ] || ~/.local/bin/uv venv -q --python 3.11 ~/venv
        VIRTUAL_ENV=~/venv ~/.local/bin/uv pip install -q -e '.[tpu,demo]'"
}

run() {
    local words
    words=$(printf '%q ' "$@")
    [[ $* != *sigma_jax.train* || $* == *--distributed* ]] || words+=--distributed
    on_hosts all "cd ~/sigma_jax
        if [ -e ~/run.pid ] && kill -0 \$(cat ~/run.pid) 2>/dev/null; then
            echo 'error: a run is active; stop it first' >&2
            exit 1
        fi
        rm -f ~/run.status
        export PATH=~/venv/bin:\$PATH
        nohup sh -c '\"\$@\"; echo \$? > ~/run.status' sh $words >~/run.log 2>&1 </dev/null &
        echo \$! >~/run.pid"
}

logs() { # the exit status is that of the run, or 255 if the host cannot be reached
    on_hosts 0 'tail -n +1 --pid=$(cat ~/run.pid) -F ~/run.log 2>/dev/null
        exit $(cat ~/run.status 2>/dev/null || echo 254)'
}

stop() {
    on_hosts all 'pkill -TERM -P $(cat ~/run.pid) || true'
}

train() {
    while true; do
        create
        install
        run "$@"
        local status=0
        logs || status=$?
        if [[ $(state) == ACTIVE ]]; then
            return "$status"
        fi
        [[ -n ${SPOT:-} ]] || fail "$name is gone; the same command continues on a new slice."
        echo "$name was preempted: requesting another slice" >&2
    done
}

[[ $# -ge 2 ]] || usage
verb=$1 name=$2
shift 2
[[ -n ${ZONE:-} ]] || fail "ZONE is not set; name the zone of the slice, such as ZONE=us-west4-a."
case $verb in
    train | run) [[ $# -gt 0 ]] || usage ;;
    create | install | logs | stop | delete) [[ $# -eq 0 ]] || usage ;;
    *) usage ;;
esac
"$verb" "$@"
