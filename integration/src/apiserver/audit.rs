//! What clients asked of the server, as the server saw it.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::ApiServer;

pub(super) const POLICY: &str = "audit-policy.yaml";
pub(super) const LOG: &str = "audit.log";

/// One answered request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asked, for example `system:serviceaccount:loden-system:loden`.
    pub user: String,
    /// `get`, `list`, `watch`, `patch`, …
    pub verb: String,
    /// Path and query.
    pub uri: String,
    /// The HTTP status of the answer.
    pub code: u16,
}

/// A line of the log; `stage` is left out because the policy keeps one stage only.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    user: User,
    verb: String,
    #[serde(rename = "requestURI")]
    uri: String,
    response_status: Option<Status>,
}

#[derive(Deserialize)]
struct User {
    /// Of a client whom the server does not know there is none.
    #[serde(default)]
    username: String,
}

#[derive(Deserialize)]
struct Status {
    code: u16,
}

impl ApiServer {
    /// The requests of one user so far, in the order they were answered. A watch is there from its first byte on.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn requests_of(&self, user: &str) -> Result<Vec<Request>> {
        let path = self.dir().join(LOG);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        // The last line may be half written.
        let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let mut requests = Vec::new();
        for line in lines {
            let line: Line = serde_json::from_str(line).context("a line of the audit log")?;
            if line.user.username == user {
                let code = line.response_status.map_or(0, |status| status.code);
                requests.push(Request { user: line.user.username, verb: line.verb, uri: line.uri, code });
            }
        }
        Ok(requests)
    }
}

/// Metadata only, once per request: when a watch's answer begins (`ResponseStarted`), else when it is complete.
pub(super) fn write_policy(dir: &Path) -> Result<()> {
    let policy = r#"{
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            { "level": "None", "users": ["system:apiserver"] },
            { "level": "Metadata", "verbs": ["watch"], "omitStages": ["ResponseComplete"] },
            { "level": "Metadata" }
        ]
    }"#;
    let path = dir.join(POLICY);
    std::fs::write(&path, policy).with_context(|| format!("write {}", path.display()))
}
