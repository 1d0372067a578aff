//! What the runtime asks by its environment.

use std::path::PathBuf;

use super::{CniError, Code};

/// Longest name of a network device, bytes (`IFNAMSIZ` less the final zero).
const LONGEST_IFNAME: usize = 15;

/// A verb of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Is it attached as ADD left it?
    Check,
    /// Remove what belongs to no attachment any more.
    Gc,
    /// Could ADD be served?
    Status,
    /// Which versions are spoken?
    Version,
}

impl Command {
    /// Every verb with its name in `CNI_COMMAND`.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Add, "ADD"),
        (Self::Del, "DEL"),
        (Self::Check, "CHECK"),
        (Self::Gc, "GC"),
        (Self::Status, "STATUS"),
        (Self::Version, "VERSION"),
    ];

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, known)| *known == name).map(|(command, _)| command)
    }

    /// Whether the verb is about one container.
    fn of_container(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }

    /// Whether the verb cannot do without `variable`. `CNI_PATH` counts for DEL, GC and STATUS too, as in libcni.
    fn needs(self, variable: &str) -> bool {
        match variable {
            CONTAINER_ID | IFNAME => self.of_container(),
            NETNS => matches!(self, Self::Add | Self::Check),
            PATH => self != Self::Version,
            _ => false,
        }
    }
}

const COMMAND: &str = "CNI_COMMAND";
const CONTAINER_ID: &str = "CNI_CONTAINERID";
const NETNS: &str = "CNI_NETNS";
const IFNAME: &str = "CNI_IFNAME";
const ARGS: &str = "CNI_ARGS";
const PATH: &str = "CNI_PATH";
const NETNS_OVERRIDE: &str = "CNI_NETNS_OVERRIDE";

/// The runtime's request, less the configuration on standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The verb.
    pub command: Command,
    /// `CNI_CONTAINERID`; empty where the verb is about no container.
    pub container_id: String,
    /// `CNI_NETNS`: path of the container's network namespace. DEL comes without it once the namespace is gone.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`: the device inside the container.
    pub ifname: String,
    /// `CNI_ARGS`: `KEY=VALUE` pairs between semicolons.
    pub args: String,
    /// `CNI_PATH`: folders in which plugins lie.
    pub path: Vec<PathBuf>,
    /// `CNI_NETNS_OVERRIDE`: the container's namespace may be the plugin's own.
    pub same_netns_allowed: bool,
}

/// What a plugin was started for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// A person ran it: no `CNI_COMMAND`.
    About,
    /// The runtime asks.
    Request(Request),
}

impl Asked {
    /// Reads the environment. An empty variable is an absent one.
    ///
    /// # Errors
    /// Code 4: the verb is unknown, variables are missing (all are named), or one has a value that cannot be.
    pub fn from_env(env: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let get = |name: &str| env(name).filter(|value| !value.is_empty());
        let Some(name) = get(COMMAND) else { return Ok(Self::About) };
        let command = Command::parse(&name).ok_or_else(|| bad(format!("unknown CNI_COMMAND: {name}"), ""))?;
        let missing: Vec<&str> = [CONTAINER_ID, NETNS, IFNAME, PATH]
            .into_iter()
            .filter(|variable| command.needs(variable) && get(variable).is_none())
            .collect();
        if !missing.is_empty() {
            let remedy = "the container runtime sets them; by hand, `cnitool` does";
            return Err(bad(format!("required env variables [{}] missing", missing.join(",")), remedy));
        }
        let container_id = get(CONTAINER_ID).unwrap_or_default();
        let ifname = get(IFNAME).unwrap_or_default();
        if command.of_container() {
            check_container_id(&container_id)?;
            check_ifname(&ifname)?;
        }
        Ok(Self::Request(Request {
            command,
            container_id,
            netns: get(NETNS).map(PathBuf::from),
            ifname,
            args: get(ARGS).unwrap_or_default(),
            path: get(PATH).map(|path| std::env::split_paths(&path).collect()).unwrap_or_default(),
            same_netns_allowed: get(NETNS_OVERRIDE)
                .is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true")),
        }))
    }
}

impl Request {
    /// The value of one key of `CNI_ARGS`.
    pub fn arg(&self, key: &str) -> Option<&str> {
        self.args
            .split(';')
            .filter_map(|pair| pair.split_once('='))
            .find(|(name, _)| *name == key)
            .map(|(_, v)| v)
    }
}

/// Whether `text` is a name as the specification wants it for containers and networks: a letter or digit, then letters,
/// digits, `_`, `.` and `-`. Such a name is also a safe file name.
pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn check_container_id(id: &str) -> Result<(), CniError> {
    if is_name(id) { Ok(()) } else { Err(bad("invalid characters in CNI_CONTAINERID", format!("{id:?}"))) }
}

fn check_ifname(name: &str) -> Result<(), CniError> {
    if name.len() > LONGEST_IFNAME {
        return Err(bad("CNI_IFNAME is too long", format!("{name:?} has more than {LONGEST_IFNAME} bytes")));
    }
    if name == "." || name == ".." || name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace()) {
        return Err(bad(
            "CNI_IFNAME is no name of a device",
            format!("{name:?} is . or .., or contains /, : or a space"),
        ));
    }
    Ok(())
}

fn bad(msg: impl Into<String>, details: impl Into<String>) -> CniError {
    CniError::new(Code::Environment, msg, details)
}
