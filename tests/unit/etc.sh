#!/bin/bash
# SPDX-License-Identifier: MIT
# The man page, the ini file and the systemd unit know the settings that the program knows.
# usage: etc.sh FLUXFS ETC-FOLDER UNIT
set -u
fluxfs=$(realpath "$1") etc=$2 unit=$3
failures=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

fail() {
    echo "$*" >&2
    failures=$((failures + 1))
}

keys=$("$fluxfs" --help | sed -n '/^Settings/,/^$/s/^  \([a-z_]*\)  *.*/\1/p')
[ "$(echo "$keys" | wc -l)" -ge 20 ] || fail "--help lists only: $keys"
for key in $keys; do
    grep -q "^;$key = " "$etc/fluxfs.ini" || fail "fluxfs.ini lacks $key"
    grep -q "^\.It .*Cm.*\<$key\>" "$etc/fluxfs.1" || fail "fluxfs.1 lacks $key"
done

# Every line of the ini file, taken for real: the refusal that comes is of the mountpoint.
sed -n 's/^;\([a-z_]* = \)/\1/p; /^\[/p' "$etc/fluxfs.ini" >"$scratch/all.ini"
[ "$(grep -c = "$scratch/all.ini")" = "$(echo "$keys" | wc -l)" ] ||
    fail "fluxfs.ini has other keys than --help"
for file in "$scratch/all.ini" "$etc/fluxfs.ini"; do
    said=$("$fluxfs" --config "$file" --model "$etc/mini" "$scratch/no/such/folder" 2>&1)
    case $said in
    *"$scratch/no/such/folder: No such file"*) ;;
    *) fail "$file: $said" ;;
    esac
done

if command -v man >/dev/null; then
    said=$(MANROFFSEQ='' MANWIDTH=80 man --warnings -E UTF-8 -l "$etc/fluxfs.1" 2>&1 >/dev/null)
    [ -z "$said" ] || fail "fluxfs.1: $said"
fi

# verify wants the program to exist: this one does.
if command -v systemd-analyze >/dev/null; then
    sed "s|^ExecStart=[^ ]*|ExecStart=$fluxfs|" "$unit" >"$scratch/fluxfs@.service"
    said=$(SYSTEMD_LOG_LEVEL=warning systemd-analyze verify --man=no \
        "$scratch/fluxfs@.service" 2>&1) || fail "systemd-analyze: $said"
    [ -z "$said" ] || fail "systemd-analyze: $said"
fi
[ "$failures" = 0 ]
