//! Errors as the runtime reads them: JSON on standard output, with a code.

use serde_json::{Value, json};

use super::Version;

/// The specification's error codes, and one of libcni's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The configuration's version is not spoken.
    IncompatibleVersion = 1,
    /// A field asks for something that the plugin cannot do.
    UnsupportedField = 2,
    /// The container is unknown or its namespace does not exist.
    UnknownContainer = 3,
    /// A variable of the environment is missing or bad.
    Environment = 4,
    /// A file, a stream or the kernel failed.
    Io = 5,
    /// The input is no JSON, or not of the expected form.
    Decode = 6,
    /// The network configuration contradicts itself.
    NetworkConfig = 7,
    /// libcni's code for a `CNI_NETNS` that is no network namespace, or the plugin's own.
    Netns = 8,
    /// The runtime should try again a little later.
    TryLater = 11,
    /// STATUS: ADD cannot be served.
    NotAvailable = 50,
    /// STATUS: ADD cannot be served, and pods that run may have lost connections.
    LimitedConnectivity = 51,
    /// Ours: what CHECK found is not what ADD left.
    CheckFailed = 100,
    /// libcni's code for everything else.
    Internal = 999,
}

/// Why a plugin could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// What kind of failure it is.
    pub code: Code,
    /// One sentence.
    pub msg: String,
    /// Cause and remedy, if there is more to say.
    pub details: String,
}

impl CniError {
    /// An error with its details; `details` may be empty.
    pub fn new(code: Code, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }

    /// What the runtime reads on standard output.
    pub fn to_json(&self, version: Option<Version>) -> Value {
        let version = version.unwrap_or(Version::CURRENT).as_str();
        let mut value = json!({ "cniVersion": version, "code": self.code as u32, "msg": self.msg });
        if !self.details.is_empty()
            && let Some(fields) = value.as_object_mut()
        {
            fields.insert("details".into(), Value::String(self.details.clone()));
        }
        value
    }
}
