//! Reads the stanzas of a stream from a connection.

use std::io;

use fingerpost_wire::{
    tokens::ParseError,
    xml::{Came, Received, Rules, StanzaBuffer},
};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Reads a stream from a server.
///
/// # Cancel safety
/// [`StanzaReader::read`] may be dropped and called again without loss.
pub struct StanzaReader<R> {
    io: R,
    buffer: StanzaBuffer,
}

impl<R> std::fmt::Debug for StanzaReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StanzaReader").field("buffer", &self.buffer).finish_non_exhaustive()
    }
}

impl<R: AsyncRead + Unpin> StanzaReader<R> {
    /// Reads from the start of a component's stream.
    pub fn new(io: R) -> Self {
        Self::with_rules(io, Rules::COMPONENT)
    }

    /// Reads from the start of a stream.
    pub fn with_rules(io: R, rules: Rules) -> Self {
        Self { io, buffer: StanzaBuffer::new(rules) }
    }

    /// Returns the connection, if only white space has come after the last element.
    pub fn into_io(self) -> Option<R> {
        self.buffer.is_clean().then_some(self.io)
    }

    /// Returns the next part of the stream.
    ///
    /// # Errors
    /// An I/O error; [`io::ErrorKind::UnexpectedEof`] if the connection ends without the end of the stream,
    /// [`io::ErrorKind::InvalidData`] for XML that is not well-formed. The stream is then lost.
    pub async fn read(&mut self) -> io::Result<Received> {
        loop {
            if let Some(received) = self.buffer.next_whole().map_err(invalid)? {
                return Ok(received);
            }
            self.fill().await?;
        }
    }

    /// Waits until bytes have arrived, and reads them.
    ///
    /// # Errors
    /// Those of [`StanzaReader::read`].
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn fill(&mut self) -> io::Result<()> {
        let n = self.io.read(self.buffer.free()).await?;
        self.buffer.filled(n).map_err(|closed| io::Error::new(io::ErrorKind::UnexpectedEof, closed))
    }

    /// Returns the next part of the bytes that were read; `None` if [`StanzaReader::fill`] is needed first.
    ///
    /// # Errors
    /// Those of [`StanzaReader::read`].
    pub fn next_part(&mut self) -> io::Result<Option<Came<'_>>> {
        self.buffer.next_part().map_err(invalid)
    }
}

fn invalid(error: ParseError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
