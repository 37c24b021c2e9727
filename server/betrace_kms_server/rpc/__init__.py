"""gRPC: protobuf in, calls of the core, protobuf out. Nothing below this folder knows what a status code is."""
