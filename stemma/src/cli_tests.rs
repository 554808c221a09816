//! The command line as people type it.

use super::*;
use clap::CommandFactory;

#[test]
fn definitions_are_sound() {
    Cli::command().debug_assert();
}

#[test]
fn arguments_read_as_people_type_them() {
    for line in [
        "stemma status --watch",
        "stemma status --watch=2s --check",
        "stemma -o json status",
        "stemma status -o json",
        "stemma node set n3 --kind delayed --delay 1h",
        "stemma config set commit_mode=quorum",
        "stemma restart --rolling --pending n2",
        "stemma sandbox start --dir /tmp/x --cascade n4:n3 --nodes 4",
        "stemma sandbox crash n1 --what host --dir /tmp/x",
        "stemma cert rotate n1",
        "stemma explain ST2107",
        "stemma --config /etc/stemma/router.toml router",
        "stemma router top --url postgresql://ann@db:6432/stemma --count 1",
    ] {
        Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    for line in [
        "stemma",
        "stemma restart",
        "stemma sandbox start --cascade n4",
        "stemma node show N_BAD",
        "stemma sandbox start --nodes 0",
    ] {
        assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line} must be refused");
    }
}
