#!/bin/sh
# Makes the bucket, and the user that may read and write its objects and nothing else. Run again, it changes nothing.
set -eu

mc mb --ignore-existing store/fedloom
mc admin user add store fedloom "$STORE_PASSWORD"
mc admin policy create store fedloom /etc/fedloom/policy.json
# A policy that the user has already cannot be attached again; then the user can list the bucket.
mc ls user/fedloom > /dev/null || mc admin policy attach store fedloom --user fedloom
