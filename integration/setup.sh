#!/bin/sh
# Installs what the demo and the tests need and this machine lacks, and nothing when it lacks nothing.
# Only on Debian and Ubuntu, only through apt; elsewhere it says what is missing.
set -eu

# The network tools live here, and an ordinary user's PATH often does not.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
missing=

need() { # program package...
    program=$1
    shift
    command -v "$program" >/dev/null 2>&1 || missing="$missing $*"
}

need ip iproute2
need nft nftables
need iptables-nft-restore iptables
need iptables-legacy-restore iptables
need ethtool ethtool
need strace strace
need sysctl procps
need cc gcc libc6-dev
# A compiler without the headers of the C library compiles nothing.
if command -v cc >/dev/null 2>&1 && ! echo '#include <linux/if_tun.h>' | cc -E - >/dev/null 2>&1; then
    missing="$missing libc6-dev"
fi

if ! command -v cargo >/dev/null 2>&1; then
    echo "setup: Rust is missing: install it with rustup, or put cargo on PATH" >&2
    exit 1
fi

[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "setup: this is neither Debian nor Ubuntu; please install what these packages hold:$missing" >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    root=
elif command -v sudo >/dev/null 2>&1; then
    root=sudo
else
    echo "setup: as root, please run: apt-get install$missing" >&2
    exit 1
fi
echo "setup: installing$missing"
export DEBIAN_FRONTEND="${DEBIAN_FRONTEND:-noninteractive}"
$root apt-get update -qq
# Word splitting is wanted: one package each.
# shellcheck disable=SC2086
$root apt-get install -y -qq --no-install-recommends $missing >/dev/null
