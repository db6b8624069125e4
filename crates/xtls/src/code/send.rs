//! The sender's side of a code.

use std::{path::PathBuf, pin::pin, time::Duration};

use fingerpost_endpoint::{Endpoint, Error, Incoming, SecureStream, Session};
use fingerpost_wire::ns;
use serde_json::json;
use tokio::{task::JoinSet, time::timeout};

use super::{
    super::{
        args::Common,
        client::{Client, Takes},
        files,
        interrupt::interrupted,
        output::{Output, XtlsError},
        send,
    },
    GUESSES,
    phrase::Secret,
};

/// How long to wait for the receiver, unless the user says otherwise.
const WAIT: Duration = Duration::from_secs(600);

/// Shows a code, and sends the files to the first peer that knows it.
///
/// # Errors
/// Exit status 3 if nobody has used the code in time, 4 after too many wrong ones; otherwise that of the first file which was
/// not sent.
pub(crate) async fn send(
    common: &Common,
    paths: &[PathBuf],
    wait: Option<Duration>,
    output: Output,
) -> Result<(), XtlsError> {
    let mut stop = pin!(interrupted());
    let given_up = || XtlsError::failed("interrupted: the code is no longer valid");
    let secret = Secret::random();
    let client = Client::knowing(common, secret.password()?, output)?
        .waiting_at(secret.resource())
        .accepting_direct(true)
        .taking(Takes::CODES)
        .taking_guesses(GUESSES);
    let files = send::check_all(&client, paths)?.in_one_session()?;
    let (endpoint, mut incoming) = tokio::select! {
        biased;
        () = &mut stop => return Err(given_up()),
        // With another address, nobody would find it by its code.
        connected = client.connect(), if client.is_anonymous() => connected?,
        connected = client.connect_to_wait(), if !client.is_anonymous() => connected?,
    };
    let sending = async {
        endpoint.appear(-1).await;
        let wait = wait.unwrap_or(WAIT);
        show(&endpoint, &secret, wait, output)?;
        let waiting = output.waiting("waiting for the receiver");
        let came = timeout(wait, first_to_know(&endpoint, &mut incoming, output)).await;
        waiting.finish_and_clear();
        let (mut session, stream) = came.unwrap_or_else(|_| Err(nobody(wait)))?;
        client.secured(&mut session, &stream).await?;
        tokio::select! {
            sent = send::deliver_all(&client, session, stream, files) => sent,
            error = refuse_all(&mut incoming) => Err(error),
        }
    };
    let sent = tokio::select! {
        biased;
        () = &mut stop => Err(given_up()),
        sent = sending => sent,
    };
    // A session that was left has queued its session-terminate.
    endpoint.close().await;
    sent
}

/// Shows the command that the receiver types.
fn show(
    endpoint: &Endpoint,
    secret: &Secret,
    wait: Duration,
    output: Output,
) -> Result<(), XtlsError> {
    let bound = endpoint.jid();
    let bound = bound.try_as_full().map_err(|_| XtlsError::failed("no resource was assigned"))?;
    let code = secret.at(bound).to_string();
    let command = receiving(&code);
    let time = files::duration(wait.as_secs_f64());
    output.event(
        &json!({"event": "waiting_for_receiver", "seconds": wait.as_secs()}),
        &format!("On the other machine, run this within {time} (it works once; Ctrl-C ends):"),
    );
    output.data(&json!({"event": "code", "code": code, "command": command}), &command);
    Ok(())
}

/// Returns the command that receives with a code, as a shell takes it. A server gives users without an account any name, also one that
/// looks like an option, and names may hold characters such as `$`.
fn receiving(code: &str) -> String {
    let dashes = if code.starts_with('-') { "-- " } else { "" };
    let is_plain = |char: char| char.is_alphanumeric() || "-._+@/".contains(char);
    match code.chars().all(is_plain) {
        true => format!("xtls receive {dashes}{code}"),
        false => format!("xtls receive {dashes}'{}'", code.replace('\'', r"'\''")),
    }
}

/// Returns the session of the first peer that knows the words. All others end.
async fn first_to_know(
    endpoint: &Endpoint,
    incoming: &mut Incoming,
    output: Output,
) -> Result<(Session, SecureStream), XtlsError> {
    let mut sessions = JoinSet::new();
    let mut wrong = 0;
    loop {
        tokio::select! {
            biased;
            Some(done) = sessions.join_next() => {
                let (peer, error) = match done {
                    Ok((_, Ok(secured))) => return Ok(secured),
                    Ok((peer, Err(error))) => (peer, error),
                    Err(error) => return Err(XtlsError::failed(error.to_string())),
                };
                tracing::info!(%peer, %error, "a session came to nothing");
                let now = endpoint.wrong_guesses();
                if now > wrong && matches!(error, Error::Unverified(_)) {
                    wrong = now;
                    let left = GUESSES.saturating_sub(now);
                    output.alert(
                        &json!({"event": "wrong_code", "peer": peer, "left": left}),
                        &format!("{peer} has tried a wrong code ({left} more are taken)"),
                        None,
                    );
                }
                if now >= GUESSES {
                    return Err(guessed());
                }
            }
            request = incoming.next() => match request {
                Some(request) if request.application().is(ns::CODE) => {
                    // The endpoint limits their number.
                    sessions.spawn(async move {
                        let peer = request.peer().clone();
                        (peer, request.accept().await)
                    });
                }
                // It says no more than that it is here.
                Some(request) => request.decline("").await,
                None => return Err(endpoint.why_disconnected().into()),
            },
        }
    }
}

/// Refuses every further session. Never returns while there is a connection; a stream may outlive it.
async fn refuse_all(incoming: &mut Incoming) -> XtlsError {
    while let Some(request) = incoming.next().await {
        request.decline("").await;
    }
    std::future::pending().await
}

fn nobody(wait: Duration) -> XtlsError {
    let time = files::duration(wait.as_secs_f64());
    XtlsError::unreachable(format!(
        "nobody has used the code within {time}: it is no longer valid, and nothing was sent"
    ))
    .hint("run the same command again for a new code; --wait TIME waits longer")
}

fn guessed() -> XtlsError {
    XtlsError::unverified(format!(
        "{GUESSES} wrong codes were tried: the code is no longer valid, and nothing was sent"
    ))
    .hint(
        "run the same command again for a new code; if the receiver has mistyped none, someone is guessing or in the middle",
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_takes_the_command_with_any_code() {
        for code in [
            "alice@example.org/7-guitar-window-orbit",
            "-ip3ss8n--p974@anon.example.org/7-guitar-window-orbit",
            "jörg@example.org/7-guitar-window-orbit",
            "$HOME;*#~!`(|)[a]@example.org/7-guitar-window-orbit",
        ] {
            let command = receiving(code);
            let show = "receive() { [ \"$1\" = -- ] && shift; printf %s \"$1\"; };";
            let shown = format!("{show} {}", command.strip_prefix("xtls ").unwrap());
            let output = Command::new("sh").args(["-c", &shown]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), code, "{command}");
        }
        assert_eq!(receiving("-a@b/7-zoo"), "xtls receive -- -a@b/7-zoo");
    }
}
