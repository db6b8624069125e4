#!/usr/bin/env bash
# iksemel 1.4 (Debian 12): an entity reference in an attribute is not resolved, and is escaped once more when it is written.
#
# Expected (XML 1.0, section 3.3.3; RFC 6120, section 11.1 lets stanzas have the five predefined entities): a='R&amp;D' has the
#   value R&D, and is written as a='R&amp;D' again.
# Seen: the value is "R&amp;D", and it is written as "R&amp;amp;D". Text between tags is right. So each hop that is built
#   on it lengthens a name or a resource with "&", "<" or a quote.
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
    iks *x = iks_tree("<a name='R&amp;D'>R&amp;D</a>", 0, &error);
    const char *value = iks_find_attrib(x, "name"), *text = iks_cdata(iks_child(x));
    const char *again = iks_string(iks_stack(x), x);
    printf("attribute: %s\ntext:      %s\nwritten:   %s\n", value, text, again);
    assert(!strcmp(value, "R&amp;D") && !strcmp(text, "R&D"));
    assert(!strcmp(again, "<a name='R&amp;amp;D'>R&amp;D</a>"));
    return 0;
}
C
cc -w -I root/usr/include probe.c -o probe "$lib/libiksemel.so.3"
./probe
