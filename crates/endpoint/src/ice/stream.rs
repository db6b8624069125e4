//! The connection that ICE has selected, as a stream of the application's bytes.
//!
//! The bytes go in frames ([`frames`](super::frames)). Checks of the peer still come between them, and are answered.

use std::{
    fmt,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use fingerpost_carry::leg_end::LegEnd;
use fingerpost_wire::ice::Credentials;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    frames::{Frames, HEADER, Next, framed},
    message::{Check, Class},
};
use crate::unwritten::{Unwritten, poll_into};

/// The longest frame that is written, in bytes. A length has 16 bits, but some programs read frames into buffers of this size.
const FRAME: usize = 8192;
/// The most bytes of the application that wait for the kernel.
const MOST: usize = 64 * 1024;
/// The most bytes that wait when a check is answered. A peer that does not read gets no more answers.
const MOST_ANSWERS: usize = 2 * MOST;
/// A read of fewer bytes goes through the buffer.
const DIRECT: usize = 2048;

/// A connection in frames.
pub(crate) struct IceStream {
    stream: TcpStream,
    remote: SocketAddr,
    /// The credentials with which checks are answered.
    own: Credentials,
    frames: Frames,
    /// What the peer had sent before the connection was selected, and how much of it was read.
    early: Vec<u8>,
    taken: usize,
    unwritten: Unwritten,
}

impl fmt::Debug for IceStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IceStream").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl IceStream {
    pub(super) fn new(
        stream: TcpStream,
        remote: SocketAddr,
        own: Credentials,
        frames: Frames,
        early: Vec<u8>,
    ) -> Self {
        Self { stream, remote, own, frames, early, taken: 0, unwritten: Unwritten::default() }
    }

    /// Returns the peer's address.
    pub(crate) fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Returns whether the other end has vanished, as a [`Leg`](fingerpost_carry::leg::Leg) does.
    pub(crate) fn is_gone(&self) -> bool {
        self.stream.delivery().is_gone()
    }

    /// Answers a frame that may be a check. Returns whether it is STUN.
    fn answer(&mut self, range: std::ops::Range<usize>) -> bool {
        let Some(check) = Check::read(self.frames.bytes(range)) else { return false };
        if check.class == Class::Request && check.authenticate(&self.own).is_ok() {
            let answer = framed(&check.success(self.remote, &self.own));
            if self.unwritten.waiting() + answer.len() <= MOST_ANSWERS {
                self.unwritten.frames().extend(answer);
            }
            // Without a waker: the task that writes may be another one. What is left goes out with its next bytes.
            self.unwritten.try_write(&self.stream);
        }
        true
    }
}

impl AsyncRead for IceStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.taken < this.early.len() {
            let count = buf.remaining().min(this.early.len() - this.taken);
            buf.put_slice(&this.early[this.taken..this.taken + count]);
            this.taken += count;
            if this.taken == this.early.len() {
                (this.early, this.taken) = (Vec::new(), 0);
            }
            return Poll::Ready(Ok(()));
        }
        loop {
            match this.frames.next() {
                Next::Data(range) => {
                    let count = buf.remaining().min(range.len());
                    buf.put_slice(this.frames.bytes(range.start..range.start + count));
                    this.frames.take_data(count);
                    return Poll::Ready(Ok(()));
                }
                Next::Stun(range) => {
                    if this.answer(range.clone()) {
                        this.frames.take_stun(&range);
                    } else {
                        this.frames.is_data(&range);
                    }
                }
                Next::More => {
                    let most = this.frames.direct().min(buf.remaining());
                    if most >= DIRECT {
                        let free = buf.initialize_unfilled_to(most);
                        let count = ready!(poll_into(&mut this.stream, cx, free))?;
                        buf.advance(count);
                        this.frames.read_directly(count);
                        return Poll::Ready(Ok(()));
                    }
                    let count = ready!(poll_into(&mut this.stream, cx, this.frames.free()))?;
                    if count == 0 {
                        // TLS tells an end without its own close_notify from a whole stream.
                        return Poll::Ready(Ok(()));
                    }
                    this.frames.filled(count);
                }
            }
        }
    }
}

impl AsyncWrite for IceStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    /// TLS writes several records at once. They are copied once more, so that a frame whose length is sent can always be finished.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.unwritten.poll_write(&mut this.stream, cx))?;
        let frames = this.unwritten.frames();
        let all = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(MOST);
        let mut bytes = bufs.iter().flat_map(|buf| buf.chunks(FRAME)).filter(|one| !one.is_empty());
        let mut chunk: &[u8] = &[];
        let mut left = all;
        while left > 0 {
            let mut length = left.min(FRAME);
            left -= length;
            // FRAME fits into 16 bits.
            frames.extend(u16::try_from(length).unwrap_or_default().to_be_bytes());
            while length > 0 {
                if chunk.is_empty() {
                    chunk = bytes.next().unwrap_or_default();
                }
                let (now, later) = chunk.split_at(chunk.len().min(length));
                frames.extend_from_slice(now);
                (chunk, length) = (later, length - now.len());
            }
        }
        debug_assert_eq!(frames.len(), all + all.div_ceil(FRAME) * HEADER);
        if let Poll::Ready(Err(error)) = this.unwritten.poll_write(&mut this.stream, cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(all))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.unwritten.poll_write(&mut this.stream, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.unwritten.poll_shutdown(&mut this.stream, cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::ice::message::Request;

    fn credentials(name: &str) -> Credentials {
        Credentials::new(name, &name.repeat(6)).unwrap()
    }

    /// Returns a stream, and the other end of its connection.
    async fn pair(early: &[u8]) -> (IceStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (far, accepted) = tokio::join!(connecting, listener.accept());
        let (near, remote) = accepted.unwrap();
        let stream =
            IceStream::new(near, remote, credentials("alice"), Frames::new(), early.to_vec());
        (stream, far.unwrap())
    }

    fn request(pwd: &str) -> Vec<u8> {
        let own = credentials("bobby");
        let peer = Credentials::new("alice", pwd).unwrap();
        let request = Request {
            id: 9.into(),
            own: &own,
            peer: &peer,
            priority: 1,
            controlling: false,
            tie_breaker: 1,
            nominates: false,
        };
        request.write()
    }

    async fn frame(far: &mut TcpStream) -> Vec<u8> {
        let length = far.read_u16().await.unwrap();
        let mut frame = vec![0; length.into()];
        far.read_exact(&mut frame).await.unwrap();
        frame
    }

    #[tokio::test]
    async fn checks_between_the_bytes_are_answered_and_not_seen() {
        let (mut stream, mut far) = pair(b"early ").await;
        let good = request(&"alice".repeat(6));
        let bad = request(&"wrong".repeat(6));
        // Without its fingerprint it is the application's.
        let mut data = good.clone();
        *data.last_mut().unwrap() ^= 1;
        let sent = [
            framed(b"he"),
            framed(&good),
            framed(&[]),
            framed(&bad),
            framed(&data),
            framed(b"llo"),
        ];
        far.write_all(&sent.concat()).await.unwrap();
        let mut got = vec![0; 6 + 2 + data.len() + 3];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(got, [b"early he", &data[..], b"llo"].concat());
        stream.write_all(b"answer").await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = frame(&mut far).await;
        let answer = Check::read(&answer).unwrap();
        assert_eq!(
            (answer.class, answer.mapped),
            (Class::Success, Some(far.local_addr().unwrap()))
        );
        assert_eq!(frame(&mut far).await, b"answer");
        assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
        drop(far);
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_holds_up_the_writer_and_costs_bounded_memory() {
        let (mut stream, mut far) = pair(b"").await;
        let block = vec![7; 1 << 20];
        let mut accepted = 0;
        while let Some(count) = write_now(&mut stream, &block).await {
            accepted += count;
            assert!(count <= MOST && accepted < 64 << 20);
        }
        assert!(stream.unwritten.frames().len() <= MOST + 64);
        // Nor do its checks.
        let good = framed(&request(&"alice".repeat(6)));
        for _ in 0..2000 {
            far.write_all(&good).await.unwrap();
            let reading = stream.read_u8();
            assert!(tokio::time::timeout(std::time::Duration::ZERO, reading).await.is_err());
        }
        assert!(stream.unwritten.frames().len() <= MOST_ANSWERS + MOST + 64);
    }

    /// Writes, unless the kernel takes nothing.
    async fn write_now(stream: &mut IceStream, block: &[u8]) -> Option<usize> {
        std::future::poll_fn(|cx| {
            Poll::Ready(match Pin::new(&mut *stream).poll_write(cx, block) {
                Poll::Ready(written) => Some(written.unwrap()),
                Poll::Pending => None,
            })
        })
        .await
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn all_bytes_arrive_in_order_however_they_are_cut(
            writes in prop::collection::vec(prop::collection::vec(0_usize..30_000, 1..5), 1..12),
            reads in prop::collection::vec(1_usize..40_000, 1..12),
            checks in prop::collection::vec(any::<bool>(), 12),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (mut a, far) = pair(b"").await;
                let remote = far.peer_addr().unwrap();
                let mut b = IceStream::new(far, remote, credentials("bobby"), Frames::new(), Vec::new());
                let all: Vec<u8> = (0_u32..).map(|n| (n % 251) as u8).take(writes.iter().flatten().sum()).collect();
                let write = async {
                    let mut rest = &all[..];
                    for (lengths, check) in writes.iter().zip(checks) {
                        let (now, later) = rest.split_at(lengths.iter().sum());
                        rest = later;
                        let mut now = now;
                        let mut parts: Vec<&[u8]> = Vec::new();
                        for length in lengths {
                            let (part, others) = now.split_at(*length);
                            parts.push(part);
                            now = others;
                        }
                        while parts.iter().any(|part| !part.is_empty()) {
                            let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
                            let mut count = a.write_vectored(&slices).await.unwrap();
                            for part in &mut parts {
                                let taken = count.min(part.len());
                                *part = &part[taken..];
                                count -= taken;
                            }
                        }
                        if check {
                            a.unwritten.frames().extend(framed(&request(&"alice".repeat(6))));
                        }
                    }
                    a.shutdown().await.unwrap();
                };
                let read = async {
                    let mut got = Vec::new();
                    for length in reads.iter().cycle() {
                        let mut part = vec![0; *length];
                        let count = b.read(&mut part).await.unwrap();
                        if count == 0 {
                            break;
                        }
                        got.extend_from_slice(&part[..count]);
                    }
                    got
                };
                let ((), got) = tokio::join!(write, read);
                assert!(got == all, "{} of {} bytes", got.len(), all.len());
            });
        }
    }
}
