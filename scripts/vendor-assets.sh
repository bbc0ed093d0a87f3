#!/bin/sh
# Bring the console's third-party files from the npm registry, by name and version, checked against the digests below.
# They are committed: a build or a user never runs this. Run it after changing a version here.
# usage: scripts/vendor-assets.sh [--check]   (--check: compare with what is committed, change nothing)
set -eu
cd "$(dirname "$0")/.."
target=hub/src/skerry_hub/console/static/vendor
registry=${NPM_REGISTRY:-https://registry.npmjs.org}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# get NAME VERSION SHA512_BASE64
get() {
    curl -fsSL "$registry/$1/-/$1-$2.tgz" -o "$work/$1.tgz"
    have=$(openssl dgst -sha512 -binary "$work/$1.tgz" | openssl base64 -A)
    if [ "$have" != "$3" ]; then
        echo "cannot use $1 $2: the archive's sha512 is $have, expected $3" >&2
        exit 1
    fi
    mkdir -p "$work/$1" && tar -xzf "$work/$1.tgz" -C "$work/$1" --strip-components=1
}

# place FROM AS: the trailing reference to a source map is cut, since the map is not shipped
place() {
    sed '/^\/\/# sourceMappingURL=/d' "$work/$1" > "$work/placed"
    if [ "${check:-}" ]; then
        cmp "$work/placed" "$target/$2"
    else
        mkdir -p "$target" && cp "$work/placed" "$target/$2"
    fi
}

[ "${1:-}" = "--check" ] && check=1
get htmx.org 4.0.1 oF7JgXhDW9UXCy/k1ZYFUQgzu/rm19ORWPSPNL91vPluB2PB9+MV55tyQdH/w7o2EAbTYUG5SDW1R60mdkdqGg==
get uplot 1.6.32 KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==
place htmx.org/dist/htmx.min.js htmx-4.0.1.min.js
place htmx.org/dist/ext/hx-sse.min.js htmx-sse-4.0.1.min.js
place htmx.org/LICENSE htmx.LICENSE
place uplot/dist/uPlot.iife.min.js uplot-1.6.32.min.js
place uplot/dist/uPlot.min.css uplot-1.6.32.min.css
place uplot/LICENSE uplot.LICENSE
