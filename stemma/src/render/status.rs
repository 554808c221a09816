//! `stemma status`: one sentence of verdict, the family tree of the copies, and the problems with their way out.
//! Quiet when all is well.

use super::look::{Look, Mark, Tone};
use super::table::{Cell, Table, wrap};
use super::units;
use model::status::{ClusterStatus, LinkStatus, NodeStatus, Problem, Severity, Verdict};
use model::{ReplicaKind, Role};

/// The whole view.
pub fn render(status: &ClusterStatus, look: &Look) -> String {
    let mut lines = headline(status, look);
    lines.extend(tree(status, look));
    if let Some((id, sentence)) = &status.operation {
        lines.push(look.finish(&wrap(&format!("  {id} running: {sentence}"), look.width, 4)));
    }
    lines.extend(followers(status).iter().map(|line| look.finish(&wrap(line, look.width, 4))));
    lines.extend(changes_of_primary(status).iter().map(|line| look.finish(&wrap(line, look.width, 4))));
    lines.extend(problems(&status.problems, look));
    lines.join("\n")
}

/// Whom the cluster follows, and which clusters follow it.
fn followers(status: &ClusterStatus) -> Vec<String> {
    let amount = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), units::bytes);
    let follows = status.follow.iter().map(|follow| {
        let host = follow.host.as_deref().unwrap_or("none of its servers");
        let heard = match (follow.streaming, follow.silent_seconds) {
            (true, _) => "streaming".to_owned(),
            (false, Some(silent)) => format!("heard last {} ago", units::span_ms(silent * 1000.0)),
            (false, None) => "not heard yet".to_owned(),
        };
        format!("  follows cluster {} at {host}: {} behind, {heard}", follow.cluster, amount(follow.behind_bytes))
    });
    let followed = status.followers.iter().map(|follower| {
        let name = &follower.cluster;
        match (follower.streaming, follower.client.as_deref()) {
            (true, from) => format!(
                "  followed by cluster {name} from {}: {} behind",
                from.unwrap_or("this machine"),
                amount(follower.behind_bytes)
            ),
            (false, _) => {
                format!(
                    "  followed by cluster {name}, which is away: {} of log kept for it",
                    amount(follower.kept_bytes)
                )
            }
        }
    });
    follows.chain(followed).collect()
}

/// What is planned, and what is going on, about who is primary.
fn changes_of_primary(status: &ClusterStatus) -> Vec<String> {
    let planned = status.planned_switchover.iter().map(|plan| {
        let to = plan.to.as_ref().map_or("the best replica", |to| to.as_str());
        let when = if plan.scheduled { format!("at {}", units::time(plan.at)) } else { "now".to_owned() };
        format!("  {} planned: switchover from {} to {to} {when} (by {})", plan.id, plan.from, plan.actor)
    });
    let running = status.failover.iter().map(|(id, sentence)| format!("  {id} in progress: {sentence}"));
    planned.chain(running).collect()
}

fn mark_of(verdict: Verdict) -> Mark {
    match verdict {
        Verdict::Healthy => Mark::Ok,
        Verdict::Forming => Mark::Unknown,
        Verdict::Degraded => Mark::Warn,
        Verdict::Down => Mark::Down,
    }
}

fn headline(status: &ClusterStatus, look: &Look) -> Vec<String> {
    let mark = mark_of(status.verdict);
    let title = format!("{} {}  {}", mark.sign(), status.cluster, status.verdict.as_str());
    let painted = format!(
        "{} {}  {}",
        look.mark(mark),
        look.paint(Tone::Strong, &status.cluster),
        look.paint(mark.tone(), status.verdict.as_str())
    );
    let first = joined(&format!("{title}   "), &[tolerance(status), loss(status)], look.width);
    let mut lines = vec![look.finish(&first.replacen(&title, &painted, 1))];
    lines.push(look.finish(&joined("  ", &facts(status), look.width)));
    let more = beyond_the_headline(status);
    if status.verdict != Verdict::Healthy && !more.is_empty() {
        lines.push(look.finish(&wrap(&format!("  {more}"), look.width, 2)));
    }
    lines
}

/// The parts of the judged sentence that the first line does not say already.
fn beyond_the_headline(status: &ClusterStatus) -> String {
    let said = [tolerance(status), status.durability.sentence.clone()];
    let news = status.sentence.split(" · ").filter(|part| !said.iter().any(|known| known == part));
    news.collect::<Vec<_>>().join(" · ")
}

/// Parts with dots between them; a part that does not fit begins a new line.
fn joined(start: &str, parts: &[String], width: usize) -> String {
    let mut text = start.to_owned();
    let mut column = start.chars().count();
    for (index, part) in parts.iter().filter(|part| !part.is_empty()).enumerate() {
        let length = part.chars().count();
        if index > 0 && column + 3 + length > width {
            text.push_str("\n  ");
            column = 2;
        } else if index > 0 {
            text.push_str(" · ");
            column += 3;
        }
        text.push_str(part);
        column += length;
    }
    text
}

fn tolerance(status: &ClusterStatus) -> String {
    match status.durability.failures_tolerated {
        ..0 => "takes no writes now".to_owned(),
        0 => "tolerates 0 failures".to_owned(),
        1 => "tolerates 1 more failure".to_owned(),
        many => format!("tolerates {many} more failures"),
    }
}

const LOSS: &str = "data loss if the primary died now";

fn loss(status: &ClusterStatus) -> String {
    let durability = &status.durability;
    let amount = match (durability.loss_now_bytes, durability.loss_now_seconds) {
        (Some(0), _) => "0".to_owned(),
        (Some(bytes), Some(seconds)) => format!("~{} (~{})", units::span_ms(seconds * 1000.0), units::bytes(bytes)),
        (Some(bytes), None) => format!("~{}", units::bytes(bytes)),
        (None, Some(seconds)) => format!("~{}", units::span_ms(seconds * 1000.0)),
        // No number: the judge has words for why.
        (None, None) => {
            let words = durability.sentence.rsplit_once(": ").map_or("unknown", |(_, words)| words);
            return format!("{LOSS}: {words}");
        }
    };
    let proof = match (durability.acks, durability.voters.len()) {
        (0, _) | (_, 0) => String::new(),
        (acks, voters) => format!(" ({} {acks} of {voters})", durability.mode),
    };
    format!("{LOSS}: {amount}{proof}")
}

fn facts(status: &ClusterStatus) -> Vec<String> {
    let primary = status.primary.as_ref().map_or_else(
        || "no primary yet".to_owned(),
        |name| {
            let since = status.node(name.as_str()).and_then(|node| node.started_at);
            let up = since.map(|since| status.observed_at.millis_since(since)).filter(|age| *age > 0);
            match up {
                Some(age) if status.primary_up => format!("primary {name} up {}", units::age_ms(age.unsigned_abs())),
                Some(_) | None => format!("primary {name}"),
            }
        },
    );
    let durability = &status.durability;
    let acks = if durability.acks == durability.acks_wanted {
        String::new()
    } else {
        format!(" ({} of {} acks)", durability.acks, durability.acks_wanted)
    };
    let strict = if durability.strict { ", strict" } else { "" };
    // Whose view it is matters where views may differ.
    let viewpoint = match status.verdict {
        Verdict::Healthy => String::new(),
        Verdict::Forming | Verdict::Degraded | Verdict::Down => format!("seen by {}", status.observer),
    };
    vec![
        status.engine.clone(),
        primary,
        format!("commit {}{acks}{strict}", durability.mode),
        format!("settings v{}", status.settings_version),
        viewpoint,
    ]
}

/// The table of nodes, replicas under the node that feeds them.
fn tree(status: &ClusterStatus, look: &Look) -> Vec<String> {
    if status.nodes.is_empty() {
        return vec!["  no nodes known yet".to_owned()];
    }
    let mut table = Table::new(&["NODE", "ROLE", "SITE", "STATE", "LAG", "BEHIND", "TL", "DISK", "NOTES"]);
    for (prefix, node) in family(&status.nodes) {
        table.row(row(&prefix, node, status));
    }
    table.render(look)
}

/// Nodes in the order of the tree, each with the branch drawn before its name. Nodes whose upstream is not shown, or
/// that feed each other in a ring, stand at the root: no node may get lost from the view.
fn family(nodes: &[NodeStatus]) -> Vec<(String, &NodeStatus)> {
    let mut shown = Vec::new();
    let known = |name: &model::NodeName| nodes.iter().any(|node| node.name == *name);
    let is_root = |node: &NodeStatus| node.upstream.as_ref().is_none_or(|upstream| !known(upstream));
    for node in nodes.iter().filter(|node| is_root(node)) {
        descend(nodes, node, String::new(), String::new(), &mut shown);
    }
    for node in nodes {
        if !shown.iter().any(|(_, seen): &(String, &NodeStatus)| seen.id == node.id) {
            descend(nodes, node, String::new(), String::new(), &mut shown);
        }
    }
    shown
}

fn descend<'a>(
    nodes: &'a [NodeStatus],
    node: &'a NodeStatus,
    prefix: String,
    below: String,
    shown: &mut Vec<(String, &'a NodeStatus)>,
) {
    shown.push((prefix, node));
    let seen = |id| shown_has(shown, id);
    let children: Vec<&NodeStatus> =
        nodes.iter().filter(|child| child.upstream.as_ref() == Some(&node.name) && !seen(child.id)).collect();
    for (index, child) in children.iter().enumerate() {
        let last = index + 1 == children.len();
        let (branch, trunk) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        if !shown_has(shown, child.id) {
            descend(nodes, child, format!("{below}{branch}"), format!("{below}{trunk}"), shown);
        }
    }
}

fn shown_has(shown: &[(String, &NodeStatus)], id: model::NodeId) -> bool {
    shown.iter().any(|(_, node)| node.id == id)
}

fn row(prefix: &str, node: &NodeStatus, status: &ClusterStatus) -> Vec<Cell> {
    let (mark, word) = state(node);
    let lag = node.lag.as_ref();
    let or_dash = |text: Option<String>| text.map_or_else(Cell::none, Cell::plain);
    vec![
        Cell::toned(Tone::Quiet, prefix).and(Tone::Strong, node.name.as_str()),
        node.role.as_str().into(),
        node.site.as_str().into(),
        Cell::toned(mark.tone(), mark.sign()).and(Tone::Plain, format!(" {word}")),
        or_dash(lag.map(|lag| lag.seconds.map_or("?".to_owned(), |seconds| units::span_ms(seconds * 1000.0)))),
        or_dash(lag.map(|lag| lag.apply_bytes.map_or("?".to_owned(), units::bytes))),
        or_dash(node.timeline.map(|timeline| timeline.to_string())),
        or_dash(node.disk_used_percent.map(|percent| format!("{percent}%"))),
        Cell::plain(notes(node, status).join(", ")),
    ]
}

/// The one word for a node, worst first: what stops it from doing its work comes before what it does.
pub fn state(node: &NodeStatus) -> (Mark, String) {
    let trouble = |healthy: Mark| if node.healthy { healthy } else { Mark::Warn };
    if !node.keeper_up {
        return match node.heard_ms_ago {
            None => (Mark::Unknown, "not heard".to_owned()),
            Some(age) => (Mark::Down, format!("silent {}", units::age_ms(age))),
        };
    }
    if let Some(clone) = &node.clone {
        return (Mark::Unknown, cloning(clone.done_bytes, clone.total_bytes));
    }
    if matches!(node.stage.as_str(), "halted" | "leaving") {
        return (if node.stage == "halted" { Mark::Down } else { Mark::Unknown }, node.stage.clone());
    }
    match node.role {
        Role::Witness => (trouble(Mark::Ok), "votes".to_owned()),
        Role::Primary | Role::Replica if node.server != "running" => {
            let coming = matches!(node.server.as_str(), "starting" | "initialising" | "empty" | "cloning");
            (if coming { Mark::Unknown } else { Mark::Down }, node.server.clone())
        }
        Role::Primary => (trouble(Mark::Ok), "up".to_owned()),
        Role::Replica => match node.link {
            Some(LinkStatus::Streaming) => (trouble(Mark::Ok), node.sync.clone()),
            Some(LinkStatus::CatchingUp) => (Mark::Warn, "catching up".to_owned()),
            Some(LinkStatus::Disconnected) => (Mark::Down, "no link".to_owned()),
            None => (Mark::Unknown, "link unknown".to_owned()),
        },
    }
}

fn cloning(done: u64, total: u64) -> String {
    match (done * 100).checked_div(total) {
        Some(percent) => format!("cloning {}%", percent.min(100)),
        None => format!("cloning {}", units::bytes(done)),
    }
}

fn notes(node: &NodeStatus, status: &ClusterStatus) -> Vec<String> {
    let mut notes = Vec::new();
    match (node.role, node.kind) {
        (Role::Replica, ReplicaKind::Standby) => notes.push("standby".to_owned()),
        (Role::Replica, ReplicaKind::Delayed) => notes.push("delayed".to_owned()),
        (Role::Replica, ReplicaKind::Hot) | (Role::Primary | Role::Witness, _) => {}
    }
    if node.cascading {
        notes.push("cascade".to_owned());
    }
    // What a silent node was doing then is not what it does now, and why one is halted stands among the problems.
    if node.keeper_up && node.stage != "halted" {
        if let Some(clone) = &node.clone {
            notes.push(format!("{} from {}, {}/s", clone.phase, clone.source, units::bytes(clone.rate_bytes_per_s)));
        } else if let Some(doing) = &node.doing {
            notes.push(doing.clone());
        }
    }
    if !node.pending_restart.is_empty() {
        notes.push("restart pending".to_owned());
    }
    if node.role == Role::Replica && node.priority == 0 {
        notes.push("never primary".to_owned());
    }
    if let Some(offset) =
        node.clock_offset_ms.filter(|offset| offset.unsigned_abs() >= model::limits::CLOCK_OFFSET_WARN.0)
    {
        let side = if offset > 0 { "ahead" } else { "behind" };
        notes.push(format!("clock {} {side}", units::span_ms(offset.unsigned_abs() as f64)));
    }
    // A server that is only being made or started takes up the newest settings by itself.
    let settled = node.keeper_up && node.server == "running" && node.clone.is_none();
    if let Some(version) =
        node.settings_version.filter(|version| settled && ![0, status.settings_version].contains(version))
    {
        notes.push(format!("settings v{version}"));
    }
    notes
}

fn problems(problems: &[Problem], look: &Look) -> Vec<String> {
    if problems.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![look.paint(Tone::Strong, &format!("  PROBLEMS ({})", problems.len()))];
    for problem in problems {
        lines.extend(one_problem(problem, look));
    }
    lines
}

fn one_problem(problem: &Problem, look: &Look) -> Vec<String> {
    let mark = match problem.severity {
        Severity::Info => Mark::Unknown,
        Severity::Warning => Mark::Warn,
        Severity::Critical => Mark::Down,
    };
    let subject = problem.node.as_ref().map_or(String::new(), |node| format!("{node}  "));
    let tail = format!("for {}  {}", units::age_ms(problem.for_ms), problem.code);
    let what = format!("  {} {subject}{}", mark.sign(), problem.what);
    // Since when and which code stand at the right where they fit, on the line below where they do not.
    let room = look.width.saturating_sub(what.chars().count() + tail.chars().count() + 2);
    let head = if room > 0 {
        format!("{what}{:room$}  {}", "", look.paint(Tone::Quiet, &tail))
    } else {
        format!("{}\n    {}", wrap(&what, look.width, 4), look.paint(Tone::Quiet, &tail))
    };
    let mut lines = vec![look.finish(&head.replacen(mark.sign(), &look.mark(mark), 1))];
    for (label, text) in [("cause:", &problem.cause), ("next: ", &problem.next)] {
        if !text.is_empty() {
            let body = wrap(&format!("    {label} {text}"), look.width, 11);
            lines.push(look.finish(&body.replacen(label, &look.paint(Tone::Quiet, label), 1)));
        }
    }
    lines
}

/// Cursor home, each line cleared to its end, then everything below: no flicker, no rests of the view before.
pub fn redraw(text: &str) -> String {
    format!("\x1b[H{}\x1b[K\n\x1b[J", text.replace('\n', "\x1b[K\n"))
}

#[cfg(test)]
#[path = "status_tests.rs"]
pub(crate) mod tests;
