//! The connection preface of HTTP/2 (RFC 9113 §3.4), read before the server gets the connection. hyper bounds the time of a
//! connection only once its preface is there.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection whose first bytes are already read.
#[derive(Debug)]
pub(crate) struct Prefaced<S> {
    stream: S,
    /// The bytes that are read, and not yet handed on.
    first: Vec<u8>,
}

/// Waits until the peer has sent its preface, or other bytes, which the server refuses. Returns an error if the peer
/// closes before.
pub(crate) async fn read_preface<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<Prefaced<S>> {
    let mut first = Vec::with_capacity(PREFACE.len());
    while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
        let missing = PREFACE.len() - first.len();
        if (&mut stream).take(missing as u64).read_buf(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Prefaced { stream, first })
}

impl<S: Connected> Connected for Prefaced<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefaced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first[..length]);
        self.first.drain(..length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefaced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn the_preface_is_awaited_in_pieces_and_handed_on() {
        let (mut client, server) = tokio::io::duplex(64);
        let read = tokio::spawn(read_preface(server));
        for byte in PREFACE {
            assert!(!read.is_finished());
            client.write_all(&[*byte]).await.unwrap();
        }
        let mut server = read.await.unwrap().unwrap();
        client.write_all(b"SETTINGS").await.unwrap();
        drop(client);
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, [PREFACE.as_slice(), b"SETTINGS"].concat());
    }

    #[tokio::test]
    async fn other_bytes_are_handed_on_and_an_early_end_is_an_error() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"GET").await.unwrap();
        let mut server = read_preface(server).await.unwrap();
        let mut received = [0; 3];
        server.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"GET");

        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"PRI").await.unwrap();
        drop(client);
        assert_eq!(read_preface(server).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
