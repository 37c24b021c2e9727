//! Writes the stubs from the .proto files: needs protoc, at $PROTOC or on the PATH.

fn main() -> std::io::Result<()> {
    let root = "../../protos";
    tonic_prost_build::configure().build_server(false).compile_protos(
        &[format!("{root}/betrace/kms/v1/key_management.proto")],
        &[root.to_string()],
    )
}
