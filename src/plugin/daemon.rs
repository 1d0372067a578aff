//! What the daemon of this node says, for a plugin that cannot serve a pod or is not sure whether it should.

use std::path::Path;
use std::time::Duration;

use crate::adapter::control;
use crate::cni::{CniError, Code};
use crate::view::{Request, StatusView};

/// How long the daemon may be silent. A daemon that hangs costs every pod this time, and no more.
const PATIENCE: Duration = Duration::from_millis(500);

/// What the daemon answered, or why it did not.
pub(super) struct Daemon(Result<StatusView, String>);

impl Daemon {
    /// Asks the daemon whose subnet file this is.
    pub(super) fn ask(subnet_file: &Path) -> Self {
        let answer = control::ask(&control::path(subnet_file), PATIENCE, &Request::Status)
            .and_then(control::Answers::whole)
            .map_err(|error| format!("{error:#}"));
        Self(answer.and_then(|answer| {
            serde_json::from_value(answer)
                .map_err(|error| format!("the daemon's answer is not understood: {error}"))
        }))
    }

    /// In a sentence what is wrong and what to do, as the daemon sees it.
    fn words(&self) -> String {
        let status = match &self.0 {
            Err(silent) => return silent.clone(),
            Ok(status) => status,
        };
        let broken = status.concerns.iter().filter(|concern| concern.severity == "broken");
        let told: Vec<String> =
            broken.map(|concern| format!("{} ({})", concern.text, concern.code)).collect();
        if told.is_empty() {
            format!("the daemon says: {}", status.readiness)
        } else {
            format!("the daemon says: {}", told.join("; "))
        }
    }

    /// The same error with what the daemon says about it.
    pub(super) fn explain(&self, error: CniError) -> CniError {
        CniError { details: format!("{}; {}", error.details, self.words()), ..error }
    }

    /// Whether the text of the subnet file is the one that is in force, as far as the daemon says.
    ///
    /// # Errors
    /// Code 11: an earlier daemon, or somebody else, wrote it. The daemon puts it right within seconds.
    pub(super) fn confirm(&self, path: &Path, text: &str) -> Result<(), CniError> {
        match &self.0 {
            Ok(StatusView { subnet_env: Some(written), .. }) if written != text => Err(CniError::new(
                Code::TryLater,
                format!("{} is not what the daemon wrote", path.display()),
                format!("it is old or was edited; {}", self.words()),
            )),
            _ => Ok(()),
        }
    }

    /// Whether pods have their network, as far as the daemon says. One that starts leaves in force what was there, and one
    /// that is silent or gone says nothing: pods can be served from the subnet file.
    ///
    /// # Errors
    /// Code 51 with what is broken.
    pub(super) fn serves(&self) -> Result<(), CniError> {
        match &self.0 {
            Ok(status) if !status.starting && status.concerns.iter().any(|it| it.severity == "broken") => {
                Err(CniError::new(
                    Code::LimitedConnectivity,
                    format!("the overlay of node {} is broken", status.node),
                    self.words(),
                ))
            }
            _ => Ok(()),
        }
    }
}
