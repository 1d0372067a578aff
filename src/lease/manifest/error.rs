//! Why a file of Nodes was refused as a whole.

use crate::config::excerpt;

/// What is wrong, where, and what to do. Lines and columns count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Beyond what any cluster has.
    #[error(
        "{bytes} bytes are too many for a file of Nodes (at most {max}): check that this is the right file"
    )]
    TooLarge {
        /// Size of the text.
        bytes: usize,
        /// Largest size that is read.
        max: usize,
    },
    /// No Node in it. An empty file is what a failed `kubectl ... > file` leaves behind.
    #[error(
        "there is no Node in the file; write it with `kubectl get nodes -o yaml`, and check that this succeeded"
    )]
    Empty,
    /// Neither JSON nor YAML, or a field of another type.
    #[error("line {line}, column {column}{}: {reason}; correct it, or write the file anew with `kubectl get nodes -o {format}`",
        path.as_ref().map(|path| format!(", field {}", excerpt(path).trim_matches('"'))).unwrap_or_default())]
    Syntax {
        /// Line.
        line: u64,
        /// Column.
        column: u64,
        /// The field, such as `items[2].spec.podCIDR`, if parsing came that far.
        path: Option<String>,
        /// What is wrong.
        reason: String,
        /// `json` or `yaml`.
        format: &'static str,
    },
    /// An object that is not a Node.
    #[error("{at}: kind is {}, but must be Node (or a List of Nodes): remove that object", excerpt(.kind))]
    Kind {
        /// Where.
        at: String,
        /// What it is.
        kind: String,
    },
    /// An object that does not say what it is.
    #[error("{at}: kind is missing: add \"kind: Node\", or write the file with `kubectl get nodes -o yaml`")]
    NoKind {
        /// Where.
        at: String,
    },
    /// A Node without a usable name.
    #[error("{at} is {}, but must be a Node's name (lower-case letters, digits, \"-\" and \".\", at most 253): correct it", excerpt(.value))]
    Name {
        /// Where.
        at: String,
        /// What is there.
        value: String,
    },
    /// Two Nodes of one name.
    #[error("{second}: metadata.name {} is also that of {first}: remove one of the two", excerpt(.name))]
    Duplicate {
        /// The name.
        name: String,
        /// Where it stands first.
        first: String,
        /// Where it stands again.
        second: String,
    },
    /// The two spellings of a podCIDR contradict each other.
    #[error("{at}: podCIDR {} is not the first of podCIDRs, {}: make them the same", excerpt(.single), excerpt(.first))]
    PodCidr {
        /// Where.
        at: String,
        /// `podCIDR`.
        single: String,
        /// `podCIDRs[0]`.
        first: String,
    },
}

/// Longest piece of a parser's own words that is kept: it may quote the file.
const KEPT: usize = 200;

impl ManifestError {
    pub(super) fn json(error: &serde_json::Error, path: &serde_path_to_error::Path) -> Self {
        let full = error.to_string();
        let position = format!(" at line {} column {}", error.line(), error.column());
        Self::Syntax {
            line: error.line() as u64,
            column: error.column() as u64,
            path: field(path.to_string()),
            reason: cut(full.strip_suffix(&position).unwrap_or(&full)),
            format: "json",
        }
    }

    /// `first_line` lines stand before the document in which the error was met.
    pub(super) fn yaml(error: &serde_saphyr::Error, first_line: usize, path: Option<String>) -> Self {
        let location = error.location();
        let full = error.to_string();
        // What the parser says is followed by where; we say that in front, for the whole file.
        let reason = full.split(" at line ").next().unwrap_or(&full);
        Self::Syntax {
            line: first_line as u64 + location.map_or(1, |l| l.line()),
            column: location.map_or(1, |l| l.column()),
            path: path.and_then(field),
            reason: cut(reason),
            format: "yaml",
        }
    }
}

/// A path of "." is the document itself.
fn field(path: String) -> Option<String> {
    (path != ".").then_some(path)
}

fn cut(reason: &str) -> String {
    reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(KEPT).collect()
}
