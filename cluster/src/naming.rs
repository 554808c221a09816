//! Names that members carry inside the servers: of their connections and of their slots.

use model::names::NodeId;
use model::state::Member;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// What all our names begin with.
const PREFIX: &str = "stemma_";

/// The `application_name` of a member's receiver. The salt keeps strangers from acknowledging commits by taking it.
pub fn application_name(salt: &str, member: &Member) -> String {
    let digest = Sha256::new().chain_update(salt.as_bytes()).chain_update(member.id.to_string().as_bytes()).finalize();
    let mark: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}{}_{mark}", member.name)
}

/// The member whose receiver carries this `application_name`.
pub fn node_of_application_name(name: &str, members: &BTreeMap<NodeId, Member>, salt: &str) -> Option<NodeId> {
    members.values().find(|member| application_name(salt, member) == name).map(|member| member.id)
}

/// The physical slot that keeps log for a member, the same on every node.
pub fn slot_name(member: &Member) -> String {
    format!("{PREFIX}{}_{}", member.name.as_str().replace('-', "_"), member.id)
}

/// The member whose slot this is.
pub fn node_of_slot(name: &str, members: &BTreeMap<NodeId, Member>) -> Option<NodeId> {
    members.values().find(|member| slot_name(member) == name).map(|member| member.id)
}

/// Whether a slot is one of ours, of a member of today or of before.
pub fn is_our_slot(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .and_then(|rest| rest.rsplit_once('_'))
        .is_some_and(|(node, id)| !node.is_empty() && !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()))
}
