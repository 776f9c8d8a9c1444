#!/bin/sh
# Exits with an error if a secret is still a placeholder, before any service uses it.
set -eu

placeholders=$(env | sed -n 's/^\([A-Z_]*\)=change-me.*/\1/p' | sort | tr '\n' ' ')
if [ -n "$placeholders" ]; then
    echo "deploy/.env: still change-me: ${placeholders% }. Set secrets of your own (docs/operators.md)." >&2
    exit 1
fi
