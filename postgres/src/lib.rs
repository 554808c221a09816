//! The PostgreSQL engine: finding, making, configuring, starting, watching, copying and stopping a stock server.
//!
//! Floor 3: does what it is told. Which server is primary, who may acknowledge and when to stop are decided elsewhere.

pub mod adopt;
pub mod clone;
pub mod comeback;
pub mod conf;
pub mod control_file;
pub mod data_dir;
mod files;
mod hba;
pub mod initdb;
pub mod install;
mod log_end;
pub mod manifest;
pub mod os_user;
pub mod process;
pub mod recover;
mod reload;
pub mod replication;
pub mod rescue;
pub mod rewind;
pub mod running;
pub mod sample;
mod single_user;
mod slots;
pub mod spec;
pub mod sql;
pub mod untar;
mod values;
pub mod wal;
pub mod wire;
mod written;

pub use comeback::{CameBack, Comeback, ComebackDeadlines, Way, comeback};
pub use conf::{ConfigChange, OWNED_PARAMETERS, ServerConfig, ServerRole, validate_parameter, write_config};
pub use control_file::{ControlFile, ControlState, read_control_file};
pub use data_dir::{DataDir, check_data_dir};
pub use initdb::initdb;
pub use install::{Installation, find_installation};
pub use log_end::{shutdown_end, timeline_of_log, unreplayed};
pub use os_user::{OsUser, server_user};
pub use process::{
    Server, StopMode, kill_everything, last_words, nothing_runs, receiver_processes, server_log_size, server_log_tail,
    server_processes, terminate_receiver,
};
pub use recover::{Recovered, crash_recover};
pub use reload::cut_receiver;
pub use running::{ActiveFiles, socket_directories, whereabouts, write_active};
pub use spec::{ServerSpec, TlsFiles, socket_dir_for};
pub use sql::{LogEnd, Sql};
pub use values::check_values;
pub use written::written_parameter;
