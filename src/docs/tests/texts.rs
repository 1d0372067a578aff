//! README keeps one page, and what the pages tell people to type exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::page::{self, Page, root};
use crate::commands;
use crate::config;

/// Lines of README.
const LONGEST: usize = 150;

#[test]
fn readme_is_one_page() {
    let lines = Page::open(&root().join("README.md")).text.lines().count();
    assert!(lines <= LONGEST, "README has {lines} lines");
}

#[test]
fn verbs_of_make_exist() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let rules = makefile.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
    let verbs: BTreeSet<&str> =
        rules.filter_map(|line| line.split(':').next()).flat_map(str::split_whitespace).collect();
    let mut checked = 0;
    for page in page::all() {
        for verb in typed(&page, "make ") {
            checked += 1;
            assert!(verbs.contains(verb), "{}: there is no `make {verb}`", page.path.display());
        }
    }
    assert!(checked > 15, "only {checked} were found");
}

/// A suite is a file or folder of a group in `integration/tests`, and a group a folder or file there.
#[test]
fn suites_exist() {
    let names = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let groups = names(&root().join("integration/tests"));
    let suites: Vec<PathBuf> =
        groups.iter().filter(|path| path.is_dir()).flat_map(|path| names(path)).collect();
    let known: BTreeSet<&str> =
        groups.iter().chain(&suites).filter_map(|path| path.file_stem()?.to_str()).collect();
    let mut checked = 0;
    for page in page::all() {
        for (at, _) in page.text.match_indices("make integration T=") {
            let name = page.text[at..].split('=').nth(1).unwrap();
            let name = name.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap();
            checked += 1;
            assert!(known.contains(name), "{}: there is no suite {name}", page.path.display());
        }
    }
    assert!(checked > 3, "only {checked} were found");
}

#[test]
fn commands_of_flanneld_exist() {
    let command = config::command_line(commands::clap_commands());
    let mut checked = 0;
    for page in page::all() {
        for verb in typed(&page, "flanneld ") {
            checked += 1;
            let known = command.find_subcommand(verb).is_some();
            assert!(known, "{}: there is no `flanneld {verb}`", page.path.display());
        }
    }
    assert!(checked > 15, "only {checked} were found");
}

/// The word that follows `program` in each piece of code that calls it, if it is a word.
fn typed<'p>(page: &'p Page, program: &str) -> Vec<&'p str> {
    let word = |code: &'p str| {
        let code = code.trim_start_matches("$ ").trim_start_matches("/opt/bin/");
        let rest = code.strip_prefix(program)?;
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(rest.len());
        Some(&rest[..end]).filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase()))
    };
    page.code().into_iter().filter_map(word).collect()
}
