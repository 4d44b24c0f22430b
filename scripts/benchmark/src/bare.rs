//! The limit: axum with one handler that answers the same bytes, and nothing else.

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
    /// Where the body of the answer stands
    #[arg(long)]
    answer: std::path::PathBuf,
    /// `name: value`, as often as the answer has one
    #[arg(long)]
    header: Vec<String>,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let body = axum::body::Bytes::from(std::fs::read(options.answer)?);
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
