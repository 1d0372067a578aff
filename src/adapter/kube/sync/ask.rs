//! What is asked of the API server.

use std::time::Duration;

/// What to do next, after a pause.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::adapter::kube) struct Step {
    pub(in crate::adapter::kube) pause: Duration,
    pub(in crate::adapter::kube) ask: Ask,
}

/// A question to the API server.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::adapter::kube) enum Ask {
    /// Open a watch; with `whole` it begins with everything that there is.
    Watch { version: String, whole: bool, lasts: Duration },
    /// Read a page of everything: the first, or the one that this token stands for.
    Page(Option<String>),
    /// Ask how far the server's history goes.
    Version,
    /// Wait for the next word of the open watch, for this long.
    Read(Duration),
}
