//! The CNI plugins: one program, and the name that it is started by says which plugin it is.
//!
//! A plugin is one file here. It brings together the decisions of [`crate::cni`] and the effects of
//! [`crate::adapter::cni`]; there is no runtime, no thread, and one request.

mod bridge;
mod daemon;
mod flannel;
mod host_local;
mod loopback;
mod portmap;
mod worker;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;

use crate::adapter::cni::{self as effects, Netns};
use crate::cni::{Asked, CniError, Code, Command, NetConf, Outcome, Request, Version, versions};

/// What the runtime asks of a plugin.
#[derive(Clone)]
struct Call {
    request: Request,
    conf: NetConf,
    /// Standard input as it came, for a plugin that is asked on our behalf.
    input: Vec<u8>,
    /// Plugins inside this program go before those in the folders of `CNI_PATH`.
    builtin_first: bool,
}

/// What a plugin answers when all went well.
enum Answer {
    Nothing,
    Outcome(Box<Outcome>),
    /// What another plugin printed.
    Printed(Vec<u8>),
}

/// One plugin; each verb as the specification has it.
trait Plugin {
    fn add(&self, call: &Call) -> Result<Answer, CniError>;
    /// Succeeds when there is nothing (more) to undo.
    fn del(&self, call: &Call) -> Result<(), CniError>;
    /// Fails if what ADD left is not there any more.
    fn check(&self, call: &Call) -> Result<(), CniError>;
    /// Removes what belongs to no valid attachment.
    fn gc(&self, call: &Call) -> Result<(), CniError>;
    /// Fails if ADD could not be served now.
    fn status(&self, call: &Call) -> Result<(), CniError>;
}

/// The plugins by their names.
const PLUGINS: [(&str, &dyn Plugin); 5] = [
    ("bridge", &bridge::Bridge),
    ("flannel", &flannel::Flannel),
    ("host-local", &host_local::HostLocal),
    ("loopback", &loopback::Loopback),
    ("portmap", &portmap::Portmap),
];

/// The built-in plugin of this name.
fn builtin(name: &str) -> Option<&'static dyn Plugin> {
    PLUGINS.into_iter().find(|(known, _)| *known == name).map(|(_, plugin)| plugin)
}

/// Does what the runtime asks; `name` is the path by which this program was started.
pub fn main(name: &Path, env: impl Fn(&str) -> Option<String>) -> ExitCode {
    let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut version = None;
    let outcome = serve(&name, env, &mut version);
    let (text, code) = match outcome {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(text)) => (text, ExitCode::SUCCESS),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{name}: {error}");
            (pretty(&error.to_json(version)), ExitCode::FAILURE)
        }
    };
    // The runtime reads the answer; without a reader there is nobody to tell.
    let _ = std::io::stdout().write_all(&text);
    code
}

fn serve(
    name: &str,
    env: impl Fn(&str) -> Option<String>,
    version: &mut Option<Version>,
) -> Result<Option<Vec<u8>>, CniError> {
    let plugin = builtin(name).ok_or_else(|| {
        let known: Vec<_> = PLUGINS.iter().map(|(name, _)| *name).collect();
        CniError::new(
            Code::Environment,
            format!("{name:?} is none of this program's plugins"),
            format!("start it by one of the names {}", known.join(", ")),
        )
    })?;
    let request = match Asked::from_env(env)? {
        Asked::About => {
            let [release, commit] = crate::VERSION;
            let known = Version::ALL.map(Version::as_str).join(", ");
            let about = format!(
                "CNI plugin {name} of Loden {release} ({commit})\nCNI protocol versions supported: {known}\n\
                 A container runtime starts it with CNI_COMMAND set."
            );
            let _ = writeln!(std::io::stderr(), "{about}");
            return Ok(None);
        }
        Asked::Request(request) if request.command == Command::Version => {
            return Ok(Some(pretty(&versions())));
        }
        Asked::Request(request) => request,
    };
    let input = effects::read_all(std::io::stdin().lock()).map_err(|error| {
        CniError::new(
            Code::Io,
            "cannot read the network configuration from standard input",
            error.to_string(),
        )
    })?;
    let conf = NetConf::parse(&input)?;
    *version = Some(conf.version);
    let call = Call { request, conf, input, builtin_first: false };
    call.check_version()?;
    call.check_netns()?;
    Ok(match call.run(plugin)? {
        Answer::Nothing => None,
        Answer::Outcome(outcome) => Some(pretty(&outcome.to_json(call.conf.version))),
        Answer::Printed(text) => Some(text),
    })
}

impl Call {
    fn run(&self, plugin: &dyn Plugin) -> Result<Answer, CniError> {
        match self.request.command {
            Command::Add => plugin.add(self),
            Command::Del => plugin.del(self).map(|()| Answer::Nothing),
            Command::Check => plugin.check(self).map(|()| Answer::Nothing),
            Command::Gc => plugin.gc(self).map(|()| Answer::Nothing),
            Command::Status => plugin.status(self).map(|()| Answer::Nothing),
            Command::Version => Ok(Answer::Nothing),
        }
    }

    /// The same request with another configuration, for a built-in plugin that is asked on our behalf.
    fn with(&self, command: Command, input: Vec<u8>, builtin_first: bool) -> Result<Self, CniError> {
        let request = Request { command, ..self.request.clone() };
        Ok(Self { request, conf: NetConf::parse(&input)?, input, builtin_first })
    }

    /// CHECK came with 0.4.0, GC and STATUS with 1.1.0.
    fn check_version(&self) -> Result<(), CniError> {
        let (verb, since) = match self.request.command {
            Command::Check => ("CHECK", Version::V0_4_0),
            Command::Gc => ("GC", Version::V1_1_0),
            Command::Status => ("STATUS", Version::V1_1_0),
            Command::Add | Command::Del | Command::Version => return Ok(()),
        };
        if self.conf.version >= since {
            return Ok(());
        }
        Err(CniError::new(
            Code::IncompatibleVersion,
            format!("config version does not allow {verb}"),
            format!("{verb} needs cniVersion {since}, the configuration says {}", self.conf.version),
        ))
    }

    /// A container in the plugin's own namespace would have its devices made on the host.
    fn check_netns(&self) -> Result<(), CniError> {
        let attaches = matches!(self.request.command, Command::Add | Command::Del);
        if !attaches || self.request.same_netns_allowed {
            return Ok(());
        }
        match remaining_netns(&self.request)? {
            Some(netns) if netns.is(&Netns::current()?) => Err(CniError::new(
                Code::Netns,
                "plugin's netns and netns from CNI_NETNS should not be the same",
                "the runtime names the container's namespace in CNI_NETNS",
            )),
            _ => Ok(()),
        }
    }
}

/// The container's namespace, as far as there still is one. A name that stays behind after its namespace was unmounted is
/// an ordinary file, and to DEL the same as none.
fn remaining_netns(request: &Request) -> Result<Option<Netns>, CniError> {
    match request.netns.as_deref().map(Netns::open).transpose() {
        Err(error) if error.code == Code::Netns && request.command == Command::Del => Ok(None),
        found => found.map(Option::flatten),
    }
}

/// The container's namespace, and its path as the result shows it.
fn container_netns(request: &Request) -> Result<(Netns, String), CniError> {
    let path = request.netns.as_deref().unwrap_or(Path::new(""));
    let netns = Netns::open(path)?.ok_or_else(|| {
        CniError::new(
            Code::UnknownContainer,
            format!("failed to open netns {:?}", path.display()),
            "it does not exist: the container is gone",
        )
    })?;
    Ok((netns, path.display().to_string()))
}

/// As the reference plugins print: indented by four.
fn pretty(value: &Value) -> Vec<u8> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let written =
        serde::Serialize::serialize(value, &mut serde_json::Serializer::with_formatter(&mut text, formatter));
    // A JSON value can always be written into memory.
    if written.is_err() {
        text = value.to_string().into_bytes();
    }
    text
}
