#!/usr/bin/env bash
# Makes an OCI image of a package's programs, without an image registry: image.sh PACKAGE.deb OUT.oci.tar
# Its base is a minimal Debian by debootstrap (deploy/base-image.sh), so it is not the same bytes twice.
set -euo pipefail
package=$(realpath "$1") out=$(realpath -m "$2")
cd "$(dirname "$0")/../.."
. deploy/engine.sh
version=$(dpkg-deb --field "$package" Version)
image=fingerpost:${version%-*}
work=$(mktemp -d)
start_engine "$work"
trap 'stop_engine; rm -rf "$work"' EXIT

base=$(deploy/base-image.sh)
# The Dockerfile takes built programs from target/image; nothing else of this directory is needed.
mkdir -p "$work/context/target/image"
dpkg-deb --fsys-tarfile "$package" | tar -C "$work/context/target/image" --strip-components=3 -x ./usr/bin/fingerpost ./usr/bin/xtls
cp -r deploy "$work/context/"
docker build --quiet --file deploy/Dockerfile --tag "$image" --build-arg BASE="$base" --build-arg RUST="$base" \
    --label org.opencontainers.image.version="${version%-*}" --label org.opencontainers.image.licenses="MIT OR Apache-2.0" \
    "$work/context" >&2
docker save --output "$work/image.tar" "$image"
rm -f "$out"
skopeo --insecure-policy copy --quiet "docker-archive:$work/image.tar" "oci-archive:$out:$image"
