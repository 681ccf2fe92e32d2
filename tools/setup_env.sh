#!/usr/bin/env bash
# Moved to tools/env/setup_env.sh; this file goes with 0.3.
exec "$(dirname "$0")/env/setup_env.sh" "$@"
