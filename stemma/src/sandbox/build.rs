//! Building a sandbox: directories and node files, one `stemma init`, joins side by side, and waiting until the
//! cluster itself says that it is healthy.

use super::layout::{Layout, SandboxNode};
use super::processes::{POLL_INTERVAL, keeper_runs, program, start_keeper};
use super::{ports, stop_processes};
use crate::cli::{ConsensusArg, SandboxStartArgs};
use crate::client::Client;
use crate::commands::settings_bridge as settings;
use crate::commands::{Context, target};
use crate::render::out;
use crate::render::status::state;
use model::error::exit;
use model::status::{ClusterStatus, LinkStatus, NodeStatus, Verdict};
use model::{NodeName, Outcome, Role, Settings, Trouble};
use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// How long a sandbox may take to become healthy unless --timeout says otherwise.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// One request while the cluster comes up.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the whole is begun anew because another process took a port in between.
const ATTEMPTS_MAX: u32 = 3;
/// How much of a keeper's log goes into an error.
const LOG_LINES_MAX: usize = 12;

/// Server parameters that let many small servers live on one machine.
const PARAMETERS: &[(&str, &str)] = &[("shared_buffers", "32MB"), ("max_connections", "60"), ("max_wal_size", "256MB")];
/// Clients on this machine, by password.
const HBA: &[&str] = &["host all all 127.0.0.1/32 scram-sha-256", "host all all ::1/128 scram-sha-256"];

/// Builds a sandbox, or starts a stopped one again. Returns when it is healthy.
pub async fn start(context: &Context, args: &SandboxStartArgs, directory: PathBuf) -> Result<Layout, Trouble> {
    if Layout::exists(&directory) {
        return resume(context, Layout::load(&directory)?).await;
    }
    let settings = settings_for(args)?;
    let user = server_user()?;
    prepare_directory(&directory, user.as_ref())?;
    let mut attempt = 1;
    loop {
        let mut layout = plan(args, &directory)?;
        let result = tokio::select! {
            result = build(context, args, &mut layout, &settings, user.as_ref()) => result,
            _ = tokio::signal::ctrl_c() => Err(interrupted()),
        };
        let Err(trouble) = result else { return Ok(layout) };
        stop_processes(&layout).await?;
        if !port_was_taken(&trouble) || attempt == ATTEMPTS_MAX || args.base_port.is_some() {
            let directory = directory.display();
            let mut trouble = trouble;
            trouble.hint = format!(
                "{}; logs: {directory}/<node>/keeper.log; remove it: stemma sandbox stop --dir {directory} --purge",
                trouble.hint
            );
            return Err(trouble);
        }
        out::note("  a port was taken by another process; once more with other ports");
        empty(&layout)?;
        attempt += 1;
    }
}

fn interrupted() -> Trouble {
    let mut trouble =
        Trouble::operation_failed("interrupted while the sandbox was built; its processes were stopped", "start again");
    trouble.exit = 130;
    trouble
}

fn port_was_taken(trouble: &Trouble) -> bool {
    let telling = |text: &str| text.contains("ST1201") || text.contains("Address already in use");
    trouble.is("ST1201") || trouble.causes.iter().any(|cause| telling(cause))
}

async fn resume(context: &Context, mut layout: Layout) -> Result<Layout, Trouble> {
    if !layout.built {
        let directory = layout.directory.display();
        return Err(Trouble::directory_unfit(
            format!("{directory} holds a sandbox that was not built to its end"),
            format!("remove it: stemma sandbox stop --dir {directory} --purge"),
        ));
    }
    for node in &mut layout.nodes {
        if !keeper_runs(node) {
            start_keeper(node)?;
        }
    }
    layout.save()?;
    wait_healthy(context, &layout).await?;
    Ok(layout)
}

/// The unprivileged user of the servers when we are root, because PostgreSQL refuses to run as root.
fn server_user() -> Result<Option<nix::unistd::User>, Trouble> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let find = |name| nix::unistd::User::from_name(name).ok().flatten();
    find("postgres").or_else(|| find("nobody")).map(Some).ok_or_else(|| {
        Trouble::os(
            "there is neither a user `postgres` nor `nobody`, and PostgreSQL does not run as root",
            "make a user `postgres`, or run this as another user than root",
        )
    })
}

fn unfit(directory: &Path, why: impl std::fmt::Display) -> Trouble {
    Trouble::directory_unfit(
        format!("{} cannot hold a sandbox", directory.display()),
        "choose another --dir, for example /tmp/sandbox",
    )
    .because(why)
}

fn prepare_directory(directory: &Path, user: Option<&nix::unistd::User>) -> Result<(), Trouble> {
    match std::fs::read_dir(directory) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(unfit(directory, "it is not empty, and holds no sandbox"));
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(unfit(directory, error)),
    }
    // Checked before anything is made: a refusal leaves nothing behind.
    let existing = directory.ancestors().find(|ancestor| ancestor.exists());
    if let (Some(user), Some(existing)) = (user, existing) {
        check_traversable(existing, user)?;
    }
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory);
    made.map_err(|error| unfit(directory, error))
}

/// The servers run as `user`; each directory on the way must let that user through.
fn check_traversable(directory: &Path, user: &nix::unistd::User) -> Result<(), Trouble> {
    let directory = directory.canonicalize().map_err(|error| unfit(directory, error))?;
    for ancestor in directory.ancestors() {
        let meta = std::fs::metadata(ancestor).map_err(|error| unfit(&directory, error))?;
        let bit = if meta.uid() == user.uid.as_raw() {
            0o100
        } else if meta.gid() == user.gid.as_raw() {
            0o010
        } else {
            0o001
        };
        if meta.mode() & bit == 0 {
            return Err(unfit(
                &directory,
                format!(
                    "the servers run as user `{}`, who may not pass through {} (mode {:03o})",
                    user.name,
                    ancestor.display(),
                    meta.mode() & 0o777
                ),
            ));
        }
    }
    Ok(())
}

/// Names, ports and places; nothing is written yet.
fn plan(args: &SandboxStartArgs, directory: &Path) -> Result<Layout, Trouble> {
    let name = |letter: char, number: u16| -> Result<NodeName, Trouble> {
        format!("{letter}{number}")
            .parse()
            .map_err(|bad| Trouble::internal("a sandbox name is not valid", "report this").because(bad))
    };
    let data = (1..=args.nodes).map(|number| (name('n', number), false));
    let witnesses = (1..=args.witnesses).map(|number| (name('w', number), true));
    let names: Vec<(Result<NodeName, Trouble>, bool)> = data.chain(witnesses).collect();
    let ports = ports::choose(names.len() * 3, args.base_port)?;
    let mut nodes = Vec::new();
    for ((name, witness), ports) in names.into_iter().zip(ports.chunks_exact(3)) {
        let name = name?;
        let home = directory.join(name.as_str());
        nodes.push(SandboxNode {
            upstream: args.cascade.iter().find(|(node, _)| *node == name).map(|(_, upstream)| upstream.clone()),
            name,
            witness,
            config: home.join("node.toml"),
            state_dir: home.join("state"),
            data_dir: home.join("data"),
            log: home.join("keeper.log"),
            directory: home,
            peer_port: ports[0],
            api_port: ports[1],
            postgresql_port: ports[2],
            keeper: None,
        });
    }
    let layout = Layout::new(args.name.clone(), directory.to_owned(), nodes);
    check_cascades(args, &layout)?;
    Ok(layout)
}

/// A cascade names two different nodes with a database, does not feed n1 (the first primary), and leads back to it.
fn check_cascades(args: &SandboxStartArgs, layout: &Layout) -> Result<(), Trouble> {
    for (node, upstream) in &args.cascade {
        let refused = |why: &str| {
            Err(Trouble::usage(
                format!("--cascade {node}:{upstream}: {why}"),
                "write NODE:UPSTREAM, as in --nodes 4 --cascade n4:n3",
            ))
        };
        if layout.node(node)?.witness || layout.node(upstream)?.witness {
            return refused("a witness has no database");
        }
        if node.as_str() == "n1" {
            return refused("n1 is the first primary and is fed by nobody");
        }
        let mut at = upstream;
        let mut steps = 0;
        while let Some(next) = layout.node(at)?.upstream.as_ref() {
            steps += 1;
            if steps > layout.nodes.len() || next == node {
                return refused("nodes would feed each other in a ring");
            }
            at = next;
        }
        if at == node {
            return refused("a node cannot feed itself");
        }
    }
    Ok(())
}

fn settings_for(args: &SandboxStartArgs) -> Result<Settings, Trouble> {
    let mut settings = Settings::default();
    settings.postgresql.parameters =
        PARAMETERS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    settings.postgresql.hba = HBA.iter().map(|line| (*line).to_owned()).collect();
    if let Some(mode) = args.commit_mode {
        settings.commit_mode = mode;
    }
    settings::assign(&settings, &args.set)
}

async fn build(
    context: &Context,
    args: &SandboxStartArgs,
    layout: &mut Layout,
    settings: &Settings,
    user: Option<&nix::unistd::User>,
) -> Result<(), Trouble> {
    layout.save()?;
    let settings_file = layout.directory.join("settings.toml");
    write(&settings_file, &settings::to_toml(settings))?;
    let consensus = consensus_toml(args);
    for node in &layout.nodes {
        make_home(node, user)?;
        write(&node.config, &(node_toml(node, args, user) + &consensus))?;
    }
    let first = layout.nodes[0].clone();
    let arguments =
        ["init", "--name", args.name.as_str(), "--settings", &settings_file.display().to_string()].map(str::to_owned);
    stemma(&first, &arguments).await?;
    start_keeper(&mut layout.nodes[0])?;
    layout.save()?;
    join_all(layout).await?;
    wait_healthy(context, layout).await?;
    layout.built = true;
    layout.save()
}

fn make_home(node: &SandboxNode, user: Option<&nix::unistd::User>) -> Result<(), Trouble> {
    let make = |path: &Path, mode: u32| -> std::io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
    };
    make(&node.directory, 0o755).map_err(|error| unfit(&node.directory, error))?;
    // The server's user passes through to the socket and to its certificate; listing stays closed.
    make(&node.state_dir, 0o711).map_err(|error| unfit(&node.state_dir, error))?;
    if let Some(user) = user {
        // The server's user makes the data directory in here.
        nix::unistd::chown(&node.directory, Some(user.uid), Some(user.gid))
            .map_err(|error| unfit(&node.directory, error))?;
    }
    Ok(())
}

fn node_toml(node: &SandboxNode, args: &SandboxStartArgs, user: Option<&nix::unistd::User>) -> String {
    let quoted = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
    let mut text = format!(
        "name = \"{}\"\nsite = \"local\"\nstate_dir = {}\n\n[keeper]\nlisten = \"127.0.0.1:{}\"\n\n[api]\nlisten = \"127.0.0.1:{}\"\n",
        node.name,
        quoted(&node.state_dir),
        node.peer_port,
        node.api_port
    );
    if !node.witness {
        text.push_str(&format!(
            "\n[postgresql]\ndata_dir = {}\nlisten = \"127.0.0.1\"\nport = {}\nadvertise = \"127.0.0.1\"\ntablespace_root = {}\n",
            quoted(&node.data_dir),
            node.postgresql_port,
            // Several servers on one machine cannot share the directory of a tablespace.
            quoted(&node.directory.join("tablespaces"))
        ));
        if let Some(bin) = &args.pg_bin {
            text.push_str(&format!(
                "bin_dir = {}\n",
                quoted(&std::path::absolute(bin).unwrap_or_else(|_| bin.clone()))
            ));
        }
        if let Some(user) = user {
            text.push_str(&format!("run_as = \"{}\"\n", user.name));
        }
    }
    text
}

/// Sandboxes of one name may share an etcd, and one that failed half-way leaves its keys: each gets a prefix of its own.
fn consensus_toml(args: &SandboxStartArgs) -> String {
    match args.consensus {
        ConsensusArg::Embedded => String::new(),
        ConsensusArg::Etcd => {
            let endpoints: Vec<String> =
                args.etcd_endpoints.iter().map(|url| toml::Value::String(url.clone()).to_string()).collect();
            format!(
                "\n[consensus]\nkind = \"etcd\"\nendpoints = [{}]\nprefix = \"/stemma/{}-{}\"\n",
                endpoints.join(", "),
                args.name,
                &uuid::Uuid::new_v4().simple().to_string()[..8]
            )
        }
    }
}

fn write(path: &Path, text: &str) -> Result<(), Trouble> {
    std::fs::write(path, text).map_err(|error| {
        Trouble::os(format!("{} could not be written", path.display()), "check space and permissions").because(error)
    })
}

/// Empties the sandbox before another attempt.
fn empty(layout: &Layout) -> Result<(), Trouble> {
    for node in &layout.nodes {
        match std::fs::remove_dir_all(&node.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(unfit(&layout.directory, error)),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Runs our own program for a node to its end; its error becomes ours.
async fn stemma(node: &SandboxNode, arguments: &[String]) -> Result<(), Trouble> {
    let mut command = program()?;
    command
        .args(arguments)
        .arg("--config")
        .arg(&node.config)
        .args(["-o", "json"])
        .current_dir("/")
        .stdin(std::process::Stdio::null());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let what = format!("`stemma {}` for {}", arguments.first().map_or("", String::as_str), node.name);
    let output = command.output().await.map_err(|error| {
        Trouble::os(format!("{what} did not start"), "check the limits of this user").because(error)
    })?;
    if output.status.success() {
        return Ok(());
    }
    let document: Option<serde_json::Value> = serde_json::from_slice(&output.stdout).ok();
    let told = document.and_then(|mut document| serde_json::from_value::<Trouble>(document["error"].take()).ok());
    Err(match told {
        Some(trouble) => Trouble { reason: format!("{what} failed: {}", trouble.reason), ..trouble },
        None => Trouble::operation_failed(format!("{what} failed"), "see the cause")
            .because(String::from_utf8_lossy(&output.stderr).trim()),
    })
}

/// Joins all further nodes: those that are fed by the same wave of nodes side by side, the cascaded ones after the
/// nodes that feed them. The first server need not be up for that, only the first keeper.
async fn join_all(layout: &mut Layout) -> Result<(), Trouble> {
    let client = Client::new(target::from_sandbox_node(&layout.nodes[0])).with(None, Some(REQUEST_TIMEOUT), false);
    let mut member = vec![layout.nodes[0].name.clone()];
    let mut waiting: Vec<usize> = (1..layout.nodes.len()).collect();
    let deadline = Instant::now() + READY_TIMEOUT;
    while !waiting.is_empty() {
        let ready =
            |index: &usize| layout.nodes[*index].upstream.as_ref().is_none_or(|upstream| member.contains(upstream));
        let (wave, later): (Vec<usize>, Vec<usize>) = waiting.into_iter().partition(ready);
        waiting = later;
        let mut joins = tokio::task::JoinSet::new();
        for index in &wave {
            let first = layout.nodes[0].clone();
            joins.spawn(join_one(client.clone(), first, layout.nodes[*index].clone(), deadline));
        }
        while let Some(joined) = joins.join_next().await {
            joined.map_err(|error| Trouble::internal("a join ended unexpectedly", "report this").because(error))??;
        }
        for index in wave {
            start_keeper(&mut layout.nodes[index])?;
            member.push(layout.nodes[index].name.clone());
        }
        layout.save()?;
    }
    Ok(())
}

async fn join_one(client: Client, first: SandboxNode, node: SandboxNode, deadline: Instant) -> Result<(), Trouble> {
    let token = create_token(client, &first, node.witness, deadline).await?;
    let role = if node.witness { "witness" } else { "replica" };
    let mut arguments = vec!["join".to_owned(), token, "--role".to_owned(), role.to_owned()];
    if let Some(upstream) = &node.upstream {
        arguments.extend(["--from".to_owned(), upstream.to_string()]);
    }
    loop {
        match stemma(&node, &arguments).await {
            // Another join was first, or the cluster was busy. The same key may use its token again.
            Err(error)
                if matches!(error.exit, exit::UNREACHABLE | exit::UNKNOWN | exit::CONFLICT)
                    && Instant::now() < deadline =>
            {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            result => return result,
        }
    }
}

/// Asks until the first keeper answers and has a majority, which is a matter of moments.
async fn create_token(
    mut client: Client,
    first: &SandboxNode,
    witness: bool,
    deadline: Instant,
) -> Result<String, Trouble> {
    let role = if witness { "witness" } else { "replica" };
    let body = serde_json::json!({ "role": role, "ttl": 600_000 });
    loop {
        // The token file of the API appears when the keeper has come up.
        client = client.at(target::from_sandbox_node(first));
        let answer: Result<Outcome, Trouble> =
            client.change(hyper::Method::POST, "/v1/tokens", Some(body.clone())).await;
        match answer {
            Ok(outcome) => {
                return outcome
                    .token
                    .ok_or_else(|| Trouble::internal("the API made a token and did not show it", "report this"));
            }
            Err(_) if !keeper_runs(first) => return Err(keeper_ended(first)),
            Err(error) if Instant::now() >= deadline => return Err(error.because(log_tail(&first.log))),
            Err(error) if matches!(error.exit, exit::USAGE | exit::REFUSED) => return Err(error),
            // No answer yet, no majority yet, no token file yet: all of that passes while the keeper comes up.
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

fn keeper_ended(node: &SandboxNode) -> Trouble {
    Trouble::operation_failed(format!("the keeper of {} ended", node.name), "see its log").because(log_tail(&node.log))
}

fn log_tail(path: &Path) -> String {
    let text = std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(LOG_LINES_MAX)..].join("\n");
    format!("{} ends with:\n{tail}", path.display())
}

/// Waits until the cluster itself says that it is healthy and knows all its nodes, telling every change on the way.
pub async fn wait_healthy(context: &Context, layout: &Layout) -> Result<(), Trouble> {
    let deadline = Instant::now() + context.global.timeout.map_or(READY_TIMEOUT, |span| span.0.duration());
    let mut told: BTreeMap<NodeName, String> = BTreeMap::new();
    let started = Instant::now();
    let mut last: Option<ClusterStatus> = None;
    loop {
        let client = Client::new(target::from_sandbox(layout)?).with(None, Some(REQUEST_TIMEOUT), false);
        if let Ok(view) = client.status().await {
            tell_changes(context, &view, &mut told, started);
            let known = layout.nodes.iter().all(|node| view.node(node.name.as_str()).is_some());
            if view.verdict == Verdict::Healthy && known && is_settled(&view) {
                return Ok(());
            }
            last = Some(view);
        }
        if let Some(node) = layout.nodes.iter().find(|node| !keeper_runs(node)) {
            return Err(keeper_ended(node));
        }
        if Instant::now() >= deadline {
            return Err(not_healthy(layout, last.as_ref()));
        }
        tokio::time::sleep(POLL_INTERVAL * 2).await;
    }
}

/// A replica that catches up is nothing to worry about, and neither is a rule that takes up its voters; but who was told
/// that the cluster is ready should find it so.
fn is_settled(view: &ClusterStatus) -> bool {
    let follows = |node: &NodeStatus| node.role != Role::Replica || node.link == Some(LinkStatus::Streaming);
    let durability = &view.durability;
    view.nodes.iter().all(follows) && durability.in_force && durability.acks >= durability.acks_wanted
}

fn tell_changes(context: &Context, view: &ClusterStatus, told: &mut BTreeMap<NodeName, String>, started: Instant) {
    for node in &view.nodes {
        let (mark, word) = state(node);
        // Numbers that grow (bytes of a clone) are no news.
        let news = word.split(' ').next().unwrap_or("").to_owned();
        if told.get(&node.name) != Some(&news) {
            let line = format!(
                "  {:>5.1} s  {} {}  {} {word}",
                started.elapsed().as_secs_f64(),
                mark.sign(),
                node.name,
                node.role
            );
            out::note(&context.look.finish(&line));
            told.insert(node.name.clone(), news);
        }
    }
}

fn not_healthy(layout: &Layout, last: Option<&ClusterStatus>) -> Trouble {
    let mut trouble = Trouble::operation_failed("the sandbox did not become healthy in time", "see the causes");
    match last {
        Some(view) => {
            trouble.causes.push(format!("{}: {}", view.verdict.as_str(), view.sentence));
            trouble.causes.extend(view.problems.iter().map(|problem| format!("{} ({})", problem.what, problem.code)));
        }
        None => trouble.causes.push("no node answered".to_owned()),
    }
    trouble.causes.extend(layout.nodes.iter().take(1).map(|node| log_tail(&node.log)));
    trouble
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, SandboxCommand};
    use clap::Parser;

    fn args(line: &str) -> SandboxStartArgs {
        let words = format!("stemma sandbox start --dir /tmp/x {line}");
        match Cli::try_parse_from(words.split_whitespace()).expect(line).command {
            Command::Sandbox(SandboxCommand::Start(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn node_files_of_a_sandbox_are_sound_node_files() {
        let args = args("--nodes 2 --witnesses 1");
        let layout = plan(&args, Path::new("/tmp/x y\"z")).expect("a plan");
        let names: Vec<&str> = layout.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["n1", "n2", "w1"]);
        for node in &layout.nodes {
            let file = crate::node_file::parse(&node_toml(node, &args, None)).expect("sound");
            assert_eq!((&file.name, &file.state_dir), (&node.name, &node.state_dir));
            let spaces = file.postgresql.as_ref().and_then(|server| server.tablespace_root.clone());
            assert_eq!(spaces, (!node.witness).then(|| node.directory.join("tablespaces")));
            assert_eq!(file.postgresql.map(|server| server.port), (!node.witness).then_some(node.postgresql_port));
        }
    }

    #[test]
    fn cascades_that_cannot_work_are_refused_before_anything_is_made() {
        for (line, why) in [
            ("--nodes 3 --cascade n3:n3", "ring"),
            ("--nodes 3 --cascade n2:n3 --cascade n3:n2", "ring"),
            ("--nodes 3 --cascade n1:n2", "first primary"),
            ("--nodes 2 --witnesses 1 --cascade n2:w1", "witness"),
        ] {
            let trouble = plan(&args(line), Path::new("/tmp/x")).expect_err(line);
            assert!(trouble.reason.contains(why), "{line}: {}", trouble.reason);
        }
        assert_eq!(plan(&args("--cascade n9:n1"), Path::new("/tmp/x")).expect_err("no n9").code.to_string(), "ST2101");
        plan(&args("--nodes 4 --cascade n4:n3 --cascade n3:n2"), Path::new("/tmp/x")).expect("a chain is fine");
    }

    #[test]
    fn a_directory_that_the_server_cannot_reach_is_refused_and_left_alone() {
        let private = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(private.path(), std::fs::Permissions::from_mode(0o700)).expect("our own");
        let nobody = nix::unistd::User::from_name("nobody").ok().flatten().expect("every system has this user");
        let directory = private.path().join("sandbox");
        let trouble = prepare_directory(&directory, Some(&nobody)).expect_err("not reachable");
        assert_eq!(trouble.code.to_string(), "ST1202");
        assert!(trouble.causes[0].contains("`nobody`, who may not pass through"), "{trouble:?}");
        assert!(!directory.exists());
        std::fs::write(private.path().join("file"), "x").expect("writable");
        assert!(prepare_directory(private.path(), None).is_err(), "a directory with files is no place for a sandbox");
    }

    #[test]
    fn settings_of_a_sandbox_take_what_the_command_line_says() {
        let settings =
            settings_for(&args("--commit-mode sync --set strict=true --set postgresql.parameters.shared_buffers=64MB"))
                .expect("sound");
        assert_eq!((settings.commit_mode.as_str(), settings.strict), ("sync", true));
        assert_eq!(settings.postgresql.parameters["shared_buffers"], "64MB");
        assert_eq!(settings.postgresql.parameters["max_wal_size"], "256MB");
    }
}
