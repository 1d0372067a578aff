//! Bad news, in one form: a [`Concern`] has a stable [`Code`], a [`Severity`], a subject, and a text with the remedy.
//!
//! Whoever finds that something is wrong raises a concern on the [`Board`], and whoever finds that it is not wrong any
//! more clears it. The board knows what is to be logged: what is raised once, what is over once and with how long it
//! lasted, and what comes and goes in few lines. From it come `/readyz`, the metric `loden_concerns` and what commands
//! show. It has no clock: time is an argument.

mod board;
mod code;
mod fold;
mod liveness;
mod past;
mod words;

use std::fmt;

pub use self::board::{Board, Level, Line, Readiness};
pub use self::code::Code;
pub use self::liveness::stuck;
pub use self::words::lasting;

/// How bad a concern is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Packets pass as they should: this is for the log and the metric.
    Note,
    /// Pods are served, but not everything is as it should be: `/readyz` answers 200 and says so.
    Degraded,
    /// Pods of this node cannot be served: `/readyz` answers 503.
    Broken,
}

impl Severity {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Note, Self::Degraded, Self::Broken];

    /// As label of the metric and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Degraded => "degraded",
            Self::Broken => "broken",
        }
    }
}

/// What a concern is about. There is one concern for each code and subject.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Subject {
    /// This node as a whole.
    #[default]
    Here,
    /// A Node, a pod, or a step toward the kernel.
    Named(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here => Ok(()),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// Something that is wrong now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Concern {
    /// What kind of thing.
    pub code: Code,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub subject: Subject,
    /// What is the matter and what to do about it, for people.
    pub text: String,
}

impl Concern {
    /// A concern about this node, as severe as its code usually is.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, severity: code.severity(), subject: Subject::Here, text: text.into() }
    }

    /// The same about a Node, a pod, or a step toward the kernel.
    #[must_use]
    pub fn about(self, name: impl Into<String>) -> Self {
        Self { subject: Subject::Named(name.into()), ..self }
    }

    /// The same where there may be several, and nothing but the text tells them apart.
    #[must_use]
    pub fn one_of_many(self) -> Self {
        let name = self.text.clone();
        self.about(name)
    }

    /// The same, worse or less bad than usual.
    #[must_use]
    pub fn with(self, severity: Severity) -> Self {
        Self { severity, ..self }
    }
}
