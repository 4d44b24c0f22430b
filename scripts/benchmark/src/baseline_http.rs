//! The HTTP baseline: an axum server with one handler that sends the same bytes.

use std::net::SocketAddr;

use anyhow::Context as _;
use axum::{
    Router,
    http::{HeaderMap, HeaderName, HeaderValue},
    routing::get,
};
use clap::Args;
use tokio::net::TcpListener;

#[derive(Debug, Args)]
pub struct Options {
    #[arg(long)]
    listen: SocketAddr,
    /// The file with the response body
    #[arg(long)]
    body: std::path::PathBuf,
    /// A response header as `name: value`; may be repeated
    #[arg(long)]
    header: Vec<String>,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let body = axum::body::Bytes::from(std::fs::read(options.body)?);
    let mut headers = HeaderMap::new();
    for header in &options.header {
        let (name, value) = header.split_once(": ").context("a header is name: value")?;
        headers.insert(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
    }
    let handler = move || async move { (headers, body) };
    let listener = TcpListener::bind(options.listen).await?;
    axum::serve(
        axum::serve::ListenerExt::tap_io(listener, |stream| drop(stream.set_nodelay(true))),
        Router::new().route("/", get(handler)),
    )
    .await?;
    Ok(())
}
