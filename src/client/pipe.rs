//! The command `pipe`: standard input and output over the secured stream.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::output::XtlsError;
use crate::endpoint::SecureStream;

/// Joins standard input and output to the stream, each direction to its own end; if nobody reads standard output any
/// more, that is the end of both.
pub(super) async fn pipe(stream: SecureStream) -> Result<(), XtlsError> {
    let (mut read, mut write) = tokio::io::split(stream);
    let outgoing = async {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let n = stdin.read(&mut buffer).await?;
            if n == 0 {
                break;
            }
            write.write_all(&buffer[..n]).await?;
            write.flush().await?;
        }
        write.shutdown().await
    };
    let mut unread = false;
    let incoming = async {
        let mut stdout = tokio::io::stdout();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let n = match read.read(&mut buffer).await {
                Ok(n) => n,
                // A peer that has said all may leave without a close_notify's answer.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => 0,
                Err(error) => return Err(error),
            };
            if n == 0 {
                return stdout.flush().await;
            }
            let written = async {
                stdout.write_all(&buffer[..n]).await?;
                stdout.flush().await
            };
            if let Err(error) = written.await {
                unread = error.kind() == std::io::ErrorKind::BrokenPipe;
                return Err(error);
            }
        }
    };
    match tokio::try_join!(outgoing, incoming) {
        Err(error) if !unread => Err(error.into()),
        _ => Ok(()),
    }
}
