//! The receiver's side of a code.

use std::path::PathBuf;

use fingerpost_endpoint::Application;

use super::{
    super::{
        args::Common,
        client::{Client, Takes},
        listen::FileInbox,
        output::{Output, XtlsError},
    },
    ask, description,
    phrase::Code,
};

/// Receives the files of the sender that has shown this code; without one, the user is asked.
///
/// # Errors
/// Exit status 2 if it is not a code, 3 if nobody waits there, 4 if the words are not the sender's; 1 if a file was not received.
pub(crate) async fn receive(
    common: &Common,
    typed: &[String],
    (out, max_size): (PathBuf, Option<u64>),
    output: Output,
) -> Result<(), XtlsError> {
    let inbox = FileInbox::new(out, max_size).prepare()?;
    let text = match typed {
        [] => ask::code().await?,
        parts => parts.join(" "),
    };
    let code = Code::parse(&text).map_err(|error| XtlsError::usage(error.to_string()))?;
    let sender = code.sender();
    let client = Client::knowing(common, code.password()?, output)?.taking(Takes::A_CODE);
    client.check_peer(&sender)?;
    let (endpoint, _incoming) = client.connect().await?;
    endpoint.appear(-1).await;
    let done = async {
        let application = Application::described(description()).from_responder();
        let waiting = output.waiting(&format!("calling {}", sender.to_bare()));
        let initiated = endpoint.initiate(&sender, &application).await;
        waiting.finish_and_clear();
        let (mut session, stream) = initiated.map_err(|error| explained(error.into()))?;
        client.secured(&mut session, &stream).await?;
        inbox.receive_set(session, stream, output).await
    }
    .await;
    endpoint.close().await;
    match done? {
        0 => Ok(()),
        missing => Err(XtlsError::failed(format!("{missing} files were not received"))),
    }
}

/// Says what a failure means to a person with a code.
fn explained(error: XtlsError) -> XtlsError {
    match error.code {
        3 => error.hint(
            "nobody waits with this code: `xtls send --code` has ended, the code was used, or its address or number is mistyped",
        ),
        4 => XtlsError::unverified(
            "the words are not the sender's, or someone is in the middle: nothing was received",
        )
        .hint(format!(
            "compare the code with the sender's screen; after {} wrong ones it is no longer valid",
            super::GUESSES
        )),
        5 => error.hint("the code may have been used just now: ask the sender for a new one"),
        _ => error,
    }
}
