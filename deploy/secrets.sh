#!/bin/sh
# Ends with an error while a secret is still an example's, before anything is made with it.
set -eu

named=$(env | sed -n 's/^\([A-Z_]*\)=change-me.*/\1/p' | sort | tr '\n' ' ')
if [ -n "$named" ]; then
    echo "deploy/.env: still change-me: ${named% }. Set secrets of your own (docs/operators.md)." >&2
    exit 1
fi
