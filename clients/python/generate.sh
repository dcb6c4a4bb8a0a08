#!/usr/bin/env bash
# Generates the messages of headwater.v1 into the folder $1 (src when not given) with the Python $PYTHON, which has grpcio-tools.
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-src}
"${PYTHON:-python3}" -m grpc_tools.protoc -I ../../proto --python_out="$out" --pyi_out="$out" \
  headwater/v1/coordinator.proto headwater/v1/session.proto headwater/v1/worker.proto
