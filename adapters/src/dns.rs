//! Names that lead to the primary and to the replicas, kept by RFC 2136 updates.
//!
//! Several keepers may write, and one of them may be late. A TXT record beside the name says under which epoch the
//! addresses were written, and every update has the record as it was read for a prerequisite: the server itself refuses
//! what an older primary wants, whatever happened between its reading and its writing.

mod exchange;
mod key;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use model::Epoch;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

pub use key::{ALGORITHMS, Key};

/// The label of the record that says whose addresses these are.
const MARK_LABEL: &str = "_stemma";
/// How often an update that lost a race is begun anew.
const RACES_MAX: u32 = 5;

/// Where and what is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `host:port` of the zone's primary server.
    pub server: String,
    /// The zone.
    pub zone: String,
    /// The name that leads to the primary.
    pub name: String,
    /// The name that leads to the replicas, if one is wanted.
    pub replicas_name: Option<String>,
    /// How long resolvers may keep the answers, in seconds.
    pub ttl_seconds: u32,
    /// The key that the server asks for.
    pub key: Option<Key>,
    /// How long one question may take.
    pub timeout: Duration,
}

/// What the names are to lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Id of the cluster: a name belongs to one.
    pub cluster: String,
    /// The primacy under which this is so.
    pub epoch: Epoch,
    /// Addresses of the primary.
    pub primary: BTreeSet<IpAddr>,
    /// Addresses of the replicas.
    pub replicas: BTreeSet<IpAddr>,
}

/// What came of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Written.
    Written,
    /// It was so already.
    Unchanged,
    /// A newer primacy wrote; this one has nothing to say any more.
    Overtaken(Epoch),
}

/// Why it was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failed {
    /// What was configured cannot be.
    Config(String),
    /// The server was not reached, or its answer not understood or not signed.
    Unreachable(String),
    /// The server said no.
    Refused(String),
    /// The name belongs to another cluster.
    Foreign(String),
    /// Others wrote at the same time, again and again.
    Contended,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::Config(why) | Failed::Unreachable(why) => f.write_str(why),
            Failed::Refused(code) => write!(f, "the DNS server refused the update: {code}"),
            Failed::Foreign(cluster) => write!(f, "the name belongs to another cluster, {cluster}"),
            Failed::Contended => write!(f, "others wrote at the same time {RACES_MAX} times in a row"),
        }
    }
}

/// What the mark says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    cluster: String,
    epoch: Epoch,
    /// The whole text, which also tells the addresses.
    text: String,
}

impl Mark {
    fn of(wanted: &Wanted) -> Mark {
        let list =
            |addresses: &BTreeSet<IpAddr>| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let (cluster, epoch) = (wanted.cluster.clone(), wanted.epoch);
        let (primary, replicas) = (list(&wanted.primary), list(&wanted.replicas));
        let text = format!("cluster={cluster} epoch={epoch} primary={primary} replicas={replicas}");
        Mark { cluster, epoch, text }
    }

    fn read(text: &str) -> Option<Mark> {
        let field = |name: &str| text.split(' ').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        let epoch = Epoch(field("epoch")?.parse().ok()?);
        Some(Mark { cluster: field("cluster")?.to_owned(), epoch, text: text.to_owned() })
    }
}

/// The names, read.
struct Names {
    zone: Name,
    primary: Name,
    replicas: Option<Name>,
    mark: Name,
}

impl Names {
    fn of(place: &Place) -> Result<Names, Failed> {
        let read = |text: &str| {
            let mut name =
                Name::from_ascii(text).map_err(|error| Failed::Config(format!("`{text}` is no name: {error}")))?;
            name.set_fqdn(true);
            Ok(name)
        };
        let zone = read(&place.zone)?;
        let within = |text: &str| {
            let name = read(text)?;
            let is_in = zone.zone_of(&name);
            is_in.then_some(name).ok_or_else(|| Failed::Config(format!("`{text}` is not in the zone `{}`", place.zone)))
        };
        let primary = within(&place.name)?;
        let mark = primary.prepend_label(MARK_LABEL).map_err(|error| Failed::Config(error.to_string()))?;
        let replicas = place.replicas_name.as_deref().map(within).transpose()?;
        Ok(Names { zone, primary, replicas, mark })
    }
}

/// Whether a place can be used at all, without asking anybody.
pub fn check(place: &Place) -> Result<(), Failed> {
    Names::of(place).map(|_| ())
}

/// Makes the names lead to what is wanted, unless a newer primacy wrote. `now_seconds` is civil time, for the signature.
pub async fn update(place: &Place, wanted: &Wanted, now_seconds: u64) -> Result<Done, Failed> {
    let names = Names::of(place)?;
    let next = Mark::of(wanted);
    for _ in 0..RACES_MAX {
        let found = read_mark(place, &names, now_seconds).await?;
        let before = match &found {
            None => None,
            Some(text) => match Mark::read(text) {
                Some(mark) if mark.cluster != wanted.cluster => return Err(Failed::Foreign(mark.cluster)),
                Some(mark) if mark.epoch > wanted.epoch => return Ok(Done::Overtaken(mark.epoch)),
                Some(mark) if mark.text == next.text => return Ok(Done::Unchanged),
                Some(_) => Some(text.as_str()),
                None => return Err(Failed::Foreign(format!("`{text}`"))),
            },
        };
        let message = message(place, &names, wanted, before, &next.text)?;
        let answer = exchange::ask(place, message, now_seconds).await?;
        match answer.metadata.response_code {
            ResponseCode::NoError => return Ok(Done::Written),
            // The mark is not what it was a moment ago: look again.
            ResponseCode::NXRRSet | ResponseCode::YXRRSet | ResponseCode::NXDomain | ResponseCode::YXDomain => {}
            other => return Err(Failed::Refused(other.to_string())),
        }
    }
    Err(Failed::Contended)
}

async fn read_mark(place: &Place, names: &Names, now_seconds: u64) -> Result<Option<String>, Failed> {
    let mut query = Query::new();
    query.set_name(names.mark.clone()).set_query_type(RecordType::TXT).set_query_class(DNSClass::IN);
    let mut message = Message::query();
    message.add_query(query);
    let answer = exchange::ask(place, message, now_seconds).await?;
    match answer.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        other => return Err(Failed::Refused(other.to_string())),
    }
    Ok(answer.answers.iter().find_map(|record| match &record.data {
        RData::TXT(text) => Some(text.txt_data.iter().map(|part| String::from_utf8_lossy(part)).collect()),
        _ => None,
    }))
}

/// The update. `before` is the mark as it was read; its absence is a prerequisite too.
fn message(place: &Place, names: &Names, wanted: &Wanted, before: Option<&str>, next: &str) -> Result<Message, Failed> {
    let mut zone = Query::new();
    zone.set_name(names.zone.clone()).set_query_type(RecordType::SOA).set_query_class(DNSClass::IN);
    let mut message = Message::query();
    message.metadata.op_code = OpCode::Update;
    message.metadata.recursion_desired = false;
    message.add_query(zone);
    // Sections of an update: zone, prerequisites, updates, in place of questions, answers, authorities.
    message.add_answer(match before {
        Some(text) => Record::from_rdata(names.mark.clone(), 0, txt(text)),
        None => absent(names.mark.clone(), DNSClass::NONE, RecordType::TXT),
    });
    let mut replace = |name: &Name, addresses: &BTreeSet<IpAddr>| {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::CNAME] {
            message.add_authority(absent(name.clone(), DNSClass::ANY, kind));
        }
        for address in addresses {
            let data = match address {
                IpAddr::V4(address) => RData::A(A(*address)),
                IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
            };
            message.add_authority(Record::from_rdata(name.clone(), place.ttl_seconds, data));
        }
    };
    replace(&names.primary, &wanted.primary);
    if let Some(name) = &names.replicas {
        replace(name, &wanted.replicas);
    }
    message.add_authority(absent(names.mark.clone(), DNSClass::ANY, RecordType::TXT));
    message.add_authority(Record::from_rdata(names.mark.clone(), place.ttl_seconds, txt(next)));
    Ok(message)
}

/// A record without data: with class NONE `there is none`, with class ANY `remove them all`.
fn absent(name: Name, class: DNSClass, kind: RecordType) -> Record {
    let mut record = Record::update0(name, 0, kind);
    record.dns_class = class;
    record
}

/// A text of any length: the parts of one record hold 255 bytes each.
fn txt(text: &str) -> RData {
    let parts: Vec<&str> = text.as_bytes().chunks(255).map(|part| std::str::from_utf8(part).unwrap_or("?")).collect();
    RData::TXT(TXT::new(parts.into_iter().map(str::to_owned).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_back_and_what_is_none_is_not_taken_for_one() {
        let wanted = Wanted {
            cluster: "c1".into(),
            epoch: Epoch(7),
            primary: ["10.0.0.1".parse().expect("an address")].into(),
            replicas: BTreeSet::new(),
        };
        let mark = Mark::of(&wanted);
        assert_eq!(mark.text, "cluster=c1 epoch=7 primary=10.0.0.1 replicas=");
        assert_eq!(Mark::read(&mark.text), Some(mark));
        for other in ["", "v=spf1 -all", "cluster=c1", "cluster=c1 epoch=x"] {
            assert_eq!(Mark::read(other), None, "{other}");
        }
    }
}
