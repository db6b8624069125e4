#!/usr/bin/env bash
# Builds a release of the last commit: release.sh OUT KEY
# KEY is the fingerprint of an OpenPGP key that gpg can sign with, or `throwaway` for a rehearsal with a key that is deleted
# afterwards. TARGETS names what to build, by default all of programs.sh.
set -euo pipefail
mkdir -p "$1"
out=$(realpath "$1") key=$2
cd "$(dirname "$0")/../.."
read -r -a targets <<<"${TARGETS:-x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu x86_64-unknown-linux-musl}"
here=deploy/release

# --- what can be wrong is found before hours of building

fail() { echo "error: $*" >&2; exit 1; }
[ -z "$(git status --porcelain)" ] || fail "there are uncommitted changes: a release is built from a commit"
[ -z "$(ls -A "$out")" ] || fail "$out: expected an empty directory"
if [ "$key" = throwaway ]; then
    GNUPGHOME=$(mktemp -d)
    export GNUPGHOME
    trap 'gpgconf --kill all; rm -rf "$GNUPGHOME"' EXIT
    gpg --batch --quiet --passphrase '' --quick-generate-key "Fingerpost rehearsal" ed25519 sign never
    key=$(gpg --batch --with-colons --list-keys | awk -F: '$1 == "fpr" { print $10; exit }')
fi
gpg --batch --list-secret-keys "$key" >/dev/null 2>&1 || fail "gpg has no secret key $key"
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
for file in python/pyproject.toml bindings/Cargo.toml bindings/python/pyproject.toml; do
    grep -qx "version = \"$version\"" "$file" || fail "$file: expected version $version"
done
grep -q "\"version\": \"$version\"" gajim/fingerpost/plugin-manifest.json ||
    fail "gajim/fingerpost/plugin-manifest.json: expected version $version"
[ "$(dpkg-parsechangelog --file deploy/deb/changelog --show-field Version)" = "$version-1" ] ||
    fail "deploy/deb/changelog: expected an entry for $version-1"
if tag=$(git describe --exact-match --tags 2>/dev/null); then
    [ "$tag" = "v$version" ] || fail "the tag $tag is not that of version $version"
    grep -q "^## \[$version\]" CHANGELOG.md || fail "CHANGELOG.md: expected a section for $version"
else
    echo "This is a rehearsal: the commit has no tag v$version"
fi
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

# --- sources

venv=target/release-venv
[ -x $venv/bin/python ] || python3 -m venv $venv
$venv/bin/pip install --quiet --disable-pip-version-check hatchling==1.33.0 --requirement bindings/python/requirements.txt
python=$(realpath -s $venv/bin/python)
$here/source.sh "$out" "$python"
deploy/ci/gajim-plugin.sh "$out/fingerpost-gajim-$version.zip"
command -v cargo-cyclonedx >/dev/null || cargo install --quiet --locked cargo-cyclonedx@0.5.9
$here/sbom.sh "$out/fingerpost-$version.tar.gz" "$out"

# --- programs. The manual pages are the same for all of them, and this machine can run xtask.

files=target/release-files
programs=$($here/programs.sh x86_64-unknown-linux-gnu)
rm -rf "$files"
"$programs/xtask" package "$files"
for target in "${targets[@]}"; do
    programs=$($here/programs.sh "$target")
    case $target in
        x86_64-unknown-linux-gnu) deploy/deb/pack.sh "$programs" "$files" amd64 1 "$out" ;;
        aarch64-unknown-linux-gnu) deploy/deb/pack.sh "$programs" "$files" arm64 1 "$out" ;;
        *-musl) $here/tarball.sh "$programs" "$files" "$target" "$out" ;;
    esac
done
if [ -e "$out/fingerpost_$version-1_amd64.deb" ]; then
    $here/wheel.sh "$out" "$python"
    $here/image.sh "$out/fingerpost_$version-1_amd64.deb" "$out/fingerpost-$version-amd64.oci.tar"
fi

# --- signatures

(cd "$out" && sha256sum -- * >SHA256SUMS.new && mv SHA256SUMS.new SHA256SUMS)
gpg --batch --local-user "$key" --digest-algo SHA512 --armor --detach-sign --output "$out/SHA256SUMS.asc" "$out/SHA256SUMS"
$here/apt.sh "$out/apt" "$key" "$out"/*.deb
ls -l "$out"
