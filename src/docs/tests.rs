//! The manual and the code say the same.

#![expect(clippy::disallowed_methods, reason = "reads the repository's own texts and sources")]

mod links;
mod page;
mod tables;
mod texts;
