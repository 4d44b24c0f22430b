//! The limit: axum with one handler that answers the same bytes, and nothing else.

use std::net::SocketAddr;

use axum::{Router, http::header::CONTENT_TYPE, routing::get};
use clap::Args;
use tokio::net::TcpListener;

#[derive(Debug, Args)]
pub struct Options {
    #[arg(long)]
    listen: SocketAddr,
    /// Where the answer stands
    #[arg(long)]
    answer: std::path::PathBuf,
    #[arg(long)]
    content_type: String,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let body = axum::body::Bytes::from(std::fs::read(options.answer)?);
    let handler = move || async move { ([(CONTENT_TYPE, options.content_type)], body) };
    let listener = TcpListener::bind(options.listen).await?;
    axum::serve(
        axum::serve::ListenerExt::tap_io(listener, |stream| drop(stream.set_nodelay(true))),
        Router::new().route("/", get(handler)),
    )
    .await?;
    Ok(())
}
