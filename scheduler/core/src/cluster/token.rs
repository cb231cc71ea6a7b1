//! Join tokens: single-use, short-lived, known by the hash of their secret.

use super::machine::Cluster;
use super::{Action, AdmitAs, Change, Handled, Ticket};
use crate::id::{ContentHash, NodeId};
use crate::unit::Span;
use crate::wire::client::{Refusal, RefusalKind, TokenGrant};

/// A token for longer is refused: it would be a password.
const VALID_MAX: Span = Span::from_seconds(7 * 86_400);

/// Tokens that are kept at once.
const TOKENS_MAX: usize = 10_000;

/// Names of machines and users, for people.
const NAME_BYTES_MAX: usize = 253;

impl Cluster {
    pub(super) fn add_token(
        &mut self,
        out: &mut Handled,
        ticket: Ticket,
        (secret_hash, grants, valid): (ContentHash, TokenGrant, Span),
    ) {
        if valid.milliseconds == 0 || valid > VALID_MAX {
            let message = format!("a token cannot be valid for {valid}, at most for {VALID_MAX}");
            return out.refuse(ticket, Refusal::new(RefusalKind::Usage, message));
        }
        if let TokenGrant::User { name, .. } = &grants
            && !is_name(name)
        {
            let message = format!("`{name}` is no user name");
            let hint = "use 1 to 64 letters, digits, `-`, `_` and `.`";
            return out.refuse(ticket, Refusal::new(RefusalKind::Usage, message).with_hint(hint));
        }
        if self.state.tokens.len() >= TOKENS_MAX {
            let message = format!("{TOKENS_MAX} tokens are open already");
            return out.refuse(ticket, Refusal::new(RefusalKind::Failed, message));
        }
        let expires = self.live.now.after(valid);
        self.record(out, Change::TokenAdded { secret_hash, grants, expires });
        self.due_by(expires);
        out.actions.push(Action::TokenStored { ticket });
    }

    pub(super) fn use_token(
        &mut self,
        out: &mut Handled,
        ticket: Ticket,
        secret_hash: ContentHash,
        name: String,
    ) {
        let now = self.live.now;
        let problem = match self.state.tokens.get(&secret_hash) {
            None => Some("the token is not known here, or has expired"),
            Some(token) if token.expires <= now => Some("the token has expired"),
            Some(token) if token.used => Some("the token was used before"),
            Some(_) if name.is_empty() || name.len() > NAME_BYTES_MAX => {
                Some("the name is empty or too long")
            }
            Some(_) => None,
        };
        if let Some(problem) = problem {
            let refusal = Refusal::new(RefusalKind::Denied, problem);
            return out.refuse(ticket, refusal.with_hint("make a new one with `ctl token create`"));
        }
        let grants = self.state.tokens[&secret_hash].grants.clone();
        self.record(out, Change::TokenUsed { secret_hash });
        let grants = match grants {
            TokenGrant::User { name, role } => AdmitAs::User { name, role },
            TokenGrant::Node => {
                let node = NodeId(self.state.nodes.last_key_value().map_or(1, |(last, _)| last.0 + 1));
                self.record(out, Change::NodeAdded { node, name, at: now });
                AdmitAs::Node { node }
            }
        };
        out.actions.push(Action::Admit { ticket, grants });
    }

    pub(super) fn expire_tokens(&mut self, out: &mut Handled) {
        let now = self.live.now;
        let expired = self.state.tokens.iter().filter(|(_, token)| token.expires <= now);
        let expired: Vec<_> = expired.map(|(secret_hash, _)| *secret_hash).collect();
        for secret_hash in expired {
            self.record(out, Change::TokenExpired { secret_hash });
        }
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=64).contains(&name.len()) && name.chars().all(allowed)
}
