//! A stranger with a token: one request in, one certificate out.
//!
//! The certificate request is checked before the token is spent, and the scheduler keeps hashes of secrets alone.

use std::time::{Duration, SystemTime};

use motley_scheduler_core::cluster::{AdmitAs, Event};
use motley_scheduler_core::wire::join::{JoinReply, JoinRequest, Principal};
use motley_scheduler_core::wire::{VERSION, VERSION_MIN};
use motley_scheduler_link::{Authority, CloseCode, Incoming, LinkError, Token, Validity};

use super::Shared;
use crate::engine::Answer;
use crate::outside::NODE_VALID;

/// Of a user's certificate: a person asks for a new token four times a year.
const USER_VALID: Duration = Duration::from_secs(90 * 86_400);

/// Host names are at most 253 characters.
const NAME_MAX: usize = 253;

pub(super) async fn serve(incoming: &Incoming, shared: &Shared) {
    let remote = incoming.remote;
    if let Err(error) = answer(incoming, shared).await {
        tracing::warn!(%remote, "join failed: {error}");
        incoming.link.close(CloseCode::Protocol, &error.to_string());
    }
}

async fn answer(incoming: &Incoming, shared: &Shared) -> Result<(), LinkError> {
    let patience = Duration::from_secs(motley_scheduler_link::settings::FIRST_MESSAGE_SECONDS);
    let accepted = tokio::time::timeout(patience, incoming.link.accept()).await;
    let mut channel =
        accepted.map_err(|_| LinkError::Timeout { what: "join request", seconds: patience.as_secs() })??;
    let request: JoinRequest = channel.receiver.receive_first("join request").await?;
    let reply = match admit(request, shared).await {
        Ok((principal, certificate, valid)) => {
            tracing::info!(remote = %incoming.remote, ?principal, "joined");
            let authority = shared.authority.certificate().to_vec();
            JoinReply::Accepted { principal, certificate, authority, valid_seconds: valid.as_secs() }
        }
        Err(reason) => {
            let line = reason.lines().next().unwrap_or_default();
            tracing::warn!(remote = %incoming.remote, "join refused: {line}");
            JoinReply::Refused { reason }
        }
    };
    channel.send(&reply).await?;
    channel.finish();
    // The joiner closes once it has read.
    let _ = tokio::time::timeout(patience, incoming.link.closed()).await;
    Ok(())
}

async fn admit(request: JoinRequest, shared: &Shared) -> Result<(Principal, Vec<u8>, Duration), String> {
    let JoinRequest { version, secret, certificate_request, name } = request;
    if !(VERSION_MIN..=VERSION).contains(&version) {
        return Err(format!(
            "the scheduler speaks protocol versions {VERSION_MIN} to {VERSION}, this program {version}\n\
             hint: update the older of the two"
        ));
    }
    if name.len() > NAME_MAX || name.chars().any(char::is_control) {
        return Err("the host name is too long or not printable".to_owned());
    }
    Authority::check_request(&certificate_request).map_err(|error| error.to_string())?;
    let secret_hash = Token::hash_secret(&secret);
    let present = |ticket| Event::TokenPresented { ticket, secret_hash, name };
    let (principal, valid) = match shared.engine.ask(present).await {
        Answer::Admit(AdmitAs::Node { node }) => (Principal::Node { node }, NODE_VALID),
        Answer::Admit(AdmitAs::User { name, role }) => (Principal::User { name, role }, USER_VALID),
        Answer::Refused(refusal) => {
            let hint = refusal.hint.map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
            return Err(refusal.message + &hint);
        }
        other => return Err(format!("the scheduler answered {other:?}")),
    };
    let validity = Validity::starting(SystemTime::now(), valid);
    let signed = shared.authority.sign(&certificate_request, &principal, validity);
    signed.map(|certificate| (principal, certificate, valid)).map_err(|error| error.to_string())
}
