//! Unpacks the two files of Swagger UI that the documentation's page needs, as they are and compressed: nothing is
//! fetched, not here and not by the browser.

use std::{
    borrow::Cow,
    env,
    error::Error,
    fs,
    io::{Cursor, Read as _, Write as _},
    path::PathBuf,
};

use flate2::{Compression, write::GzEncoder};
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;

const FILES: [&str; 2] = ["swagger-ui.css", "swagger-ui-bundle.js"];

#[expect(clippy::disallowed_methods, reason = "cargo tells a build script all it knows by environment")]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut archive = zip::ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED))?;
    for name in FILES {
        let place = format!("/dist/{name}");
        let path = archive
            .file_names()
            .filter_map(Result::ok)
            .find(|path| path.ends_with(&place))
            .map(Cow::into_owned)
            .ok_or_else(|| format!("Swagger UI has no {name}"))?;
        let mut content = Vec::new();
        archive.by_name(&path)?.read_to_end(&mut content)?;
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&content)?;
        fs::write(out.join(format!("{name}.gz")), encoder.finish()?)?;
        fs::write(out.join(name), content)?;
    }
    Ok(())
}
