//! Subcommands: what serves people beside the daemon.
//!
//! Each is one file with its arguments and what it does, and one line in [`VERBS`]. They write what was asked for to
//! standard output, and all else to standard error. Their exit status is 0 if all is well, 1 if something was found, and
//! 2 if that cannot be told or the command line is wrong.

mod cleanup;
mod cp;
mod install_conf;
mod log_level;
mod output;
mod routes;
mod socket;
mod verify;
mod version;

use anyhow::{Context, Result};
use clap::ArgMatches;

/// All subcommands, in the order of the help.
pub const VERBS: &[Entry] = &[
    Entry::of::<routes::Routes>(),
    Entry::of::<verify::Verify>(),
    Entry::of::<cleanup::Cleanup>(),
    Entry::of::<log_level::LogLevel>(),
    Entry::of::<install_conf::InstallConf>(),
    Entry::of::<cp::Cp>(),
    Entry::of::<version::Version>(),
];

/// What a subcommand came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Exit status 0.
    Fine,
    /// Something is not as it should be: exit status 1.
    Found,
}

/// A subcommand. Its fields are its arguments, and its documentation is its help.
trait Verb: clap::Parser {
    /// When its exit status is 1, for those that look for something.
    const FOUND: Option<&'static str> = None;

    /// Does it, and prints what was asked for.
    ///
    /// # Errors
    /// It cannot be done or told: exit status 2.
    fn exec(self) -> Result<Outcome>;
}

/// A subcommand in [`VERBS`].
#[derive(Debug)]
pub struct Entry {
    command: fn() -> clap::Command,
    exec: fn(&ArgMatches) -> Result<Outcome>,
}

impl Entry {
    const fn of<V: Verb>() -> Self {
        Self { command: command::<V>, exec: exec::<V> }
    }
}

fn command<V: Verb>() -> clap::Command {
    let found = V::FOUND.map(|found| format!("1 if {found}, ")).unwrap_or_default();
    V::command().after_help(format!(
        "Exit status: 0 if all is well, {found}2 if that cannot be told or the command line is wrong"
    ))
}

fn exec<V: Verb>(matches: &ArgMatches) -> Result<Outcome> {
    V::from_arg_matches(matches)?.exec()
}

/// How the command line of each is to be read.
pub fn clap_commands() -> impl Iterator<Item = clap::Command> {
    VERBS.iter().map(|verb| (verb.command)())
}

/// Runs the subcommand of this name.
///
/// # Errors
/// It cannot be done or told.
pub fn run(name: &str, matches: &ArgMatches) -> Result<Outcome> {
    let verb = VERBS.iter().find(|verb| (verb.command)().get_name() == name);
    (verb.with_context(|| format!("{name} is no subcommand"))?.exec)(matches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_name_of_its_own_and_says_how_it_exits() {
        let mut names = std::collections::BTreeSet::new();
        for mut command in clap_commands() {
            command.clone().debug_assert();
            assert!(command.get_about().is_some(), "{command}");
            assert!(command.render_help().to_string().contains("Exit status: 0 "), "{command}");
            assert!(names.insert(command.get_name().to_owned()), "{command} is there twice");
        }
    }
}
