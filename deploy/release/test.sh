#!/usr/bin/env bash
# Checks a release as its users do, as root on amd64: test.sh RELEASE
# It verifies the signatures, runs the programs of each kind, and installs the package by apt in a container, from a directory and
# from a web server on loopback. What was changed by others must be refused.
set -euo pipefail
release=$(realpath "$1")
cd "$(dirname "$0")/../.."
. deploy/engine.sh
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
name=fingerpost-release-test-$$
work=$(mktemp -d)
server=
start_engine target
finish() {
    status=$?
    trap - EXIT
    [ -z "$server" ] || kill "$server"
    docker rm -f $name >/dev/null 2>&1 || true
    stop_engine
    rm -rf "$work"
    exit $status
}
trap finish EXIT
trap 'exit 1' TERM INT
ok() { echo "ok      $*"; }
fail() { echo "error: $*" >&2; exit 1; }
keyring=$release/apt/fingerpost-archive-keyring.gpg

# --- signatures

verify() { (cd "$1" && gpgv --quiet --keyring "$keyring" SHA256SUMS.asc SHA256SUMS && sha256sum --quiet --check SHA256SUMS) >"$work/log" 2>&1; }
verify "$release" || { cat "$work/log"; fail "the release does not verify"; }
for file in "$release"/*; do
    case ${file##*/} in apt | SHA256SUMS*) continue ;; esac
    grep -q "  ${file##*/}\$" "$release/SHA256SUMS" || fail "SHA256SUMS: expected ${file##*/}"
done
mkdir "$work/changed"
cp "$release"/* "$work/changed/" 2>/dev/null || true
printf x >>"$work/changed/fingerpost-$version.tar.gz"
! verify "$work/changed" || fail "a changed file verifies"
(cd "$work/changed" && sha256sum -- *.deb *.gz *.whl *.zip *.json >SHA256SUMS)
! verify "$work/changed" || fail "changed sums verify"
rm -r "$work/changed"
ok "SHA256SUMS and its signature; a changed file and changed sums are refused"

# --- programs

tarball=$release/fingerpost-$version-x86_64-unknown-linux-musl.tar.gz
# A directory without any library is the whole system that they see.
mkdir "$work/bare"
tar -C "$work/bare" --strip-components=1 -xzf "$tarball"
for program in fingerpost xtls; do
    [ "$(chroot "$work/bare" "/$program" --version)" = "$program $version" ] || fail "$program: another version"
done
smoke() {
    # Reads a configuration, makes a database and asks it.
    cat >"$1/fingerpost.toml" <<TOML
[component]
jid = "xtls.example.org"
secret = "a secret"
[database]
url = "sqlite:$2/fingerpost.db"
TOML
    shift 2
    "$@" migrate --config fingerpost.toml >"$work/log" 2>&1 && "$@" keys list --config fingerpost.toml >>"$work/log" 2>&1
}
(cd "$work/bare" && smoke . '' chroot . /fingerpost) || { cat "$work/log"; fail "the static fingerpost does not run"; }
[ -s "$work/bare/fingerpost.db" ] || fail "the static fingerpost made no database"
ok "static programs: version, configuration and database, in an empty chroot"

arm=$release/fingerpost_$version-1_arm64.deb
dpkg-deb --extract "$arm" "$work/arm64"
[ "$(dpkg-deb --field "$arm" Architecture)" = arm64 ]
for program in fingerpost xtls; do
    [ "$(qemu-aarch64-static "$work/arm64/usr/bin/$program" --version)" = "$program $version" ] || fail "$program: another version"
done
mkdir "$work/arm64-data"
(cd "$work/arm64-data" && smoke . "$PWD" qemu-aarch64-static "$work/arm64/usr/bin/fingerpost") ||
    { cat "$work/log"; fail "fingerpost for arm64 does not run"; }
[ -s "$work/arm64-data/fingerpost.db" ] || fail "fingerpost for arm64 made no database"
ok "programs for arm64 under qemu: version, configuration and database"

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-index --no-deps "$release"/*.whl
"$work/venv/bin/python" - "$version" <<'PYTHON'
import asyncio
import importlib.metadata
import sys

import fingerpost

for package in ("fingerpost-slixmpp", "fingerpost"):
    assert importlib.metadata.version(package) == sys.argv[1], package
try:
    asyncio.run(fingerpost.login("alice@localhost", "a password", "xtls.localhost", server="127.0.0.1:1"))
except fingerpost.LoginError as error:
    print("        without a server:", error)
else:
    sys.exit("a login without a server")
PYTHON
ok "the wheels"

"$work/venv/bin/python" - "$release/fingerpost-gajim-$version.zip" "$version" <<'PYTHON'
import json
import sys
import zipfile

archive = zipfile.ZipFile(sys.argv[1])
assert json.loads(archive.read("fingerpost/plugin-manifest.json"))["version"] == sys.argv[2]
assert archive.testzip() is None and "fingerpost/fingerpost_core/__init__.py" in archive.namelist()
PYTHON
ok "the plugin for Gajim"

python3 - "$release/fingerpost-$version.cdx.json" "$release/xtls-$version.cdx.json" <<'PYTHON'
import json
import sys

for path in sys.argv[1:]:
    with open(path) as file:
        bom = json.load(file)
    names = {component["name"] for component in bom["components"]}
    assert bom["bomFormat"] == "CycloneDX" and {"rustls", "aws-lc-sys", "tokio"} <= names, path
    assert "/tmp" not in json.dumps(bom), path
    print(f"        {path.rsplit('/')[-1]}: {len(names)} components")
PYTHON
ok "the bills of materials"

skopeo --insecure-policy copy --quiet "oci-archive:$release/fingerpost-$version-amd64.oci.tar" "docker-archive:$work/image.tar:$name:test"
docker load --quiet --input "$work/image.tar" >/dev/null
[ "$(docker run --rm --network none --entrypoint fingerpost "$name:test" --version)" = "fingerpost $version" ] || fail "the image: another version"
# Nothing of its own system can be written, and it is not root.
run=(docker run --rm --network none --read-only --cap-drop ALL --tmpfs /tmp)
[ "$("${run[@]}" --entrypoint id "$name:test" -u)" != 0 ] || fail "the image runs as root"
"${run[@]}" "$name:test" config >"$work/log" 2>&1 || { cat "$work/log"; fail "the image does not run with a system that is read-only"; }
docker image rm --force "$name:test" >/dev/null
ok "the image; it is not root, and runs with a read-only system"

# --- the repository

base=$(deploy/base-image.sh)
cp -r "$release/apt" "$work/apt"
: >"$work/http.log"
(cd "$work" && exec python3 -u -m http.server --bind 127.0.0.1 0) >"$work/http.log" 2>&1 &
server=$!
until port=$(grep -o 'port [0-9]*' "$work/http.log"); do kill -0 $server || fail "no web server"; sleep 0.1; done
# The network is this machine's, for Debian's own archive and for the web server.
docker run --detach --name $name --network host --volume "$work/apt:/repository" "$base" sleep infinity >/dev/null
on() { docker exec "$@" </dev/null >"$work/log" 2>&1 || { tail -20 "$work/log"; return 1; }; }
on $name apt-get update -qq
on $name cp /repository/fingerpost-archive-keyring.gpg /usr/share/keyrings/
# Only this repository: what fails is then its failure.
ours=(-o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::SourceList=/etc/apt/fingerpost.list -o APT::Get::List-Cleanup=false)
source_list() { on $name sh -c "echo 'deb [signed-by=/usr/share/keyrings/fingerpost-archive-keyring.gpg] $1 stable main' >/etc/apt/fingerpost.list"; }
update() { on $name apt-get "${ours[@]}" -o APT::Update::Error-Mode=any update; }
for url in file:///repository "http://127.0.0.1:${port#port }/apt"; do
    source_list "$url"
    update
    on $name sh -c 'cat /etc/apt/fingerpost.list >/etc/apt/sources.list.d/fingerpost.list'
    on $name env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends fingerpost
    [ "$(docker exec $name fingerpost --version)" = "fingerpost $version" ] || fail "apt installed another version"
    on $name apt-get purge -qq fingerpost
    on $name rm /etc/apt/sources.list.d/fingerpost.list
    on $name apt-get clean
    ok "apt installs it from ${url%%:*}"
done

# What somebody without the key could publish.
source_list file:///repository
refused() {
    if "$@" >/dev/null 2>&1; then fail "apt accepts $what"; fi
    ok "apt refuses $what: $(grep -m 1 -E '^(E|W|Err)' "$work/log" | cut -c1-100)"
}
what="a changed index"
sed -i 's/^Description:/Description: changed,/' "$work/apt/dists/stable/main/binary-amd64/Packages"
gzip -n -9 -kf "$work/apt/dists/stable/main/binary-amd64/Packages"
on $name sh -c 'rm -rf /var/lib/apt/lists/*repository*'
refused update
what="a changed Release"
sed -i 's/^Suite: stable/Suite: changed/' "$work/apt/dists/stable/InRelease"
refused update
what="a changed package"
cp -r "$release/apt/." "$work/apt/"
update
printf x >>"$work/apt/pool/main/f/fingerpost/fingerpost_$version-1_amd64.deb"
refused on $name apt-get "${ours[@]}" install --download-only -qq -y --no-install-recommends fingerpost
what="the signature of another key"
export GNUPGHOME=$work/gnupg
mkdir -m 700 "$GNUPGHOME"
gpg --batch --quiet --passphrase '' --quick-generate-key "another" ed25519 sign never
another=$(gpg --batch --with-colons --list-keys another | awk -F: '$1 == "fpr" { print $10; exit }')
deploy/release/apt.sh "$work/apt" "$another" "$release/fingerpost_$version-1_amd64.deb" 2>/dev/null
gpgconf --kill all
refused update
echo "all passed"
