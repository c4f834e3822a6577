//! Compiles `schema/` with protox: no system `protoc` is needed.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["identity", "watch", "raft", "fleet", "routing", "configuration", "operator"]
        .map(|name| format!("causeway/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["schema"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed=schema");
    Ok(())
}
