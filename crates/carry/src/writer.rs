//! How bytes that wait are written to a connection.

use std::io;

use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Writes some of `bytes`, and returns how many; without any, flushes.
///
/// # Errors
/// Those of the connection; [`io::ErrorKind::WriteZero`] if it takes no bytes.
pub async fn forward(write: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<usize> {
    if bytes.is_empty() {
        return write.flush().await.map(|()| 0);
    }
    match write.write(bytes).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        count => Ok(count),
    }
}
