# Sourced by the scripts that use containers: finds a container engine and compose, or says what is missing.
#   find_compose        chooses compose, and the engine with it: what FINGERPOST_COMPOSE says, or else the first that works
#                       of "docker compose", docker-compose and podman-compose
#   compose ARGS        that compose, for the test environment
#   compose_down        takes the test environment down
#   container SERVICE   the container of that service in the test environment
#   start_engine LOGS   starts dockerd if it is needed and does not answer; ends the script with a cure if that fails
# "$engine" is docker or podman. Their commands are the same where those of the composes are not.

export engine=${engine:-docker}
project=fingerpost-test

find_compose() {
    local candidates=("docker compose" docker-compose podman-compose)
    [ -z "${FINGERPOST_COMPOSE:-}" ] || candidates=("$FINGERPOST_COMPOSE")
    for FINGERPOST_COMPOSE in "${candidates[@]}"; do
        $FINGERPOST_COMPOSE version >/dev/null 2>&1 || continue
        case $FINGERPOST_COMPOSE in
        # An image in podman's own format has no health check.
        *podman*) export engine=podman BUILDAH_FORMAT=docker ;;
        esac
        return
    done
    printf 'error: does not work or is not installed: %s\n' "${candidates[@]}" >&2
    echo "hint: apt install docker-compose or podman-compose" >&2
    exit 1
}

# Not every compose takes the project's name from the environment.
compose() { $FINGERPOST_COMPOSE -p $project "$@"; }

compose_down() {
    compose down --volumes --timeout 2 || return
    # podman-compose 1.0.3 leaves the network.
    $engine network rm ${project}_xmpp >/dev/null 2>&1 || true
}

container() {
    $engine ps --all --quiet --filter label=com.docker.compose.project=$project --filter "label=com.docker.compose.service=$1"
}

start_engine() {
    command -v "$engine" >/dev/null || { echo "error: $engine is not installed: apt install docker.io or podman" >&2; exit 1; }
    if [ "$engine" = podman ]; then
        podman info >/dev/null || exit 1
        return
    fi
    docker info >/dev/null 2>&1 && return
    if [ "$(id -u)" -ne 0 ] || ! command -v dockerd >/dev/null; then
        echo "error: no container engine answers: start it (systemctl start docker), and be root or in the group docker" >&2
        exit 1
    fi
    echo "Starting dockerd; its log is ${1:-/tmp}/dockerd.log"
    mkdir -p "${1:-/tmp}"
    dockerd >"${1:-/tmp}/dockerd.log" 2>&1 </dev/null &
    engine_pid=$!
    for _ in $(seq 60); do
        docker info >/dev/null 2>&1 && return
        kill -0 "$engine_pid" 2>/dev/null || break
        sleep 0.5
    done
    tail -5 "${1:-/tmp}/dockerd.log" >&2
    echo "error: dockerd did not start" >&2
    exit 1
}

# The engine that start_engine has started ends with the script that wanted it.
stop_engine() {
    [ -z "${engine_pid:-}" ] || { kill "$engine_pid" && wait "$engine_pid"; } 2>/dev/null || true
}
