//! The closing handshake of a socket (RFC 6455 §7.1).

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Error, Message},
};

use super::{close_code::CloseReason, metered_stream::MeteredStream};

/// Bounds the closing handshake.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bounds the closing handshake of a client that does not read. When it reads again, it should find the close code.
const SLOW_CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds the time for which data of a closed socket is read and discarded. Unread data would reset the connection, and
/// the client might lose the close frame.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Bounds that data. Bytes.
const MAX_DRAIN_BYTES: usize = 16 * 1024 * 1024;
const DRAIN_BUFFER_SIZE: usize = 4 * 1024;

/// Sends the close frame, and closes the connection after the client's answer or a timeout.
pub async fn start(ws: &mut WebSocketStream<MeteredStream>, reason: CloseReason) {
    ws.get_ref().grow_send_buffer();
    let close_timeout = if reason == CloseReason::TooSlow { SLOW_CLOSE_TIMEOUT } else { CLOSE_TIMEOUT };
    let handshake = timeout(close_timeout, async {
        ws.send(Message::Close(Some(reason.frame()))).await?;
        while ws.next().await.transpose()?.is_some() {}
        Ok::<(), Error>(())
    });
    let _ = handshake.await;
    // A connection that is dropped with unread data is reset, and the close frame may be lost.
    let tcp = ws.get_mut().tcp();
    let _ = timeout(DRAIN_TIMEOUT, async {
        tcp.shutdown().await?;
        let (mut drained, mut buffer) = (0, vec![0; DRAIN_BUFFER_SIZE]);
        while drained < MAX_DRAIN_BYTES {
            match tcp.read(&mut buffer).await? {
                0 => break,
                read => drained += read,
            }
        }
        Ok::<(), std::io::Error>(())
    })
    .await;
}

/// Answers a close frame of the client.
pub async fn finish(ws: &mut WebSocketStream<MeteredStream>) {
    let _ = timeout(CLOSE_TIMEOUT, async { while let Some(Ok(_)) = ws.next().await {} }).await;
}
