//! Join tokens: made, taken back, checked. The state keeps only hashes; the token's text is put together by the keeper.

use crate::history;
use crate::naming::sha256_hex;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::limits::{TOKEN_TTL_MAX, TOKENS_MAX};
use model::state::{Role, TokenRecord};
use model::{Actor, ClusterState, Millis, Trouble, WallTime};

/// How a new token is made from 32 random bytes: a public id of 6, a secret of 24.
pub struct NewToken {
    /// Public id, hex.
    pub id: String,
    /// Secret, base64url.
    pub secret: String,
}

impl NewToken {
    /// Takes id and secret from separate bytes, so that the id says nothing about the secret.
    pub fn from_random(random: &[u8; 32]) -> NewToken {
        let id = random[..6].iter().map(|byte| format!("{byte:02x}")).collect();
        NewToken { id, secret: URL_SAFE_NO_PAD.encode(&random[8..]) }
    }
}

/// Adds a token to the state; gives it back with its secret, which is not kept.
pub fn create(
    state: &mut ClusterState,
    role: Role,
    ttl: Millis,
    random: &[u8; 32],
    actor: &Actor,
    now: WallTime,
) -> Result<NewToken, Trouble> {
    match role {
        Role::Replica | Role::Witness => {}
        Role::Primary => {
            return Err(Trouble::wrong_role(
                "a token cannot admit a primary",
                "use role `replica` or `witness`; which node is primary is decided after it joined",
            ));
        }
    }
    if ttl.0 == 0 || ttl > TOKEN_TTL_MAX {
        return Err(Trouble::config_bad_value(
            format!("a token cannot live for {} ms", ttl.0),
            format!("choose a life between 1ms and {}", model::settings::Span(TOKEN_TTL_MAX)),
        ));
    }
    prune(state, now);
    if state.tokens.len() >= TOKENS_MAX {
        return Err(Trouble::limit_reached(
            format!("{TOKENS_MAX} join tokens are alive already"),
            "take one back with `stemma token revoke <id>`, or wait until one expires",
        ));
    }
    let token = NewToken::from_random(random);
    let record = TokenRecord {
        id: token.id.clone(),
        secret_sha256: sha256_hex(token.secret.as_bytes()),
        role,
        expires_at: WallTime(now.0.saturating_add(ttl.0 as i64)),
        created_by: actor.name.clone(),
        created_at: now,
        used_by: None,
        follower: false,
    };
    if state.tokens.contains_key(&token.id) {
        // 48 random bits met twice. Overwriting would revoke somebody's token.
        return Err(Trouble::conflict("a token of this id exists", "try again"));
    }
    state.tokens.insert(token.id.clone(), record);
    Ok(token)
}

/// Drops what is of no use: expired tokens, and, when the table is full, used ones, oldest first. Used tokens are kept
/// that long so that a node killed in mid-join gets the same answer again.
fn prune(state: &mut ClusterState, now: WallTime) {
    state.tokens.retain(|_, token| token.expires_at > now);
    while state.tokens.len() >= TOKENS_MAX {
        let used = state.tokens.values().filter_map(|token| Some((token.used_by.as_ref()?.at, token.id.clone())));
        let Some((_, oldest)) = used.min() else { return };
        state.tokens.remove(&oldest);
    }
}

/// Adds a token that lets another cluster follow this one.
pub fn create_follower(
    state: &mut ClusterState,
    ttl: Millis,
    random: &[u8; 32],
    actor: &Actor,
    now: WallTime,
) -> Result<NewToken, Trouble> {
    let token = create(state, Role::Replica, ttl, random, actor, now)?;
    if let Some(record) = state.tokens.get_mut(&token.id) {
        record.follower = true;
    }
    Ok(token)
}

/// Takes a token back.
pub fn revoke(state: &mut ClusterState, id: &str, actor: &Actor, now: WallTime) -> Result<(), Trouble> {
    if state.tokens.remove(id).is_none() {
        return Err(Trouble::not_found(
            format!("there is no join token `{}`", id.chars().take(40).collect::<String>()),
            "list them with `stemma token list`; expired ones are dropped by themselves",
        ));
    }
    history::record(state, now, "token-revoked", None, format!("join token {id} was revoked"), &actor.name);
    Ok(())
}

/// What a token allows the node that shows it.
pub(crate) enum Admission {
    /// A new member.
    New,
    /// It was used by the same key before, for this member.
    Again(model::NodeId),
}

/// Whether a token admits the holder of a key.
pub(crate) fn check(
    state: &ClusterState,
    id: &str,
    secret: &str,
    role: Role,
    key_fingerprint: &str,
    now: WallTime,
) -> Result<Admission, Trouble> {
    let refused = |reason: String| {
        let hint = format!("make a new one on any member with `stemma token create --role {role}`");
        Err(Trouble::token_refused(reason, hint))
    };
    let shown: String = id.chars().take(40).collect();
    // One answer for a wrong id and a wrong secret: a stranger learns nothing about which ids exist. Only hashes are
    // compared, so the time it takes says nothing about the secret.
    let known = state.tokens.get(id).filter(|token| token.secret_sha256 == sha256_hex(secret.as_bytes()));
    let Some(token) = known else {
        return refused(format!("join token `{shown}` is not known: mistyped, revoked, or expired long ago"));
    };
    if let Some(used) = &token.used_by {
        if used.key_fingerprint != key_fingerprint {
            return refused(format!("join token `{shown}` was used already"));
        }
        if !state.members.contains_key(&used.node) {
            return refused(format!("join token `{shown}` was used by a node that has been removed since"));
        }
        return Ok(Admission::Again(used.node));
    }
    if token.expires_at <= now {
        return refused(format!("join token `{shown}` has expired"));
    }
    if token.follower {
        return refused(format!("token `{shown}` lets another cluster follow this one; it admits no node"));
    }
    if token.role != role {
        return refused(format!("join token `{shown}` admits a {}, not a {role}", token.role));
    }
    Ok(Admission::New)
}

/// Whether a token (id, secret) lets the holder of a key follow: `Some` with the follower's number when the same key used it
/// before.
pub(crate) fn check_follower(
    state: &ClusterState,
    (id, secret): (&str, &str),
    key_fingerprint: &str,
    now: WallTime,
) -> Result<Option<model::NodeId>, Trouble> {
    let refused = |reason: String| {
        Err(Trouble::token_refused(reason, "make a new one with `stemma token create --role follower` in that cluster"))
    };
    let shown: String = id.chars().take(40).collect();
    let known = state.tokens.get(id).filter(|token| token.secret_sha256 == sha256_hex(secret.as_bytes()));
    let Some(token) = known.filter(|token| token.follower) else {
        return refused(format!("token `{shown}` is not known: mistyped, revoked, expired, or not for following"));
    };
    match &token.used_by {
        Some(used) if used.key_fingerprint == key_fingerprint => Ok(Some(used.node)),
        Some(_) => refused(format!("token `{shown}` was used already")),
        None if token.expires_at <= now => refused(format!("token `{shown}` has expired")),
        None => Ok(None),
    }
}
