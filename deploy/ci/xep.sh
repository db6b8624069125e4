#!/usr/bin/env bash
# Validates the proposals for XEPs with the XSF's document type and renders them with its style sheet:
#   xep.sh XEPS OUT
# XEPS is a checkout of github.com/xsf/xeps, whose files are not part of this repository. The pages go to the directory OUT.
set -euo pipefail

xeps=$1
out=$2
mkdir -p "$out"
for name in xep.dtd xep.ent xep.xsl; do
    cp "$xeps/$name" "$out"
done
for file in docs/xep/*.xml; do
    cp "$file" "$out"
    name=$(basename "$file" .xml)
    xmllint --nonet --noout --noent --loaddtd --valid "$out/$name.xml"
    xsltproc --nonet "$out/xep.xsl" "$out/$name.xml" > "$out/$name.html"
    echo "$file is valid; the page is $out/$name.html"
done
