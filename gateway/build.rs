//! Compresses the script of the documentation's page, which is served as it is kept: see `vendor/README.md`.

use std::{env, error::Error, fs, io::Write as _, path::PathBuf};

use flate2::{Compression, write::GzEncoder};

const SCRIPT: &str = "vendor/scalar/standalone.js";

#[expect(clippy::disallowed_methods, reason = "cargo tells a build script all it knows by environment")]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SCRIPT}");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&fs::read(SCRIPT)?)?;
    fs::write(out.join("scalar.js.gz"), encoder.finish()?)?;
    Ok(())
}
