#!/usr/bin/env bash
# iksemel 1.4 (Debian 12): a numeric character reference is read as a question mark.
#
# Expected (XML 1.0, section 4.1; RFC 6120, section 11.1 forbids no character references): "&#xe4;" and the letter itself are the same
#   text.
# Seen: "?", without an error.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download --quiet libiksemel-dev=1.4-4 libiksemel3=1.4-4 2>&1 | grep -v ^W: || true
for package in *.deb; do dpkg -x "$package" root; done
lib=$dir/root/usr/lib/$(dpkg-architecture -q DEB_HOST_MULTIARCH 2>/dev/null || echo x86_64-linux-gnu)
export LD_LIBRARY_PATH=$lib

cat >probe.c <<'C'
#include <assert.h>
#include <iksemel.h>
#include <stdio.h>
#include <string.h>

int main(void) {
    int error;
    const char *reference = iks_cdata(iks_child(iks_tree("<a>&#xe4;&#65;</a>", 0, &error)));
    const char *letter = iks_cdata(iks_child(iks_tree("<a>\xc3\xa4""A</a>", 0, &error)));
    printf("by reference: %s\nas it is:     %s\n", reference, letter);
    assert(!strcmp(reference, "??") && !strcmp(letter, "\xc3\xa4""A"));
    return 0;
}
C
cc -w -I root/usr/include probe.c -o probe "$lib/libiksemel.so.3"
./probe
