//! Compiles the .proto files with protox, so that building needs no protoc on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/data.proto",
        "proto/registry.proto",
        "proto/control.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .extern_path(".mortar.Gfid", "::mortar_common::Gfid")
        .bytes(".mortar.data")
        // The registry's messages are also what `--json` prints and what the Raft log holds.
        .type_attribute(
            ".mortar.registry",
            "#[derive(serde::Serialize, serde::Deserialize)]",
        )
        // A log or snapshot written before a field existed stays readable.
        .message_attribute(".mortar.registry", "#[serde(default)]")
        .compile_fds(descriptors)?;
    Ok(())
}
