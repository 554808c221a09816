//! The command line as clap reads it. Definitions only; what the commands do is in `commands`, `sandbox` and `demo`.

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use model::names::{ClusterName, NodeName, Site};
use model::settings::{CommitMode, Span};
use std::path::PathBuf;

const EXAMPLES: &str = "Examples:
  stemma demo                                    three local nodes under load, with proof that nothing is lost
  stemma sandbox start --dir /tmp/sb             a throw-away cluster of real servers
  stemma status --watch                          how the cluster is, redrawn every second";

const EXIT_CODES: &str = "Exit codes:
  0 done and verified   1 failed, nothing changed   2 usage error   3 outcome unknown or still running
  4 refused by a safety rule   5 done, but not as asked   6 permission   7 cluster unreachable or no quorum
  8 ran fine, result negative (status --check)   9 someone else changed it meanwhile";

/// Keeps copies of databases: builds them, keeps them in step and shows how they are.
#[derive(Debug, Parser)]
#[command(
    name = "stemma",
    version,
    about,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"),
    max_term_width = 100
)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes.
#[derive(Clone, Debug, Default, Args)]
pub struct Global {
    /// Form of the output
    #[arg(short = 'o', long = "output", global = true, value_enum, default_value_t, help_heading = "Global options")]
    pub output: Output,
    /// When to use colour; NO_COLOR is honoured
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN", help_heading = "Global options")]
    pub color: ColorWhen,
    /// Node file: tells the API address and the state directory
    #[arg(short = 'c', long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// Address of a node's API, for example http://10.0.0.5:8008; may be given more than once
    #[arg(
        long,
        global = true,
        env = "STEMMA_API",
        value_delimiter = ',',
        value_name = "URL",
        help_heading = "Global options"
    )]
    pub api: Vec<String>,
    /// File with the API token for --api
    #[arg(long, global = true, env = "STEMMA_TOKEN_FILE", value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Global options")]
    pub token_file: Option<PathBuf>,
    /// Directory of a sandbox
    #[arg(long, global = true, env = "STEMMA_SANDBOX", value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Global options")]
    pub sandbox: Option<PathBuf>,
    /// How long to wait for an answer or for a long action to end
    #[arg(long, global = true, value_name = "SPAN", help_heading = "Global options")]
    pub timeout: Option<Span>,
    /// Do not ask before something destructive
    #[arg(short = 'y', long, global = true, help_heading = "Global options")]
    pub yes: bool,
    /// Say what would happen; change nothing
    #[arg(long, global = true, help_heading = "Global options")]
    pub dry_run: bool,
    /// Why, for the audit trail
    #[arg(long, global = true, value_name = "TEXT", help_heading = "Global options")]
    pub reason: Option<String>,
}

/// Form of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs; carries `schema_version`.
    Json,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// How the cluster is: verdict, nodes, lag, problems
    #[command(
        after_help = "Examples:\n  stemma status\n  stemma status --watch=2s\n  stemma status --check -o json   (exit 8 unless healthy)"
    )]
    Status(StatusArgs),
    /// Nodes of the cluster
    #[command(subcommand)]
    Node(NodeCommand),
    /// Join tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// A whole cluster that follows another one
    #[command(subcommand)]
    Cluster(crate::commands::cluster::ClusterCommand),
    /// Settings of the cluster
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Restart servers one after the other, in the safe order
    #[command(
        after_help = "Examples:\n  stemma restart --rolling\n  stemma restart --rolling --pending\n  stemma restart --rolling n2 n3 --no-wait"
    )]
    Restart(RestartArgs),
    /// Make another node the primary, in order and without loss
    #[command(
        after_help = "Examples:\n  stemma switchover --to n2\n  stemma switchover --dry-run\n  stemma switchover --to n2 --at 2030-01-31T02:30:00Z   (or --at +2h)\n  stemma switchover --cancel"
    )]
    Switchover(SwitchoverArgs),
    /// Make another node the primary without the help of the present one
    #[command(
        after_help = "Examples:\n  stemma failover --best                                   (shows what would be lost, changes nothing)\n  stemma failover --best --accept-data-loss 16MB\n  stemma failover --to n3 --accept-data-loss unknown"
    )]
    Failover(FailoverArgs),
    /// Stop automatic failover for a while
    #[command(after_help = "Examples:\n  stemma pause --for 30m --reason \"moving cables\"\n  stemma resume")]
    Pause {
        /// How long; it ends by itself
        #[arg(long = "for", value_name = "SPAN")]
        span: Span,
    },
    /// Let automatic failover go on
    Resume,
    /// Long actions
    #[command(subcommand)]
    Op(OpCommand),
    /// What happened, oldest first
    #[command(after_help = "Examples:\n  stemma history\n  stemma history --limit 10\n  stemma history -o json")]
    History {
        /// Show only so many, the newest
        #[arg(long, short = 'n', value_name = "N")]
        limit: Option<usize>,
        /// Only changes of primary, each with what came of it
        #[arg(long)]
        failovers: bool,
    },
    /// Configuration for other programs, made from the cluster as it is
    #[command(subcommand)]
    Export(crate::commands::export::ExportCommand),
    /// What happens, as it happens: history, changes of primary, where the servers are
    #[command(
        after_help = "Examples:\n  stemma events\n  stemma events --follow\n  stemma events --follow --since 120 -o json   (one document a line)"
    )]
    Events(crate::commands::events::EventsArgs),
    /// What old primaries held that the cluster does not: saved before they came back
    #[command(
        subcommand,
        long_about = "What old primaries held that the cluster does not: saved before they came back.\n\nThe bundles are read on the machine of the node that saved them: from the state directory that its node file names, or from those of all nodes of a sandbox.",
        after_help = "Examples:\n  stemma rescue list\n  stemma rescue show 20261120T133349Z-n1-7\n  stemma rescue export 20261120T133349Z-n1-7 --to lost.sql"
    )]
    Rescue(RescueCommand),
    /// Certificates of the nodes
    #[command(subcommand)]
    Cert(CertCommand),
    /// Explain an error code (offline) or a change of primary
    #[command(
        after_help = "Examples:\n  stemma explain ST2107\n  stemma explain last-failover\n  stemma explain fo_7 -o json\n  stemma explain --all"
    )]
    Explain {
        /// A code as ST2107, a change of primary as fo_7 or sw_5, or last-failover
        #[arg(required_unless_present = "all")]
        code: Option<String>,
        /// List all codes
        #[arg(long, conflicts_with = "code")]
        all: bool,
    },
    /// Make a new cluster with this node as its first
    #[command(
        after_help = "Examples:\n  stemma init --name prod-eu\n  stemma init --name prod-eu --settings cluster.toml\n  stemma init --name prod-eu --adopt   (keep the database that is in data_dir)"
    )]
    Init(InitArgs),
    /// Bring this node into a cluster
    #[command(
        after_help = "Examples:\n  stemma join stemma1.eyJ...\n  stemma join stemma1.eyJ... --role witness\n  stemma join stemma1.eyJ... --from n2 --kind delayed --delay 1h"
    )]
    Join(JoinArgs),
    /// Run the keeper of this node (what the service unit starts)
    Run {
        /// Begin a session of its own, so that the end of the terminal does not end the keeper
        #[arg(long, hide = true)]
        new_session: bool,
    },
    /// Run a router on its own, for the cluster whose nodes its file (--config) names
    #[command(
        after_help = "The file:\n  nodes = [\"http://db1:8008\", \"http://db2:8008\"]\n  [router]\n  listen = \"0.0.0.0:6432\"\n  users_file = \"/etc/stemma/users.txt\"\nThe keys of [router] are in docs/configuration.md; it may also stand in a node file, then `stemma run` runs the router."
    )]
    Router {
        /// Ask a router that runs instead
        #[command(subcommand)]
        command: Option<crate::commands::router::RouterCommand>,
    },
    /// How a driver writes down where the router is
    #[command(
        after_help = "Examples:\n  stemma dsn --for psycopg --host db.example.org:6432 --database shop --user ann"
    )]
    Dsn(crate::commands::dsn::DsnArgs),
    /// Configuration of other programs, and what it becomes here
    #[command(subcommand)]
    Import(crate::commands::import::ImportCommand),
    /// Asks a server on behalf of `stemma init --adopt`
    #[command(hide = true)]
    AdoptSession,
    /// Ends a server whose lease ran out while its keeper hung
    #[command(hide = true)]
    LeaseWatcher {
        /// Data directory of the server
        data_dir: PathBuf,
        /// Floating address with its prefix
        #[arg(requires = "interface")]
        address: Option<String>,
        /// Where that is
        interface: Option<String>,
    },
    /// Throw-away local clusters of real servers
    #[command(subcommand)]
    Sandbox(SandboxCommand),
    /// A sandbox under live load, ending with proof that nothing was lost
    #[command(
        after_help = "Examples:\n  stemma demo\n  stemma demo --seconds 30\n  stemma demo --ci --seconds 10   (plain lines, exit 1 if a row is missing)\n  stemma demo --ci --scenario kill-host --assert max-outage=15s,lost=0"
    )]
    Demo(DemoArgs),
    /// Print a shell completion script
    #[command(
        after_help = "Examples:\n  stemma completion bash > /etc/bash_completion.d/stemma\n  stemma completion zsh > ~/.zfunc/_stemma\n  stemma completion fish > ~/.config/fish/completions/stemma.fish"
    )]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Bring the generated parts of the reference pages up to date
    #[command(hide = true)]
    Reference {
        /// Directory of the pages
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        write: PathBuf,
    },
}

/// `stemma status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Exit 8 unless the cluster is healthy
    #[arg(long)]
    pub check: bool,
    /// Redraw until interrupted
    #[arg(long, value_name = "SPAN", num_args = 0..=1, require_equals = true, default_missing_value = "1s")]
    pub watch: Option<Span>,
}

/// `stemma node ...`
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// All nodes
    List,
    /// One node, with all that is known of it
    Show {
        /// Its name
        node: NodeName,
    },
    /// Take a node out of the cluster
    #[command(
        after_help = "Examples:\n  stemma node remove n3\n  stemma node remove n3 --yes\n  stemma node remove n3 --force   (its keeper is gone for good)"
    )]
    Remove {
        /// Its name
        node: NodeName,
        /// Also when its keeper does not answer
        #[arg(long)]
        force: bool,
    },
    /// Change what a node is
    #[command(
        after_help = "Examples:\n  stemma node set n3 --kind delayed --delay 1h\n  stemma node set n4 --from n3\n  stemma node set n4 --from primary --priority 50"
    )]
    Set(NodeSetArgs),
    /// Let a halted node check its history and follow again
    Rejoin {
        /// Its name
        node: NodeName,
    },
    /// Rebuild a replica from a fresh base backup
    Reinit {
        /// Its name
        node: NodeName,
    },
}

/// `stemma node set`
#[derive(Debug, Args)]
pub struct NodeSetArgs {
    /// Its name
    pub node: NodeName,
    /// How the replica is used
    #[arg(long, value_enum)]
    pub kind: Option<KindArg>,
    /// How late a delayed replica applies changes
    #[arg(long, value_name = "SPAN")]
    pub delay: Option<Span>,
    /// Node to stream from, or `primary`
    #[arg(long, value_name = "NODE")]
    pub from: Option<NodeName>,
    /// Where it is
    #[arg(long)]
    pub site: Option<Site>,
    /// Failover preference: higher wins, 0 never
    #[arg(long)]
    pub priority: Option<u32>,
}

/// `ReplicaKind` on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KindArg {
    /// Serves reads, may acknowledge commits, may be promoted.
    Hot,
    /// For failover only.
    Standby,
    /// Applies changes late on purpose.
    Delayed,
}

impl From<KindArg> for model::ReplicaKind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Hot => model::ReplicaKind::Hot,
            KindArg::Standby => model::ReplicaKind::Standby,
            KindArg::Delayed => model::ReplicaKind::Delayed,
        }
    }
}

/// `Role` of a joining node on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// Holds a copy of the database.
    #[default]
    Replica,
    /// Votes without a database.
    Witness,
}

impl From<RoleArg> for model::Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Replica => model::Role::Replica,
            RoleArg::Witness => model::Role::Witness,
        }
    }
}

/// What a token admits, on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TokenRoleArg {
    /// A node that holds a copy of the database.
    #[default]
    Replica,
    /// A node that votes without a database.
    Witness,
    /// A whole cluster that follows this one.
    Follower,
}

/// `stemma token ...`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token; prints the exact line to use it
    #[command(
        after_help = "Examples:\n  stemma token create\n  stemma token create --role witness\n  stemma token create --role follower   (another cluster is to follow this one)\n  stemma token create --ttl 10min -o json"
    )]
    Create {
        /// What it admits
        #[arg(long, value_enum, default_value_t)]
        role: TokenRoleArg,
        /// How long it lives [default: 1h]
        #[arg(long, value_name = "SPAN")]
        ttl: Option<Span>,
    },
    /// Tokens that are alive or were used not long ago
    List,
    /// Make a token unusable
    Revoke {
        /// Its public id, as `token list` shows it
        id: String,
    },
}

/// `stemma config ...`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// The settings in force
    Show {
        /// Say of each key whether it was set or is the default
        #[arg(long)]
        origin: bool,
    },
    /// What applying a file would change; exit 8 when it would change something
    Plan {
        /// Cluster settings, TOML
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Make a file the settings of the cluster
    Apply {
        /// Cluster settings, TOML
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Change single keys
    #[command(
        after_help = "Examples:\n  stemma config set commit_mode=quorum\n  stemma config set strict=true voter_grace=5s\n  stemma config set postgresql.parameters.work_mem=16MB"
    )]
    Set {
        /// KEY=VALUE; an empty value brings back the default
        #[arg(required = true, value_name = "KEY=VALUE")]
        assignments: Vec<String>,
    },
    /// Versions of the settings
    History,
    /// Bring back an earlier version, as a new version
    Rollback {
        /// Which
        version: u64,
    },
    /// Check a node file or a file of cluster settings, without a cluster
    Check {
        /// The file
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// What a key means
    Explain {
        /// The key, for example commit_mode
        key: String,
    },
}

/// `stemma restart`
#[derive(Debug, Args)]
pub struct RestartArgs {
    /// One after the other (the only way there is)
    #[arg(long, required = true)]
    pub rolling: bool,
    /// Only where a parameter waits for a restart
    #[arg(long)]
    pub pending: bool,
    /// Do not wait for the end
    #[arg(long)]
    pub no_wait: bool,
    /// Only these nodes
    #[arg(value_name = "NODE")]
    pub nodes: Vec<NodeName>,
}

/// `stemma switchover`
#[derive(Debug, Args)]
pub struct SwitchoverArgs {
    /// The node to become the primary [default: the best one]
    #[arg(long, value_name = "NODE")]
    pub to: Option<NodeName>,
    /// When: a time with an offset, or +SPAN from now
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// Take back the one that is planned
    #[arg(long, conflicts_with_all = ["to", "at"])]
    pub cancel: bool,
    /// Do not wait for the end
    #[arg(long)]
    pub no_wait: bool,
}

/// `stemma failover`
#[derive(Debug, Args)]
pub struct FailoverArgs {
    /// The node to become the primary
    #[arg(long, value_name = "NODE", required_unless_present = "best")]
    pub to: Option<NodeName>,
    /// The node that has received most
    #[arg(long, conflicts_with = "to")]
    pub best: bool,
    /// The most that may be lost, in bytes of log as in 16MB, or `unknown`
    #[arg(long, value_name = "BOUND")]
    pub accept_data_loss: Option<String>,
    /// Do not wait for the end
    #[arg(long)]
    pub no_wait: bool,
}

/// `stemma op ...`
#[derive(Debug, Subcommand)]
pub enum OpCommand {
    /// All that are known
    List,
    /// One, with its steps
    Show {
        /// Its id
        id: String,
    },
    /// Follow one to its end
    Watch {
        /// Its id
        id: String,
    },
    /// End one before its next step
    Cancel {
        /// Its id
        id: String,
    },
}

/// `stemma rescue ...`
#[derive(Debug, Subcommand)]
pub enum RescueCommand {
    /// All bundles, oldest first
    List,
    /// One, with what is in it and what could not be read
    Show {
        /// Its id
        id: String,
    },
    /// Write out the changes; the bundle stays until it is deleted, or a newer one needs its room
    Export {
        /// Its id
        id: String,
        /// As statements, or as one JSON document a line
        #[arg(long, value_enum, default_value_t)]
        format: RescueFormat,
        /// A new file for them [default: standard output]
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        to: Option<PathBuf>,
    },
    /// Remove one for good
    Delete {
        /// Its id
        id: String,
    },
}

/// Form of exported changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RescueFormat {
    /// Statements to read, choose from and adapt.
    #[default]
    Sql,
    /// One JSON document a line.
    Jsonl,
}

/// `stemma cert ...`
#[derive(Debug, Subcommand)]
pub enum CertCommand {
    /// When certificates end
    Status,
    /// Give a node a new key and certificate; all nodes, one after the other, when none is named
    Rotate {
        /// Only this one
        node: Option<NodeName>,
    },
}

/// `stemma init`
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Name of the cluster
    #[arg(long)]
    pub name: ClusterName,
    /// Keep the database that is in data_dir and make it the first copy
    #[arg(long)]
    pub adopt: bool,
    /// With --adopt of a running server: a superuser of it [default: the owner of the data directory]
    #[arg(long, value_name = "ROLE", requires = "adopt")]
    pub superuser: Option<String>,
    /// With --adopt of a running server: how to log in as a superuser, where the owner of the data directory may not
    /// log in over the socket without a password; a password may be in PGPASSWORD
    #[arg(long, value_name = "DSN", requires = "adopt", conflicts_with = "superuser")]
    pub adopt_dsn: Option<String>,
    /// Cluster settings to begin with, TOML
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub settings: Option<PathBuf>,
}

/// `stemma join`
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The token that `stemma token create` printed; `-` reads it from standard input
    pub token: String,
    /// What this node is to be
    #[arg(long, value_enum, default_value_t)]
    pub role: RoleArg,
    /// How a replica is used
    #[arg(long, value_enum, default_value = "hot")]
    pub kind: KindArg,
    /// For --kind delayed: how late
    #[arg(long, value_name = "SPAN")]
    pub delay: Option<Span>,
    /// Node to stream from, instead of the primary
    #[arg(long, value_name = "NODE")]
    pub from: Option<NodeName>,
    /// Instead of the site in the node file
    #[arg(long)]
    pub site: Option<Site>,
    /// Failover preference: higher wins, 0 never
    #[arg(long, default_value_t = 100)]
    pub priority: u32,
}

/// `stemma sandbox ...`
#[derive(Debug, Subcommand)]
pub enum SandboxCommand {
    /// Build a cluster, or start a stopped one again
    #[command(
        after_help = "Examples:\n  stemma sandbox start --dir /tmp/sb\n  stemma sandbox start --dir /tmp/sb --nodes 4 --cascade n4:n3 --witnesses 1\n  stemma sandbox start --dir /tmp/sb --commit-mode sync --set postgresql.parameters.work_mem=8MB -o json"
    )]
    Start(SandboxStartArgs),
    /// Nodes of a sandbox with addresses, processes and directories
    Status(SandboxDir),
    /// Stop all keepers and servers
    Stop {
        /// The sandbox
        #[command(flatten)]
        dir: SandboxDir,
        /// Remove the directory too
        #[arg(long)]
        purge: bool,
    },
    /// Kill something the hard way
    Crash(SandboxTarget),
    /// Stop processes without ending them (SIGSTOP)
    Freeze(SandboxTarget),
    /// Let frozen processes go on (SIGCONT)
    Thaw(SandboxTarget),
    /// Start the keeper of a node again, after stopping it if it runs
    Restart {
        /// The node
        node: NodeName,
        /// The sandbox
        #[command(flatten)]
        dir: SandboxDir,
    },
}

/// Which sandbox.
#[derive(Clone, Debug, Args)]
pub struct SandboxDir {
    /// Directory of the sandbox [default: that of --sandbox]
    #[arg(long, value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
}

/// What to hit in a sandbox.
#[derive(Debug, Args)]
pub struct SandboxTarget {
    /// The node
    pub node: NodeName,
    /// What of it
    #[arg(long, value_enum)]
    pub what: What,
    /// The sandbox
    #[command(flatten)]
    pub dir: SandboxDir,
}

/// Parts of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// All processes of its database server.
    Postgres,
    /// Its keeper.
    Keeper,
    /// Both, as when the machine fails.
    Host,
}

/// `stemma sandbox start`
#[derive(Clone, Debug, Args)]
pub struct SandboxStartArgs {
    /// The sandbox
    #[command(flatten)]
    pub dir: SandboxDir,
    /// Nodes with a database: n1, n2, ...
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub nodes: u16,
    /// Witnesses: w1, w2, ...
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=8))]
    pub witnesses: u16,
    /// First of the ports to use, three per node [default: free ones]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..=65000))]
    pub base_port: Option<u16>,
    /// How many replicas hold a commit before it is acknowledged: async, semi-sync, quorum, sync
    #[arg(long, value_name = "MODE")]
    pub commit_mode: Option<CommitMode>,
    /// A cluster setting; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// NODE:UPSTREAM, for example n4:n3; may be given more than once
    #[arg(long, value_name = "NODE:UPSTREAM", value_parser = parse_cascade)]
    pub cascade: Vec<(NodeName, NodeName)>,
    /// Directory of the programs `postgres` and `initdb` [default: newest installed]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub pg_bin: Option<PathBuf>,
    /// Name of the cluster
    #[arg(long, default_value = "sandbox")]
    pub name: ClusterName,
    /// Where the cluster's state is kept
    #[arg(long, value_enum, default_value_t)]
    pub consensus: ConsensusArg,
    /// With --consensus etcd: client addresses of an etcd that runs
    #[arg(long, value_name = "URL", value_delimiter = ',', required_if_eq("consensus", "etcd"))]
    pub etcd_endpoints: Vec<String>,
}

/// `--consensus`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ConsensusArg {
    /// In the keepers themselves
    #[default]
    Embedded,
    /// In an etcd that runs already
    Etcd,
}

fn parse_cascade(text: &str) -> Result<(NodeName, NodeName), String> {
    let (node, upstream) = text.split_once(':').ok_or("write NODE:UPSTREAM, as in n4:n3")?;
    let parse = |name: &str| name.parse::<NodeName>().map_err(|bad| bad.to_string());
    Ok((parse(node)?, parse(upstream)?))
}

/// `stemma demo`
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Where the sandbox is built [default: a new directory under the temporary directory]
    #[arg(long, value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// End by itself after so many seconds
    #[arg(long, value_name = "N")]
    pub seconds: Option<u64>,
    /// Plain lines, no keys; ends after 15 seconds unless --seconds says otherwise
    #[arg(long)]
    pub ci: bool,
    /// Do this to the primary after a third of the time, without anybody at the keys
    #[arg(long, value_enum)]
    pub scenario: Option<ScenarioArg>,
    /// What must hold at the end of the scenario, as in max-outage=1s,lost=0; exit 1 if it does not
    #[arg(long, value_name = "ASSERTION", requires = "scenario")]
    pub assert: Option<crate::demo::Assertion>,
    /// Directory of the programs `postgres` and `initdb` [default: newest installed]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub pg_bin: Option<PathBuf>,
}

/// What a scenario does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScenarioArg {
    /// Kill the primary's server
    KillPrimary,
    /// Kill the primary's server and keeper
    KillHost,
    /// Switch over in order
    Switchover,
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
