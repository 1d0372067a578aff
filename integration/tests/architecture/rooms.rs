//! The table of rooms: what each folder of `src/` may name, inside the crate and outside.
//!
//! A room may name those that stand above it here, so the table leaves no way for a circle. Whoever adds a folder adds
//! a line.

use crate::source::Module;

/// A folder of `src/`, or a file beside the folders.
pub(crate) struct Room {
    name: &'static str,
    /// Rooms above it that it must not know all the same.
    not: &'static [&'static str],
    /// Other crates, besides the standard library. `None` where all effects live: there everything is allowed.
    crates: Option<&'static [&'static str]>,
}

const fn room(name: &'static str, not: &'static [&'static str], crates: &'static [&'static str]) -> Room {
    Room { name, not, crates: Some(crates) }
}

/// Lower floors first. Below all of them is the crate `encap`.
pub(crate) const ROOMS: [Room; 19] = [
    // Pure: no clock, no file, no socket, no runtime.
    room(
        "config",
        &[],
        &["clap", "encap", "regex", "serde", "serde_json", "strsim", "thiserror", "tracing_subscriber"],
    ),
    room("report", &[], &["serde"]),
    room("view", &[], &["serde", "serde_json"]),
    room("backend", &[], &["encap", "serde", "serde_json", "thiserror"]),
    room(
        "lease",
        &[],
        &[
            "encap",
            "jiff",
            "prost",
            "serde",
            "serde_json",
            "serde_path_to_error",
            "serde_saphyr",
            "sha2",
            "thiserror",
        ],
    ),
    // Tables of nftables, whoever owns them: the daemon's and those of the plugins.
    room("tables", &["config", "report", "view", "backend", "lease"], &["encap"]),
    room("plan", &[], &["encap", "serde", "sha2", "thiserror"]),
    room(
        "cni",
        &["report", "view", "backend", "lease", "plan"],
        &["encap", "serde", "serde_json", "thiserror"],
    ),
    // What the loops ask of the world, as traits.
    room("ports", &["view"], &["encap", "thiserror"]),
    // Loops over those traits.
    room("dataplane", &["config", "backend", "lease", "plan", "view"], &["arc_swap", "encap"]),
    room("reconcile", &["config", "backend", "dataplane", "view"], &["encap", "fastrand", "tokio"]),
    // Effects.
    room(
        "telemetry",
        &["config", "backend", "reconcile"],
        &["anyhow", "dashmap", "encap", "prometheus", "tracing", "tracing_subscriber"],
    ),
    Room { name: "adapter", not: &[], crates: None },
    // Wiring. The daemon and its clients know each other by what `view` says, and by nothing else.
    room("daemon", &[], &["anyhow", "encap", "jiff", "sd_notify", "tokio", "tracing"]),
    room(
        "commands",
        &["daemon"],
        &["anyhow", "clap", "comfy_table", "serde", "serde_json", "serde_saphyr", "tokio"],
    ),
    // The program `flannel`, a CNI plugin, which is started for every pod: no part of the daemon, and no runtime.
    room(
        "plugin",
        &[
            "config",
            "report",
            "backend",
            "lease",
            "plan",
            "ports",
            "dataplane",
            "reconcile",
            "telemetry",
            "daemon",
            "commands",
        ],
        &["encap", "fastrand", "serde", "serde_json"],
    ),
    // The manual names whatever it explains.
    room("docs", &[], &[]),
    room("bin", &["daemon", "commands", "adapter", "telemetry"], &[]),
    room("main", &[], &["anyhow", "clap", "tokio", "tracing"]),
];

/// Ways to act on the world, or to look at it, that belong to the adapters. Those of other crates are in the table.
const EFFECTS: [&str; 14] = [
    "std::fs",
    "std::process::Command",
    "std::net::UdpSocket",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::os::unix::net",
    "std::os::fd",
    "std::thread::spawn",
    "std::thread::scope",
    "std::thread::Builder",
    "tokio::fs",
    "tokio::net",
    "tokio::process",
    "tokio::task::spawn_blocking",
];

/// What this module names and must not.
pub(crate) fn wrong(module: &Module) -> Vec<String> {
    let Some(own) = module.path.first() else { return Vec::new() };
    let Some(at) = ROOMS.iter().position(|room| room.name == own) else {
        return vec![format!("src/{own} is no room: give it a line in {}", file!())];
    };
    let mut wrong = Vec::new();
    for path in &module.inside {
        // A name at the root of the crate, `VERSION`, belongs to nobody.
        let Some(named) = path
            .first()
            .filter(|named| *named != own && !named.chars().all(|c| c.is_uppercase() || c == '_'))
        else {
            continue;
        };
        if !ROOMS[..at].iter().any(|room| room.name == named) || ROOMS[at].not.contains(&named.as_str()) {
            wrong.push(path.join("::"));
        }
    }
    let Some(crates) = ROOMS[at].crates else { return wrong };
    for path in &module.outside {
        let (name, whole) = (&path[0], path.join("::"));
        let effect = EFFECTS.iter().find(|effect| format!("{whole}::").starts_with(&format!("{effect}::")));
        let foreign = !["std", "core", "alloc"].contains(&name.as_str()) && !crates.contains(&name.as_str());
        if foreign || effect.is_some() {
            wrong.push(whole);
        }
    }
    wrong
}
