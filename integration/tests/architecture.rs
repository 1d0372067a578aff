//! The shape of the code, checked by reading it: floors, where side effects live, and how long a file may get.
//! What `no_std` and a dependency test can check about `encap` is checked there.

#![expect(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    reason = "reads the source code, and has nothing to say but that it cannot; nothing of this ships"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Modules of the root package by floor. A module may name its own floor and lower ones.
/// Floor 0 is the crate `encap`.
const FLOORS: [&[&str]; 5] = [
    &["backend", "cni", "config", "lease", "plan", "report", "view"],
    &["ports"],
    &["dataplane", "reconcile"],
    &["adapter", "telemetry"],
    &["commands", "daemon", "docs", "plugin"],
];

/// Modules of one floor of which the first must not name the second: the daemon does not know its clients.
const APART: [(&str, &str); 1] = [("daemon", "commands")];

/// Not a floor but a name of the crate itself.
const EVERYWHERE: [&str; 1] = ["VERSION"];

/// Code that acts on the world; it belongs to the adapters, and clocks to the wiring place too.
const EFFECTS: [&str; 9] = [
    "Command::new",
    "std::fs::",
    "File::open",
    "OpenOptions::new",
    "UdpSocket::",
    "TcpListener::",
    "TcpStream::",
    "UnixStream::",
    "Socket::new",
];

const LONGEST: usize = 500;

#[test]
fn no_floor_names_a_higher_one() {
    let mut checked = 0;
    let mut wrong = Vec::new();
    for file in sources("src") {
        let Some(module) = module_of(&file) else { continue };
        wrong.extend(
            upward(&module, &read(&file)).into_iter().map(|name| format!("{} names {name}", file.display())),
        );
        checked += 1;
    }
    assert!(checked > 20, "only {checked} files were read");
    assert!(wrong.is_empty(), "a floor may only name lower ones:\n{}", wrong.join("\n"));
}

#[test]
fn side_effects_stay_in_the_adapters() {
    let mut wrong = Vec::new();
    for file in sources("src") {
        if module_of(&file).is_none_or(|module| module == "adapter") {
            continue;
        }
        let code = code(&read(&file));
        wrong.extend(
            EFFECTS
                .iter()
                .filter(|effect| code.contains(*effect))
                .map(|effect| format!("{}: {effect}", file.display())),
        );
    }
    assert!(wrong.is_empty(), "side effects outside src/adapter:\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_stays_in_the_adapters() {
    let outside = |file: &PathBuf| module_of(file).is_none_or(|module| module != "adapter");
    let wrong: Vec<_> =
        sources("src").into_iter().filter(outside).filter(|file| has_unsafe(&read(file))).collect();
    assert!(wrong.is_empty(), "unsafe code outside src/adapter: {wrong:?}");
    let in_encap: Vec<_> = sources("encap/src").into_iter().filter(|file| has_unsafe(&read(file))).collect();
    assert!(
        in_encap.iter().all(|file| file.ends_with("offload/wide.rs")),
        "unsafe code in encap: {in_encap:?}"
    );
    assert!(read(&root().join("encap/src/lib.rs")).contains("#![deny(unsafe_code)]"));
    assert!(read(&root().join("encap/src/lib.rs")).contains("#![no_std]"));
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let long: Vec<String> =
        ["src", "encap/src", "encap/tests", "integration/src", "integration/tests", "benches"]
            .into_iter()
            .flat_map(sources)
            .map(|file| (read(&file).lines().count(), file))
            .filter(|(lines, _)| *lines > LONGEST)
            .map(|(lines, file)| format!("{} has {lines} lines", file.display()))
            .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// Which backend runs is known inside src/backend only. The compiler keeps others from matching on the private enum; this
/// keeps the enum private, and finds those who compare words instead.
#[test]
fn nobody_asks_which_backend_runs() {
    let head = read(&root().join("src/backend/mod.rs"));
    assert!(
        variants(&head, "\nenum Kind {").len() >= 4,
        "src/backend/mod.rs has no private enum Kind of backends"
    );
    let inside = root().join("src/backend");
    let everywhere = sources("src").into_iter().filter(|file| !file.starts_with(&inside));
    let wrong: Vec<String> = everywhere
        .flat_map(|file| {
            which_backend(&read(&file)).into_iter().map(move |word| format!("{}: {word}", file.display()))
        })
        .collect();
    assert!(wrong.is_empty(), "a backend is asked, not compared:\n{}", wrong.join("\n"));
}

/// Names of the variants of the enum that begins with `opening`.
fn variants<'a>(text: &'a str, opening: &str) -> Vec<&'a str> {
    let Some((_, body)) = text.split_once(opening) else { return Vec::new() };
    let body = body.split('}').next().unwrap_or_default();
    body.lines().filter_map(|line| line.trim().split('(').next()).filter(|name| !name.is_empty()).collect()
}

/// Comparisons of a backend's name, as they would be written.
fn which_backend(text: &str) -> Vec<String> {
    let code = code(text);
    let asks = |line: &&str| {
        line.contains("backend")
            && ["== \"", "!= \"", "matches!("].iter().any(|comparison| line.contains(comparison))
    };
    code.lines().filter(asks).map(|line| line.trim().to_owned()).collect()
}

/// The checks themselves, on code that breaks every rule.
#[test]
fn the_checks_can_fail() {
    assert_eq!(upward("lease", "use crate::adapter::file;"), ["adapter"]);
    assert_eq!(upward("plan", "use crate::{lease::Lease, daemon::{self, State}};"), ["daemon"]);
    assert_eq!(upward("reconcile", "fn f() { crate::telemetry::log() }"), ["telemetry"]);
    assert_eq!(upward("ports", "use crate::nonsense::x;"), ["nonsense"]);
    assert_eq!(upward("daemon", "use crate::adapter::file; use crate::commands::routes;"), ["commands"]);
    assert_eq!(upward("commands", "use crate::adapter::file; use crate::daemon::x;"), [""; 0]);
    assert_eq!(
        upward("lease", "// use crate::adapter::file;\n/// [`crate::daemon`]\nuse crate::config::x;"),
        [""; 0]
    );
    assert!(has_unsafe("let x = unsafe { y };") && !has_unsafe("// unsafe { y }\n#[expect(unsafe_code)]"));
    assert_eq!(
        variants("x\nenum Kind {\n    Udp(udp::Udp),\n    HostGw,\n}\n", "\nenum Kind {"),
        ["Udp", "HostGw,"]
    );
    assert!(variants("pub enum Kind {\n    Udp,\n}\n", "\nenum Kind {").is_empty());
    assert_eq!(which_backend("if view.backend == \"udp\" {}"), ["if view.backend == \"udp\" {}"]);
    assert!(which_backend("backend: \"udp\".into(), // backend == \"udp\"").is_empty());
    assert_eq!(code("#[cfg(test)]\nmod tests;\nb();\n"), "b();\n");
    assert_eq!(code("a(); // Command::new\n#[cfg(test)]\nmod tests { Command::new }\n"), "a(); \n");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn sources(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![root().join(directory)];
    while let Some(directory) = left.pop() {
        for entry in
            fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "no source in {directory}");
    found
}

/// The top-level module a file of src/ belongs to; none for lib.rs and main.rs.
fn module_of(file: &Path) -> Option<String> {
    let inside = file.strip_prefix(root().join("src")).ok()?;
    let first = inside.iter().next()?.to_str()?.trim_end_matches(".rs");
    (!["lib", "main", "bin"].contains(&first)).then(|| first.to_owned())
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

/// The modules that `text`, part of `module`, names and must not.
fn upward(module: &str, text: &str) -> Vec<String> {
    let own =
        floor(module).unwrap_or_else(|| panic!("src/{module} is on no floor: give it one in {}", file!()));
    let allowed = |name: &String| {
        EVERYWHERE.contains(&name.as_str())
            || (floor(name).is_some_and(|floor| floor <= own) && !APART.contains(&(module, name.as_str())))
    };
    // Tests may look at anything, but not what ships.
    let code = code(text);
    code.split("crate::").skip(1).flat_map(named).filter(|name| !allowed(name)).collect()
}

/// What follows `crate::`: one name, or the first names inside a group in braces.
fn named(rest: &str) -> Vec<String> {
    let word =
        |text: &str| -> String { text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let Some(group) = rest.strip_prefix('{') else { return vec![word(rest)] };
    let (mut depth, mut names, mut start) = (0, Vec::new(), true);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            c if c.is_whitespace() => {}
            _ if start && depth == 0 => {
                names.push(word(&group[at..]));
                start = false;
            }
            _ => {}
        }
    }
    names
}

fn has_unsafe(text: &str) -> bool {
    let code = code(text);
    code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
}

/// The text without comments and without tests: neither the module at its end nor a `mod tests;` on the way.
fn code(text: &str) -> String {
    let mut out = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            if lines.next().is_some_and(|item| item.trim_end().ends_with(';')) {
                continue;
            }
            break;
        }
        out.push_str(line.split("//").next().unwrap_or_default());
        out.push('\n');
    }
    out
}
