//! Compresses files into the gateway: the script of the documentation's page, and the files of the storefront.
//! `vendor/README.md` names the packages of others.

use std::{
    env,
    error::Error,
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};

const SCRIPT: &str = "vendor/scalar/standalone.js";
/// The folders of the storefront, and the prefix of their files' names.
const STOREFRONT: [(&str, &str); 5] = [
    ("assets/storefront", ""),
    ("../clients/typescript/dist", "client/"),
    ("vendor/preact", "vendor/preact/"),
    ("vendor/htm", "vendor/htm/"),
    ("vendor/openapi-fetch", "vendor/openapi-fetch/"),
];
const CONTENT_TYPES: [(&str, &str); 5] = [
    ("css", "text/css; charset=utf-8"),
    ("html", "text/html; charset=utf-8"),
    ("js", "text/javascript; charset=utf-8"),
    ("mjs", "text/javascript; charset=utf-8"),
    ("svg", "image/svg+xml"),
];

#[expect(clippy::disallowed_methods, reason = "cargo tells a build script all it knows by environment")]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SCRIPT}");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    compress(Path::new(SCRIPT), &out.join("scalar.js.gz"))?;

    let mut table = String::from("&[\n");
    for (folder, prefix) in STOREFRONT {
        println!("cargo:rerun-if-changed={folder}");
        for file in files(Path::new(folder))? {
            let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            let Some((_, content_type)) = CONTENT_TYPES.iter().find(|(name, _)| *name == extension) else {
                continue;
            };
            let name = format!("{prefix}{}", file.strip_prefix(folder)?.display());
            let compressed = format!("{}.gz", name.replace('/', "-"));
            compress(&file, &out.join(&compressed))?;
            // The table is included from the same folder.
            writeln!(table, "({name:?}, {content_type:?}, include_bytes!({compressed:?})),")?;
        }
    }
    table.push_str("]\n");
    fs::write(out.join("storefront.rs"), table)?;
    Ok(())
}

fn compress(file: &Path, to: &Path) -> std::io::Result<()> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&fs::read(file)?)?;
    fs::write(to, encoder.finish()?)
}

/// Returns the files of a folder and of those below, in the order of their names.
fn files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            paths.extend(files(&path)?);
        } else {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
