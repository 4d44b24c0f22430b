//! The connection under a socket: counts the frames that come in, which the WebSocket layer above does not
//! tell (it puts fragments together and answers pings by itself), and ends the reading when there are too
//! many. What waits in the kernel to be read by the client is bounded here too.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};

/// Frames a client may send within [`WINDOW_MS`] (contract §4: 20 a second).
const FRAMES: usize = 20;
/// A second, less what the network may push together of frames that were sent at an even 20 a second.
const WINDOW_MS: u32 = 950;

/// What the kernel keeps of what a client has not read: some hundred events. By itself it would keep
/// megabytes for each, and hide from us that nobody is reading. Bytes.
const UNREAD: usize = 64 * 1024;

#[derive(Debug)]
pub struct Wire {
    tcp: TcpStream,
    /// What came with the handshake.
    early: Bytes,
    frames: Frames,
    pace: Pace,
    flooded: bool,
}

impl Wire {
    pub fn new(tcp: TcpStream, early: Bytes) -> Self {
        let wire =
            Self { tcp, early, frames: Frames::default(), pace: Pace::new(Instant::now()), flooded: false };
        wire.keep(UNREAD);
        wire
    }

    /// Makes room for our last words, however much the client has left unread: it will find them when it
    /// reads on.
    pub fn make_room(&self) {
        self.keep(2 * UNREAD);
    }

    fn keep(&self, bytes: usize) {
        if let Err(error) = SockRef::from(&self.tcp).set_send_buffer_size(bytes) {
            tracing::debug!(%error, "the send buffer stays as it is");
        }
    }

    /// Whether the client sent more frames than it may.
    pub fn flooded(&self) -> bool {
        self.flooded
    }

    /// The connection itself, for what is not read as frames any more.
    pub fn tcp(&mut self) -> &mut TcpStream {
        &mut self.tcp
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = if this.early.is_empty() {
            Pin::new(&mut this.tcp).poll_read(context, buffer)
        } else {
            buffer.put_slice(&this.early.split_to(this.early.len().min(buffer.remaining())));
            Poll::Ready(Ok(()))
        };
        if let Poll::Ready(Ok(())) = read {
            let frames = this.frames.begun(&buffer.filled()[before..]);
            if frames > 0 && !this.pace.keeps(frames, Instant::now()) {
                this.flooded = true;
                return Poll::Ready(Err(io::Error::other("too many frames")));
            }
        }
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(context)
    }
}

/// Where frames begin in a stream of bytes (RFC 6455 §5.2).
#[derive(Debug, Default)]
struct Frames {
    header: [u8; 14],
    have: usize,
    payload_left: u64,
}

impl Frames {
    /// How many frames begin within the next `bytes`.
    fn begun(&mut self, mut bytes: &[u8]) -> usize {
        let mut begun = 0;
        while let Some((first, rest)) = bytes.split_first() {
            if self.payload_left > 0 {
                let skipped = bytes.len().min(usize::try_from(self.payload_left).unwrap_or(usize::MAX));
                self.payload_left -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            begun += usize::from(self.have == 0);
            self.header[self.have] = *first;
            self.have += 1;
            bytes = rest;
            if let Some(length) = self.length() {
                self.payload_left = length;
                self.have = 0;
            }
        }
        begun
    }

    /// The payload's length, once the header is complete.
    fn length(&self) -> Option<u64> {
        if self.have < 2 {
            return None;
        }
        let masked = self.header[1] & 0x80 != 0;
        let short = self.header[1] & 0x7f;
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let complete = self.have == 2 + extended + if masked { 4 } else { 0 };
        complete.then(|| match extended {
            0 => u64::from(short),
            _ => self.header[2..2 + extended].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        })
    }
}

/// When the last [`FRAMES`] frames came, in milliseconds since `from`.
#[derive(Debug)]
struct Pace {
    from: Instant,
    at: [u32; FRAMES],
    next: u8,
    full: bool,
}

impl Pace {
    fn new(from: Instant) -> Self {
        Self { from, at: [0; FRAMES], next: 0, full: false }
    }

    /// Notes `frames` more; false when these are more than the window allows.
    fn keeps(&mut self, frames: usize, now: Instant) -> bool {
        // Wraps after 49 days, which at worst forgives once.
        #[expect(clippy::cast_possible_truncation, reason = "meant to wrap")]
        let now = now.duration_since(self.from).as_millis() as u32;
        (0..frames.min(FRAMES + 1)).all(|_| {
            let slot = &mut self.at[usize::from(self.next)];
            let too_soon = self.full && now.wrapping_sub(*slot) < WINDOW_MS;
            *slot = now;
            self.next += 1;
            if usize::from(self.next) == FRAMES {
                self.next = 0;
                self.full = true;
            }
            !too_soon
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A masked frame with a payload of so many bytes.
    fn frame(payload: usize) -> Vec<u8> {
        let mut bytes = vec![0x81];
        match payload {
            0..126 => bytes.push(0x80 | u8::try_from(payload).unwrap()),
            126..65536 => {
                bytes.push(0x80 | 0x7e);
                bytes.extend(u16::try_from(payload).unwrap().to_be_bytes());
            }
            _ => {
                bytes.push(0x80 | 0x7f);
                bytes.extend((payload as u64).to_be_bytes());
            }
        }
        bytes.extend([1, 2, 3, 4]);
        bytes.resize(bytes.len() + payload, 0xff);
        bytes
    }

    #[test]
    fn frames_are_counted_however_the_bytes_are_cut() {
        let sizes = [0, 1, 125, 126, 5, 65535, 65536, 0, 0, 300];
        let bytes: Vec<u8> = sizes.iter().flat_map(|size| frame(*size)).collect();
        for cut in [1, 2, 3, 7, 1024, bytes.len()] {
            let mut frames = Frames::default();
            let begun: usize = bytes.chunks(cut).map(|chunk| frames.begun(chunk)).sum();
            assert_eq!(begun, sizes.len(), "in pieces of {cut}");
        }
    }

    #[test]
    fn an_unmasked_frame_is_counted_too() {
        assert_eq!(Frames::default().begun(&[0x89, 0x00, 0x89, 0x01, 0xff, 0x89, 0x00]), 3);
    }

    #[test]
    fn twenty_a_second_may_go_on_for_ever_and_twenty_one_at_once_may_not() {
        let start = Instant::now();
        let mut steady = Pace::new(start);
        assert!((1..200).all(|n| steady.keeps(1, start + Duration::from_millis(50 * n))));

        let mut burst = Pace::new(start);
        assert!(burst.keeps(20, start));
        assert!(!burst.keeps(1, start + Duration::from_millis(500)));

        let mut rested = Pace::new(start);
        assert!(rested.keeps(20, start) && rested.keeps(20, start + Duration::from_secs(1)));
        assert!(!Pace::new(start).keeps(5000, start));
    }
}
