#!/bin/sh
# Writes kmsv1/, the stubs, from the .proto files: needs protoc; the plugins are those of go.mod.
set -eu
cd "$(dirname "$0")"
bin="$PWD/.bin"
go build -o "$bin/" google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
module=betrace.dev/kms/example
files="betrace/kms/v1/key_management.proto betrace/kms/v1/span.proto"
options="module=$module"
for file in $files; do options="$options,M$file=$module/kmsv1"; done
PATH="$bin:$PATH" protoc -I ../../protos --go_out=. --go_opt="$options" --go-grpc_out=. --go-grpc_opt="$options" $files
