//! A plugin that another one asks: a program of somebody else's, or one that is built in.

use std::path::PathBuf;

use super::{Answer, Call, Plugin, builtin};
use crate::adapter::cni::{self as effects, Delegates, Found};
use crate::cni::{CniError, Code, Command, Outcome, Request};

/// The plugin that does the work.
pub(super) enum Worker {
    /// Somebody else's program.
    Program(PathBuf),
    /// One that is built in, and whether those that it asks are to be built in, too.
    Builtin(&'static dyn Plugin, bool),
}

impl Worker {
    /// Another's program goes first, unless `builtin_first`.
    pub(super) fn find(kind: &str, builtin_first: bool, request: &Request) -> Result<Self, CniError> {
        match (Delegates::new(&request.path).find(kind)?, builtin(kind)) {
            (Found::Program(program), builtin) if !builtin_first || builtin.is_none() => {
                Ok(Self::Program(program))
            }
            (_, Some(plugin)) => Ok(Self::Builtin(plugin, builtin_first)),
            _ => {
                let folders: Vec<String> = request.path.iter().map(|dir| dir.display().to_string()).collect();
                Err(CniError::new(
                    Code::NetworkConfig,
                    format!("the plugin {kind:?} is not there"),
                    format!("put it into one of the folders of CNI_PATH: {}", folders.join(", ")),
                ))
            }
        }
    }

    /// Asks it.
    pub(super) fn ask(&self, command: Command, call: &Call, input: &[u8]) -> Result<Answer, CniError> {
        match self {
            Self::Builtin(plugin, builtin_first) => {
                call.with(command, input.to_vec(), *builtin_first)?.run(*plugin)
            }
            Self::Program(program) => {
                let verb = Command::ALL
                    .into_iter()
                    .find(|(known, _)| *known == command)
                    .map_or("", |(_, name)| name);
                effects::run(program, verb, &call.request, input).map(Answer::Printed)
            }
        }
    }

    /// Asks it to ADD, and reads its result.
    pub(super) fn add(&self, call: &Call) -> Result<Outcome, CniError> {
        match self.ask(Command::Add, call, &call.input)? {
            Answer::Outcome(outcome) => Ok(*outcome),
            Answer::Printed(text) => Outcome::parse(&text),
            Answer::Nothing => Ok(Outcome::default()),
        }
    }
}
