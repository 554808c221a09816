//! One question to a DNS server and its answer, by TCP: nothing is cut short, and no stranger can answer first.

use super::{Failed, Place};
use hickory_proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Asks, signed where the place has a key; then an answer that is not signed with it counts as none.
pub(super) async fn ask(place: &Place, message: Message, now_seconds: u64) -> Result<Message, Failed> {
    match tokio::time::timeout(place.timeout, ask_once(place, message, now_seconds)).await {
        Ok(answer) => answer,
        Err(_) => {
            let limit = place.timeout.as_secs_f64();
            Err(Failed::Unreachable(format!("{} did not answer within {limit} s", place.server)))
        }
    }
}

async fn ask_once(place: &Place, mut message: Message, now_seconds: u64) -> Result<Message, Failed> {
    let lost = |why: String| Failed::Unreachable(format!("{}: {why}", place.server));
    let mut verifier = None;
    if let Some(key) = &place.key {
        let (signature, verifies) =
            key.signer()?.sign_message(&message, now_seconds).map_err(|error| Failed::Config(error.to_string()))?;
        message.set_signature(signature);
        verifier = verifies;
    }
    let id = message.id;
    let question = message.to_vec().map_err(|error| Failed::Config(error.to_string()))?;
    let length = u16::try_from(question.len()).map_err(|_| Failed::Config("too many addresses".to_owned()))?;
    let mut stream = TcpStream::connect(&place.server).await.map_err(|error| lost(error.to_string()))?;
    let sent = [length.to_be_bytes().as_slice(), &question].concat();
    stream.write_all(&sent).await.map_err(|error| lost(error.to_string()))?;
    let length = stream.read_u16().await.map_err(|error| lost(error.to_string()))?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await.map_err(|error| lost(error.to_string()))?;
    let answer = Message::from_vec(&bytes).map_err(|error| lost(format!("not understood: {error}")))?;
    if answer.id != id {
        return Err(lost("the answer belongs to another question".to_owned()));
    }
    if let Some(mut verifier) = verifier {
        // An answer without a signature is what a server gives that does not know the key: it says so in the clear.
        verifier.verify(&bytes).map_err(|error| {
            lost(format!("the answer is not signed with the key ({error}); it says {}", answer.metadata.response_code))
        })?;
    }
    Ok(answer)
}
