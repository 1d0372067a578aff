//! From Go's flag syntax to the one clap takes.
//!
//! flannel's manifests and unit files are written for Go's `flag` package: one dash or two, `-x=v` or
//! `-x v`, booleans bare or with `=`. Each such token becomes `--x` or `--x=v` here, so that clap
//! never has to guess which token is a value.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use clap::{Arg, Command};

use super::values;

/// A command line as clap takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Program name, then the arguments.
    pub(super) args: Vec<OsString>,
    /// The flags that were given, by long name: the environment does not speak for these.
    pub(super) named: BTreeSet<String>,
    /// Where in `args` further flags may be inserted: behind the program name or the subcommand.
    pub(super) flags_at: usize,
    /// The subcommand, if one was given.
    pub(super) subcommand: Option<String>,
    /// A boolean flag that was followed by a value without `=`, and the value. Go takes the flag as
    /// true and ignores the rest of the line; nobody means that.
    pub(super) detached: Option<(String, String)>,
}

/// flannel's images have two more programs that manifests name, `install-conf` and `cp`. Under these names we are they.
pub(super) fn as_helper(argv: impl IntoIterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    const HELPERS: [&str; 2] = ["install-conf", "cp"];
    let mut argv = argv.into_iter();
    let program = argv.next();
    let name = program.as_deref().and_then(|path| Path::new(path).file_name());
    let helper = HELPERS.into_iter().find(|helper| name.is_some_and(|name| name == *helper));
    program.into_iter().chain(helper.map(OsString::from)).chain(argv)
}

/// Rewrites `argv` (program name first) against the flags that `root`, already built, knows.
pub(super) fn normalise(root: &Command, argv: impl IntoIterator<Item = OsString>) -> Line {
    let mut tokens = argv.into_iter();
    let program = tokens.next().unwrap_or_else(|| OsString::from("flanneld"));
    let mut line =
        Line { args: vec![program], named: BTreeSet::new(), flags_at: 1, subcommand: None, detached: None };
    let mut command = root;
    let mut bare_boolean = None;

    while let Some(token) = tokens.next() {
        if token == "--" {
            line.args.push(token);
            line.args.extend(tokens);
            break;
        }
        let before = bare_boolean.take();
        let Some((name, value)) = split(&token) else {
            let value = token.to_str().filter(|value| values::go_bool(value).is_ok());
            line.detached = line.detached.or(before.zip(value.map(str::to_owned)));
            if let Some(sub) = command.find_subcommand(&token) {
                command = sub;
                line.subcommand = Some(sub.get_name().to_owned());
                line.flags_at = line.args.len() + 1;
            }
            line.args.push(token);
            continue;
        };
        let Some((long, arg)) = find(command, name) else {
            // Unknown: clap says so, with the nearest flag it has.
            line.args.push(flag(name, value));
            continue;
        };
        line.named.insert(long.to_owned());
        if !takes_value(arg) {
            // clap gives `-h` a shorter answer than `--help`.
            let short_help = name == "h" && value.is_none();
            bare_boolean = value.is_none().then(|| long.to_owned());
            line.args.push(if short_help { token } else { flag(OsStr::new(long), value) });
            continue;
        }
        // As in Go, the next token is the value even if it begins with a dash. With none left, the
        // bare flag lets clap say that its value is missing.
        let value = value.map(OsStr::to_owned).or_else(|| tokens.next());
        // `--public-ip=` is how a template with nothing to say spells flannel's default.
        let unset = value.as_ref().is_some_and(|v| v.is_empty()) && arg.get_default_values().is_empty();
        if !unset {
            line.args.push(flag(OsStr::new(long), value.as_deref()));
        }
    }
    line
}

/// Name and `=value` of a flag token; nothing for what is not a flag.
fn split(token: &OsStr) -> Option<(&OsStr, Option<&OsStr>)> {
    let bytes = token.as_bytes();
    let body =
        bytes.strip_prefix(b"--").or_else(|| bytes.strip_prefix(b"-")).filter(|body| !body.is_empty())?;
    let mut halves = body.splitn(2, |b| *b == b'=').map(OsStr::from_bytes);
    Some((halves.next()?, halves.next()))
}

/// The flag of this name, and its long name. One letter may also be a short name.
fn find<'c>(command: &'c Command, name: &OsStr) -> Option<(&'c str, &'c Arg)> {
    let name = name.to_str()?;
    let is_named = |arg: &&Arg| {
        arg.get_long() == Some(name)
            || arg.get_short().is_some_and(|short| name.chars().eq(std::iter::once(short)))
    };
    let arg = command.get_arguments().find(is_named)?;
    Some((arg.get_long()?, arg))
}

/// Whether the flag takes the next token as its value. Booleans take theirs behind `=` only.
fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values() && !arg.is_require_equals_set()
}

pub(super) fn flag(name: &OsStr, value: Option<&OsStr>) -> OsString {
    let mut out = OsString::from("--");
    out.push(name);
    if let Some(value) = value {
        out.push("=");
        out.push(value);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::cli;

    fn line(argv: &[&str]) -> Line {
        let root = cli::command(crate::config::tests::verbs());
        normalise(&root, std::iter::once("flanneld").chain(argv.iter().copied()).map(OsString::from))
    }

    #[track_caller]
    fn check(argv: &[&str], want: &[&str]) {
        let got = line(argv);
        assert_eq!(got.args[1..], want.iter().map(OsString::from).collect::<Vec<_>>(), "{argv:?}");
    }

    #[test]
    fn every_spelling_of_a_flag() {
        for argv in [&["-iface=eth0"][..], &["--iface=eth0"], &["-iface", "eth0"], &["--iface", "eth0"]] {
            check(argv, &["--iface=eth0"]);
        }
        check(&["-ip-masq"], &["--ip-masq"]);
        check(&["--ip-masq=T"], &["--ip-masq=T"]);
        check(&["-v", "4"], &["--v=4"]);
        check(&["-v=4"], &["--v=4"]);
        check(&["--v=4"], &["--v=4"]);
        check(&["-h"], &["-h"]);
        check(&["-help"], &["--help"]);
        check(&["-version"], &["--version"]);
    }

    #[test]
    fn values_keep_their_dashes_and_equal_signs() {
        check(&["-iface-regex", "-eth"], &["--iface-regex=-eth"]);
        check(&["-etcd-password=a=b"], &["--etcd-password=a=b"]);
        check(&["--iface", "--ip-masq"], &["--iface=--ip-masq"]);
    }

    #[test]
    fn a_boolean_never_takes_the_next_token() {
        check(&["-ip-masq", "-iface", "eth0"], &["--ip-masq", "--iface=eth0"]);
        check(&["-ip-masq", "false"], &["--ip-masq", "false"]);
        assert_eq!(line(&["-ip-masq", "false"]).detached, Some(("ip-masq".to_owned(), "false".to_owned())));
        assert_eq!(line(&["-ip-masq", "-iface", "true"]).detached, None);
        assert_eq!(line(&["log-level", "false"]).detached, None);
    }

    #[test]
    fn an_empty_value_means_the_default_and_still_silences_the_environment() {
        let got = line(&["-public-ip=", "-iface-can-reach", ""]);
        assert_eq!(got.args.len(), 1);
        assert!(got.named.contains("public-ip") && got.named.contains("iface-can-reach"));
        check(&["-subnet-file="], &["--subnet-file="]);
    }

    #[test]
    fn two_dashes_end_the_flags() {
        check(&["--", "-ip-masq"], &["--", "-ip-masq"]);
    }

    #[test]
    fn a_subcommand_has_its_own_flags() {
        let got = line(&["routes", "-o", "json", "-subnet-file", "/x"]);
        assert_eq!(got.args[1..], ["routes", "--output=json", "--subnet-file=/x"].map(OsString::from));
        assert_eq!((got.flags_at, got.subcommand.as_deref()), (2, Some("routes")));
    }

    #[test]
    fn what_is_not_utf8_reaches_paths_unharmed() {
        let root = cli::command(crate::config::tests::verbs());
        let path = OsStr::from_bytes(b"/run/\xff").to_owned();
        let got = normalise(&root, ["flanneld".into(), OsString::from("-subnet-file"), path]);
        assert_eq!(got.args[1].as_bytes(), b"--subnet-file=/run/\xff");
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics_and_the_program_name_stays(argv in proptest::collection::vec("-{0,3}[a-z=-]{0,12}|\\PC{0,8}", 0..8)) {
            let got = line(&argv.iter().map(String::as_str).collect::<Vec<_>>());
            proptest::prop_assert_eq!(&got.args[0], "flanneld");
            proptest::prop_assert!(got.flags_at <= got.args.len());
        }
    }
}
