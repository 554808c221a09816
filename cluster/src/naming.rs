//! The names under which members meet inside PostgreSQL: `application_name` of a receiver and the slot it uses.
//!
//! A stranger that guesses an `application_name` could acknowledge commits, so that name carries a keyed part. Slot
//! names carry none: a slot gives nobody the right to acknowledge.

use model::follow::Follower;
use model::{Member, NodeId};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Beginning of every name of ours.
const PREFIX: &str = "stemma_";
/// More of a cluster's name does not fit beside the rest.
const FOLLOWER_NAME_MAX: usize = 30;

/// SHA-256 in lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The `application_name` of a member's receiver: stable for the member's life, at most 56 characters.
pub fn application_name(salt: &str, member: &Member) -> String {
    // A zero byte cannot be part of either field, so no two pairs give the same input.
    let keyed = sha256_hex(format!("{salt}\0{}", member.id).as_bytes());
    format!("{PREFIX}{}_{}", member.name, &keyed[..8])
}

/// The physical slot that a member uses on whatever node it streams from. The id keeps apart a node and a later one of
/// the same name. Slot names allow no `-`.
pub fn slot_name(member: &Member) -> String {
    format!("{PREFIX}{}_{}", member.name.as_str().replace('-', "_"), member.id)
}

/// The slot that a cluster which follows this one uses on each of its servers.
pub fn follower_slot(follower: &Follower) -> String {
    let name: String = follower.name.as_str().replace('-', "_").chars().take(FOLLOWER_NAME_MAX).collect();
    format!("{PREFIX}f_{name}_{}", follower.id)
}

/// The `application_name` of its leader's receiver. It is no member's, so it never acknowledges a commit.
pub fn follower_application_name(salt: &str, follower: &Follower) -> String {
    let keyed = sha256_hex(format!("{salt}\0follower\0{}", follower.id).as_bytes());
    let name: String = follower.name.as_str().chars().take(FOLLOWER_NAME_MAX).collect();
    format!("{PREFIX}follower_{name}_{}", &keyed[..8])
}

/// The member whose receiver has this name. PostgreSQL compares these names without regard to case.
pub fn node_of_application_name(name: &str, members: &BTreeMap<NodeId, Member>, salt: &str) -> Option<NodeId> {
    members.values().find(|member| application_name(salt, member).eq_ignore_ascii_case(name)).map(|member| member.id)
}

/// The member that uses this slot.
pub fn node_of_slot(name: &str, members: &BTreeMap<NodeId, Member>) -> Option<NodeId> {
    members.values().find(|member| slot_name(member) == name).map(|member| member.id)
}

/// Whether a slot was made by us, for a member of now or of before: `stemma_<name>_<id>`. Slots of others are never
/// touched.
pub fn is_our_slot(name: &str) -> bool {
    let Some((node, id)) = name.strip_prefix(PREFIX).and_then(|rest| rest.rsplit_once('_')) else { return false };
    let plain_node =
        !node.is_empty() && node.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    plain_node && !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::member;

    #[test]
    fn names_lead_back_to_their_member_and_to_nobody_else() {
        let members: BTreeMap<NodeId, Member> =
            [(1, "pg-1"), (2, "pg"), (12, "pg-1-2")].map(|(id, name)| (NodeId(id), member(id, name))).into();
        for one in members.values() {
            assert_eq!(node_of_slot(&slot_name(one), &members), Some(one.id));
            assert!(is_our_slot(&slot_name(one)));
            assert_eq!(node_of_application_name(&application_name("salt", one), &members, "salt"), Some(one.id));
            assert_eq!(node_of_application_name(&application_name("other", one), &members, "salt"), None);
        }
        assert_eq!(slot_name(&members[&NodeId(12)]), "stemma_pg_1_2_12");
        for foreign in ["", "stemma_", "stemma_pg", "stemma__1", "stemma_pg_", "stemma_pg_x", "Stemma_pg_1", "pg_1"] {
            assert!(!is_our_slot(foreign), "{foreign:?}");
        }
    }

    #[test]
    fn the_longest_names_fit_into_postgresql() {
        let longest = member(u64::MAX, &"a".repeat(40));
        assert!(application_name("salt", &longest).len() <= 63);
        // 40 characters and the greatest id are one too many for a slot; ids count from 1 and never come near that.
        assert!(slot_name(&member(999_999_999_999_999, &"a".repeat(40))).len() <= 63);
    }
}
