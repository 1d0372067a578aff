//! The manual. Each page is a Markdown file in `src/docs/`, which reads as well without rustdoc; tests keep its tables in
//! step with the code.
//!
//! Links in a page are written as `[text][label]`. What a label means is defined twice: at the end of the file for who
//! reads the file, and here for who reads the generated documentation. Of two definitions Markdown takes the first.

/// A module that is one page of the manual.
macro_rules! page {
    ($name:ident, $text:expr) => {
        #[doc = "[configuration]: crate::docs::configuration"]
        #[doc = "[backends]: crate::docs::backends"]
        #[doc = "[table inet loden]: crate::docs::backends#table-inet-loden"]
        #[doc = "[operations]: crate::docs::operations"]
        #[doc = "[concerns]: crate::docs::operations#concerns"]
        #[doc = "[metrics]: crate::docs::metrics"]
        #[doc = "[drop reasons]: crate::docs::metrics#drop-reasons"]
        #[doc = "[refusals]: crate::docs::metrics#why-a-node-is-refused"]
        #[doc = "[CNI plugins]: crate::docs::plugins"]
        #[doc = "[design]: crate::docs::design"]
        #[doc = "[changelog]: crate::docs::changelog"]
        #[doc = "[encap]: encap"]
        #[doc = ""]
        #[doc = $text]
        pub mod $name {}
    };
}

page!(configuration, include_str!("docs/configuration.md"));
page!(backends, include_str!("docs/backends.md"));
page!(operations, include_str!("docs/operations.md"));
page!(metrics, include_str!("docs/metrics.md"));
page!(design, include_str!("docs/design.md"));
page!(plugins, include_str!("docs/plugins.md"));
page!(changelog, include_str!("docs/changelog.md"));

#[cfg(test)]
mod tests;
