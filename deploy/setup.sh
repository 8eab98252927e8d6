#!/bin/sh
# Makes what deploy/compose.yaml needs, beside it: passwords and URLs in secrets/, and .env.
#   deploy/setup.sh [--address NAME] HOST_ID [HOST_ID ...]
# The first host is this machine; the others run compose.worker.yaml. NAME is how they reach this
# machine, whose RabbitMQ then listens for them. Run it again with more hosts to add them: passwords
# and .env stay as they are.
set -eu
cd "$(dirname "$0")"

usage() {
    sed -n 's/^#   //p' "$0" >&2
    exit 2
}

address=
if [ "${1:-}" = --address ]; then
    [ $# -ge 2 ] || usage
    address=$2
    shift 2
fi
[ $# -ge 1 ] || usage
for host in "$@"; do
    case $host in -* | *[!A-Za-z0-9_.-]*) usage ;; esac
done
if [ $# -gt 1 ] && [ -z "$address" ]; then
    echo "setup.sh: with more than one host give --address NAME, the name of this machine" >&2
    exit 2
fi
here=$1

secrets=${MODELYARD_SECRETS:-secrets}
# As compose reads it: a relative one is beside compose.yaml. Docker would make it a volume's name.
case $secrets in /*) ;; *) secrets=$PWD/$secrets ;; esac
env_file=${MODELYARD_ENV_FILE:-$PWD/.env}
images=${MODELYARD_IMAGES:-modelyard}
version=${MODELYARD_VERSION:-0.1.0}
port=${MODELYARD_AMQP_PORT:-5672}
socket=${MODELYARD_DOCKER_SOCKET:-/var/run/docker.sock}
listen=127.0.0.1
[ -z "$address" ] || listen=0.0.0.0

# Others can't enter the folder; in it, each file is readable by the one container that mounts it.
mkdir -p "$secrets"
chmod 0700 "$secrets"

modelyard() {
    docker run --rm --network none --read-only --cap-drop ALL --user "$(id -u):$(id -g)" \
        --volume "$secrets:/secrets" --workdir /secrets "$images/cli:$version" "$@"
}

bridge=$(docker network inspect bridge --format '{{(index .IPAM.Config 0).Gateway}}' || true)
hosts=
for host in "$@"; do hosts="$hosts --host $host"; done
# shellcheck disable=SC2086 # names without spaces
definitions=$(modelyard rabbitmq definitions $hosts)
# In place, because a container that runs has this very file.
printf '%s\n' "$definitions" > "$secrets/rabbitmq-definitions.json"
modelyard rabbitmq urls --broker rabbitmq:5672 --user gateway --user dispatcher
modelyard rabbitmq urls --broker "127.0.0.1:$port" --user "worker-$here"
shift
for host in "$@"; do
    modelyard rabbitmq urls --broker "$address:$port" --user "worker-$host"
done
if [ ! -e "$secrets/grafana-password" ]; then
    head -c 24 /dev/urandom | base64 > "$secrets/grafana-password"
fi
chmod 0644 "$secrets/rabbitmq-definitions.json" "$secrets/grafana-password" "$secrets"/*.amqp-url

if [ -e "$env_file" ]; then
    echo "setup.sh: kept $env_file as it is"
else
    cat > "$env_file" <<TEXT
# Written by setup.sh; docs/compose.md has all the variables.
COMPOSE_PROJECT_NAME=modelyard
COMPOSE_PROFILES=core
# On a machine with NVIDIA's GPUs: compose.yaml:compose.gpu.yaml
COMPOSE_FILE=compose.yaml
MODELYARD_IMAGES=$images
MODELYARD_VERSION=$version
MODELYARD_HOST_ID=$here
MODELYARD_DOCKER_GROUP=$(stat -L -c %g "$socket")
MODELYARD_DATASETS=/srv/datasets
# As a JSON list; none may run until this is set.
MODELYARD_ALLOWED_IMAGES=[]
# Where Prometheus in its container reaches the worker: the host's address on Docker's bridge.
MODELYARD_WORKER_METRICS_ADDRESS=${bridge:-127.0.0.1}:9183
# Where RabbitMQ listens for workers, and the gateway for clients.
MODELYARD_AMQP_LISTEN=$listen:$port
MODELYARD_GATEWAY_LISTEN=127.0.0.1:8080
TEXT
    echo "setup.sh: wrote $env_file; read it before you start"
fi
