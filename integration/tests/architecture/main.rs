//! The shape of the code, checked by reading it: what may name what, where side effects live, and how long a
//! file may get. What `no_std` and a dependency test can check about `encap` is checked there.

#![expect(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    reason = "reads the source code, and has nothing to say but that it cannot; nothing of this ships"
)]

mod rooms;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use crate::source::{Crate, Module};

const LONGEST: usize = 500;

#[test]
fn rooms_name_what_stands_above_them() {
    let modules = modules();
    assert!(modules.len() > 150, "only {} modules were read", modules.len());
    let wrong: Vec<String> = modules
        .iter()
        .flat_map(|module| {
            rooms::wrong(module).into_iter().map(|name| format!("{} names {name}", module.file.display()))
        })
        .collect();
    assert!(wrong.is_empty(), "not allowed by the table in {}:\n{}", "rooms.rs", wrong.join("\n"));
}

#[test]
fn unsafe_code_stays_in_the_adapters() {
    let with_unsafe = |module: &&Module| module.has_unsafe;
    let modules = modules();
    let wrong: Vec<_> =
        modules.iter().filter(with_unsafe).filter(|module| module.path[..1] != ["adapter"]).collect();
    assert!(wrong.is_empty(), "unsafe code outside src/adapter: {wrong:?}");
    let encap = Crate { name: "encap", others: &[] }.read(&root().join("encap/src/lib.rs"));
    let in_encap: Vec<_> = encap.iter().filter(with_unsafe).map(|module| module.path.join("::")).collect();
    assert!(in_encap.iter().all(|path| path == "offload::wide"), "unsafe code in encap: {in_encap:?}");
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
    let of = |room: &str, text: &str| -> Vec<String> {
        let read = Crate { name: "loden", others: &["nix", "prometheus", "tokio"].map(String::from) }
            .text(&[room, "x"], text);
        read.iter().flat_map(rooms::wrong).collect()
    };
    // However a path begins, and wherever it stands.
    assert_eq!(of("lease", "use crate::adapter::file;"), ["adapter::file"]);
    assert_eq!(of("lease", "use super::super::adapter::file;"), ["adapter::file"]);
    assert_eq!(of("lease", "mod y { use super::super::super::adapter; }"), ["adapter"]);
    assert_eq!(of("lease", "fn f() { loden::daemon::run() }"), ["daemon::run"]);
    assert_eq!(of("lease", "fn f() { println!(\"{}\", crate::daemon::run(1)); }"), ["daemon::run"]);
    assert_eq!(of("plan", "use crate::{lease::Lease, daemon::{self, State}};"), ["daemon", "daemon::State"]);
    assert_eq!(of("reconcile", "fn f() { crate::telemetry::log() }"), ["telemetry::log"]);
    assert_eq!(of("ports", "use crate::nonsense::x;"), ["nonsense::x"]);
    // A circle inside a floor, and the two that must not know each other.
    assert_eq!(of("config", "use crate::lease::x;"), ["lease::x"]);
    assert_eq!(of("daemon", "use crate::commands::x;"), ["commands::x"]);
    assert_eq!(of("commands", "use crate::daemon::x;"), ["daemon::x"]);
    // Effects and other crates.
    assert_eq!(of("plan", "use std::fs;"), ["std::fs"]);
    assert_eq!(
        of("daemon", "fn f() { std::process::Command::new(\"ip\"); }"),
        ["std::process::Command::new"]
    );
    assert_eq!(of("plan", "use std::thread; fn f() { thread::spawn(g); }"), ["std::thread::spawn"]);
    assert_eq!(of("daemon", "use tokio::net::UdpSocket as Quiet;"), ["tokio::net::UdpSocket"]);
    assert_eq!(of("plan", "use nix::sched; use prometheus::Counter;"), ["nix::sched", "prometheus::Counter"]);
    assert_eq!(
        of("nowhere", ""),
        [format!("src/nowhere is no room: give it a line in {}", "integration/tests/architecture/rooms.rs")]
    );
    // What is right, and tests, which may look at anything.
    assert_eq!(
        of("plan", "use crate::lease::x; // crate::daemon\n/// [`crate::daemon`]\nuse crate::VERSION;"),
        [""; 0]
    );
    assert_eq!(
        of(
            "plan",
            "#[cfg(test)]\nmod tests { use crate::daemon::x; }\n#[cfg(test)]\nfn f() { crate::daemon::x() }"
        ),
        [""; 0]
    );
    let unsafe_in = |text: &str| Crate { name: "loden", others: &[] }.text(&["plan"], text)[0].has_unsafe;
    assert!(
        unsafe_in("fn f() { unsafe { y() } }")
            && unsafe_in("unsafe impl X for Y {}")
            && unsafe_in("unsafe fn f() {}")
    );
    assert!(!unsafe_in("// unsafe { y }\n#[expect(unsafe_code)]\nfn f() {}"));
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

/// All modules of the root package: the library's, and those of its programs in the rooms `main` and `bin`.
fn modules() -> Vec<Module> {
    let manifest = read(&root().join("Cargo.toml"));
    let dependencies = manifest.split("\n[dependencies]\n").nth(1).and_then(|rest| rest.split("\n[").next());
    let others: Vec<String> = dependencies
        .unwrap_or_else(|| panic!("no dependencies in Cargo.toml"))
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect();
    let read = Crate { name: "loden", others: &others };
    let mut modules = read.read(&root().join("src/lib.rs"));
    for (room, file) in [("main", "src/main.rs"), ("bin", "src/bin/flannel.rs")] {
        for mut module in read.read(&root().join(file)) {
            module.path.insert(0, room.to_owned());
            modules.push(module);
        }
    }
    modules
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
