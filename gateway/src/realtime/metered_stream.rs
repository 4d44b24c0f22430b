//! The TCP stream below a socket, with a limit on the rate of incoming frames. The WebSocket layer above does not expose
//! them: it joins fragments and answers pings itself. Reading fails when the rate is exceeded. The stream also bounds the
//! kernel's send buffer.

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

/// Bounds the frames that a client may send within [`WINDOW_MS`]: 20 a second.
const MAX_FRAMES_PER_WINDOW: usize = 20;
/// One second, less the jitter by which the network may compress an even 20 frames a second. Milliseconds.
const WINDOW_MS: u32 = 950;

/// The kernel's send buffer of a socket: some hundred events. By default it grows to megabytes, and hides that the client
/// does not read. Bytes.
const SEND_BUFFER_SIZE: usize = 64 * 1024;

#[derive(Debug)]
pub struct MeteredStream {
    tcp: TcpStream,
    /// Bytes that arrived together with the handshake.
    read_ahead: Bytes,
    frames: FrameCounter,
    rate_limiter: FrameRateLimiter,
    rate_exceeded: bool,
}

impl MeteredStream {
    pub fn new(tcp: TcpStream, read_ahead: Bytes) -> Self {
        let stream = Self {
            tcp,
            read_ahead,
            frames: FrameCounter::default(),
            rate_limiter: FrameRateLimiter::new(Instant::now()),
            rate_exceeded: false,
        };
        stream.set_send_buffer_size(SEND_BUFFER_SIZE);
        stream
    }

    /// Doubles the send buffer, so that the close frame fits behind data that the client has not read.
    pub fn grow_send_buffer(&self) {
        self.set_send_buffer_size(2 * SEND_BUFFER_SIZE);
    }

    fn set_send_buffer_size(&self, bytes: usize) {
        if let Err(error) = SockRef::from(&self.tcp).set_send_buffer_size(bytes) {
            tracing::debug!(%error, "send buffer size not changed");
        }
    }

    /// Reports whether the client exceeded the frame rate.
    pub fn rate_exceeded(&self) -> bool {
        self.rate_exceeded
    }

    /// Returns the TCP stream, to read bytes that are not counted as frames.
    pub fn tcp(&mut self) -> &mut TcpStream {
        &mut self.tcp
    }
}

impl AsyncRead for MeteredStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = if this.read_ahead.is_empty() {
            Pin::new(&mut this.tcp).poll_read(context, buffer)
        } else {
            buffer.put_slice(&this.read_ahead.split_to(this.read_ahead.len().min(buffer.remaining())));
            Poll::Ready(Ok(()))
        };
        if let Poll::Ready(Ok(())) = read {
            let frames = this.frames.count_starts(&buffer.filled()[before..]);
            if frames > 0 && !this.rate_limiter.allow(frames, Instant::now()) {
                this.rate_exceeded = true;
                return Poll::Ready(Err(io::Error::other("too many frames")));
            }
        }
        read
    }
}

impl AsyncWrite for MeteredStream {
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

/// Counts the frames that start in a stream of bytes (RFC 6455 §5.2).
#[derive(Debug, Default)]
struct FrameCounter {
    header: [u8; 14],
    header_len: usize,
    payload_remaining: u64,
}

impl FrameCounter {
    /// Returns the number of frames that start within the next `bytes`.
    fn count_starts(&mut self, mut bytes: &[u8]) -> usize {
        let mut starts = 0;
        while let Some((first, rest)) = bytes.split_first() {
            if self.payload_remaining > 0 {
                let skipped = bytes.len().min(usize::try_from(self.payload_remaining).unwrap_or(usize::MAX));
                self.payload_remaining -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            starts += usize::from(self.header_len == 0);
            self.header[self.header_len] = *first;
            self.header_len += 1;
            bytes = rest;
            if let Some(length) = self.payload_length() {
                self.payload_remaining = length;
                self.header_len = 0;
            }
        }
        starts
    }

    /// Returns the payload's length once the header is complete.
    fn payload_length(&self) -> Option<u64> {
        if self.header_len < 2 {
            return None;
        }
        let masked = self.header[1] & 0x80 != 0;
        let short = self.header[1] & 0x7f;
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let complete = self.header_len == 2 + extended + if masked { 4 } else { 0 };
        complete.then(|| match extended {
            0 => u64::from(short),
            _ => self.header[2..2 + extended].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        })
    }
}

/// A sliding-window rate limiter: the arrival times of the last [`MAX_FRAMES_PER_WINDOW`] frames, in milliseconds since
/// `from`.
#[derive(Debug)]
struct FrameRateLimiter {
    from: Instant,
    arrivals: [u32; MAX_FRAMES_PER_WINDOW],
    next: u8,
    full: bool,
}

impl FrameRateLimiter {
    fn new(from: Instant) -> Self {
        Self { from, arrivals: [0; MAX_FRAMES_PER_WINDOW], next: 0, full: false }
    }

    /// Records `frames` more; returns false if the window does not allow them.
    fn allow(&mut self, frames: usize, now: Instant) -> bool {
        // Wraps after 49 days, which at worst admits one burst.
        #[expect(clippy::cast_possible_truncation, reason = "meant to wrap")]
        let now = now.duration_since(self.from).as_millis() as u32;
        (0..frames.min(MAX_FRAMES_PER_WINDOW + 1)).all(|_| {
            let slot = &mut self.arrivals[usize::from(self.next)];
            let too_soon = self.full && now.wrapping_sub(*slot) < WINDOW_MS;
            *slot = now;
            self.next += 1;
            if usize::from(self.next) == MAX_FRAMES_PER_WINDOW {
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

    /// Builds a masked frame with `payload` bytes.
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
    fn frames_are_counted_at_any_chunk_size() {
        let sizes = [0, 1, 125, 126, 5, 65535, 65536, 0, 0, 300];
        let bytes: Vec<u8> = sizes.iter().flat_map(|size| frame(*size)).collect();
        for cut in [1, 2, 3, 7, 1024, bytes.len()] {
            let mut frames = FrameCounter::default();
            let starts: usize = bytes.chunks(cut).map(|chunk| frames.count_starts(chunk)).sum();
            assert_eq!(starts, sizes.len(), "in pieces of {cut}");
        }
    }

    #[test]
    fn an_unmasked_frame_is_counted() {
        assert_eq!(FrameCounter::default().count_starts(&[0x89, 0x00, 0x89, 0x01, 0xff, 0x89, 0x00]), 3);
    }

    #[test]
    fn twenty_frames_a_second_are_allowed_and_a_burst_of_twenty_one_is_not() {
        let start = Instant::now();
        let mut steady = FrameRateLimiter::new(start);
        assert!((1..200).all(|n| steady.allow(1, start + Duration::from_millis(50 * n))));

        let mut burst = FrameRateLimiter::new(start);
        assert!(burst.allow(20, start));
        assert!(!burst.allow(1, start + Duration::from_millis(500)));

        let mut rested = FrameRateLimiter::new(start);
        assert!(rested.allow(20, start) && rested.allow(20, start + Duration::from_secs(1)));
        assert!(!FrameRateLimiter::new(start).allow(5000, start));
    }
}
