//! `--kube-annotation-prefix`: what stands before the name of every annotation of ours.

use std::fmt;
use std::str::FromStr;

use super::excerpt;

/// A checked annotation prefix that ends in `/` or `-`, so that a key is the prefix and a name.
///
/// flannel's rule: no `/` means one is appended; then, unless it ends in `/` or `-`, a `-` is
/// appended; the result must look like `domain.with.dots/` or `domain.with.dots/word-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AnnotationPrefix(String);

/// Why a prefix was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationPrefixError {
    /// More than one `/`.
    #[error("{} has more than one \"/\": write a domain, one \"/\" at most, and a word, such as flannel.alpha.coreos.com or example.com/net", excerpt(.0))]
    Slashes(String),
    /// Not of the form Kubernetes accepts for annotation keys.
    #[error("{} is not a prefix of annotation keys: write a domain of lower-case letters, digits, \"-\" and \"_\" with at least one dot, then at most \"/\" and a word, such as flannel.alpha.coreos.com or example.com/net", excerpt(.0))]
    Form(String),
}

/// Kubernetes allows 253 characters of domain and 63 of name.
const MAX_LEN: usize = 300;

impl AnnotationPrefix {
    /// The text, ending in `/` or `-`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The annotation key for `name`.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.0)
    }

    /// What stands after the prefix in `key`, if `key` has it.
    pub fn strip<'k>(&self, key: &'k str) -> Option<&'k str> {
        key.strip_prefix(&self.0)
    }
}

impl Default for AnnotationPrefix {
    fn default() -> Self {
        Self("flannel.alpha.coreos.com/".to_owned())
    }
}

impl FromStr for AnnotationPrefix {
    type Err = AnnotationPrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut prefix = text.to_owned();
        match prefix.matches('/').count() {
            0 => prefix.push('/'),
            1 => {}
            _ => return Err(AnnotationPrefixError::Slashes(prefix)),
        }
        if !prefix.ends_with(['/', '-']) {
            prefix.push('-');
        }
        if prefix.len() <= MAX_LEN && well_formed(&prefix) {
            Ok(Self(prefix))
        } else {
            Err(AnnotationPrefixError::Form(text.to_owned()))
        }
    }
}

impl fmt::Display for AnnotationPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn well_formed(prefix: &str) -> bool {
    let word =
        |s: &str| !s.is_empty() && s.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
    let Some((domain, name)) = prefix.split_once('/') else { return false };
    domain.contains('.')
        && domain.split('.').all(word)
        && (name.is_empty() || name.strip_suffix('-').is_some_and(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flannels_rule() {
        for (given, want) in [
            ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/"),
            ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/"),
            ("example.com/net", "example.com/net-"),
            ("example.com/net-", "example.com/net-"),
            ("my-net_1.example.com/a_b", "my-net_1.example.com/a_b-"),
        ] {
            assert_eq!(given.parse::<AnnotationPrefix>().unwrap().as_str(), want, "{given}");
        }
        for bad in
            ["", "/", "nodots", "nodots/x", "a..b/", ".a.b/", "Upper.case/", "a.b/x y", "a.b/-x/", "a.b/x/"]
        {
            assert!(bad.parse::<AnnotationPrefix>().is_err(), "{bad}");
        }
        assert!(format!("a.{}/", "b".repeat(1000)).parse::<AnnotationPrefix>().is_err());
        let slashes = "a.b/c/d".parse::<AnnotationPrefix>().unwrap_err();
        assert!(slashes.to_string().starts_with(r#""a.b/c/d" has more than one "/""#), "{slashes}");
    }

    #[test]
    fn keys() {
        let prefix = AnnotationPrefix::default();
        assert_eq!(prefix.key("public-ip"), "flannel.alpha.coreos.com/public-ip");
        assert_eq!(prefix.strip("flannel.alpha.coreos.com/public-ip"), Some("public-ip"));
        assert_eq!(prefix.strip("example.com/public-ip"), None);
    }
}
