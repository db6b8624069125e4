# Sourced by the scripts that use containers: finds a container engine and compose, or says what is missing.
#   start_engine   starts dockerd where none answers and that is possible; ends the script with a cure where not
#   compose ARGS   docker compose, whichever of its two forms is installed

start_engine() {
    command -v docker >/dev/null || { echo "error: docker is not installed: apt install docker.io" >&2; exit 1; }
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

compose() {
    if docker compose version >/dev/null 2>&1; then
        docker compose "$@"
    elif command -v docker-compose >/dev/null; then
        docker-compose "$@"
    else
        echo "error: neither docker compose nor docker-compose is installed: apt install docker-compose" >&2
        return 1
    fi
}
