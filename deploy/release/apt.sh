#!/usr/bin/env bash
# Adds packages to an APT repository, which is a directory that any web server can serve:
#   apt.sh DIRECTORY KEY PACKAGE.deb...      KEY is the fingerprint of an OpenPGP key that gpg can sign with
# Packages that are there already stay. Run it on a copy and publish that: clients read a changing repository as an error.
set -euo pipefail
directory=$1 key=$2
shift 2
install -D -m 644 -t "$directory/pool/main/f/fingerpost" "$@"
cd "$directory"
rm -rf dists/stable
archive=(apt-ftparchive -o APT::FTPArchive::MD5=false -o APT::FTPArchive::SHA1=false)
for architecture in amd64 arm64; do
    index=dists/stable/main/binary-$architecture
    mkdir -p "$index"
    "${archive[@]}" --arch "$architecture" packages pool >"$index/Packages"
    gzip -n -9 -k "$index/Packages"
done
"${archive[@]}" -o APT::FTPArchive::Release::Origin=Fingerpost -o APT::FTPArchive::Release::Label=Fingerpost \
    -o APT::FTPArchive::Release::Suite=stable -o APT::FTPArchive::Release::Codename=stable \
    -o APT::FTPArchive::Release::Architectures="amd64 arm64" -o APT::FTPArchive::Release::Components=main \
    release dists/stable >dists/Release
mv dists/Release dists/stable/Release
sign=(gpg --batch --yes --local-user "$key" --digest-algo SHA512)
"${sign[@]}" --clear-sign --output dists/stable/InRelease dists/stable/Release
"${sign[@]}" --armor --detach-sign --output dists/stable/Release.gpg dists/stable/Release
# What `signed-by` names.
gpg --batch --yes --export-options export-minimal --output fingerpost-archive-keyring.gpg --export "$key"
