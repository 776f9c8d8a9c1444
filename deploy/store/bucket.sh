#!/bin/sh
# Creates the bucket, and a user that may only read and write its objects. Running it again changes nothing.
set -eu

mc mb --ignore-existing store/fedloom
mc admin user add store fedloom "$STORE_PASSWORD"
mc admin policy create store fedloom /etc/fedloom/policy.json
# Attaching a policy twice is an error. If the user has it already, it can list the bucket.
mc ls user/fedloom > /dev/null || mc admin policy attach store fedloom --user fedloom
